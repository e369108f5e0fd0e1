"""`page`: plans of web pages, written from a brief by the model that writes `sections`; pages' fonts and scores."""

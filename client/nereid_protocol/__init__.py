"""What both sides of the wire share: the table of request fields and the form errors travel in; imports nothing heavy."""

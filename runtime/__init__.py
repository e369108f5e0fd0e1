"""What the Python models are made of, as plain Python and numpy; knows nothing of Triton."""

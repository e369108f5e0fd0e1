"""A page from a brief: planned, written, laid out, illustrated, put together, checked; plain Python, knows no Triton."""

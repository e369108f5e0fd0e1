"""Starts Triton, watches it, heals it; knows Triton's processes and its control interface, nothing of models."""

"""Small checkpoints trained by this project on data it makes itself; knows torch, nothing of Triton."""

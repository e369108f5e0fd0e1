"""Checkpoint to engines to a deployable Triton repository, every engine checked; knows torch, diffusers and ONNX."""

"""What stands between Triton's Python backend and this project's plain Python; knows Triton."""

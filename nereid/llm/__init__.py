"""A language model's loop: sampling, KV cache, prefix cache, speculation; knows an engine's interface, not Triton."""

"""A language model's loop: sampling, KV memory, prefix cache, speculation; knows an engine's interface, not Triton."""

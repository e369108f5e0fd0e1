"""The language model taught to call one tool: data, training of LoRA weights, merging."""

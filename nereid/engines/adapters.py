"""How an engine is told by which LoRA adapter a row, or a token, is computed: one name and one numbering for all engines."""

ADAPTERS = "adapters"
"""The graph's input (int64): adapters are counted from 1, 0 is the model itself. Only a model exported with adapters has it."""

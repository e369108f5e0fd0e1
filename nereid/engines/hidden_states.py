"""How an engine gives the last hidden states of tokens, where a model's export kept them: one name for all engines."""

HIDDEN_STATES = "hidden_states"
"""The graph's output: of every token of a call what the head would be given, behind the last norm."""

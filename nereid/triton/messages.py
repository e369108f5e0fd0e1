"""What Triton's own error messages tell of a model that was called; imports nothing of Triton's."""

from __future__ import annotations

_MESSAGE_CHARS = 300
"""An engine's own error may hold a whole graph: more of it than this belongs in the log."""

_DOWN = (
    "is not healthy",
    "failed to load",
    "is not ready",
    # To a call from inside while the server ends: those who made it are ended with it, and are heard again by the next one.
    "server not ready",
    "server is stopping",
    "is not found",
    "unknown model",
    "has no available versions",
    # Said where the memory that two processes share is gone while a call is read from it: no output has an empty name.
    "output '' for model",
)


def tells_death(message: str) -> bool:
    """Whether the model is down: its process died, or it is being reloaded. Triton 24.10 gives no code of their own."""
    return any(words in message.lower() for words in _DOWN)


def shortened(message: str) -> str:
    """The message, cut where it is long."""
    return message if len(message) <= _MESSAGE_CHARS else f"{message[:_MESSAGE_CHARS]}..."

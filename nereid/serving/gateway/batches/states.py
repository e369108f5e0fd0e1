"""How far a batch can be, in OpenAI's words."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """A batch is in one of these at a time."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


OPEN_STATES = (State.VALIDATING, State.IN_PROGRESS, State.FINALIZING, State.CANCELLING)
"""There is still something to be done."""

"""What one tick of a language model's loop did, for the metrics; counts, and decides nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Tick:
    """Counted up by prefill and decode; the seconds are a decode call's with the drawing, 0 where it read prompts, too."""

    decoded_rows: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    preempted: int = 0
    decode_seconds: float = 0.0

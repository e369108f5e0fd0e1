"""How many requests of batches may run, and when; knows no batch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """A gap begins after `gap_seconds` without anybody; after `ramp_seconds` of it `at_once` requests run together, fewer before.

    One does after `starved_seconds` without a gap.
    """

    at_once: int = 8
    gap_seconds: float = 0.1
    ramp_seconds: float = 4.0
    starved_seconds: float = 10.0
    longest_gap_seconds: float = 2.0

    def together(self, gap: float) -> int:
        """Requests that may run together in a gap that has lasted so long: one or two in those that callers leave each other."""
        if gap >= self.ramp_seconds:
            return self.at_once
        return 1 + int((self.at_once - 1) * (gap / self.ramp_seconds) ** 2)

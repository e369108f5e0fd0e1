"""Which of the measured settings are worth their time: the Pareto front, and the cheapest that is good enough. Pure functions.

Settings with equally many calls of the UNet differ in time by little but chance: of them, only the best is worth its time, and
fewer calls are what is cheaper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SCORE, PSNR = "score", "psnr"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one setting has come to: medians, and the percentage that the scorer calls right (None where there is none)."""

    label: str
    calls: int
    """Of the UNet, for a picture."""
    seconds: float
    psnr: float
    score: float | None = None

    def quality(self, kind: str) -> float:
        """`score` in percent, or `psnr` in dB; lowest of all where it was not measured."""
        found = self.score if kind == SCORE else self.psnr
        return float("-inf") if found is None else found


def pareto_front(measured: Sequence[Measured], kind: str) -> list[Measured]:
    """The best of each number of calls, from the fewest on, where it is better than all that have fewer."""
    front: list[Measured] = []
    for one in sorted(measured, key=lambda one: (one.calls, -one.quality(kind), -one.psnr, one.seconds)):
        if not front or one.quality(kind) > front[-1].quality(kind):
            front.append(one)
    return front


def cheapest(measured: Sequence[Measured], bounds: Mapping[str, float]) -> Measured | None:
    """The cheapest that reaches every bound, the best of these by the score (or PSNR) that is asked for; None where none does."""
    good = [one for one in measured if all(one.quality(kind) >= bound for kind, bound in bounds.items())]
    kinds = [*(kind for kind in (SCORE, PSNR) if kind in bounds), PSNR]
    return min(good, key=lambda one: (one.calls, *(-one.quality(kind) for kind in kinds), one.seconds), default=None)


def best(measured: Sequence[Measured], kind: str) -> Measured:
    """The best of all, the fastest where several are."""
    return max(measured, key=lambda one: (one.quality(kind), -one.seconds))

"""Which of the measured settings are worth their time: the Pareto front, and the cheapest that is good enough. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SCORE, PSNR = "score", "psnr"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one setting has come to: medians, and the percentage that the scorer calls right (None where there is none)."""

    label: str
    steps: int
    seconds: float
    psnr: float
    score: float | None = None

    def quality(self, kind: str) -> float:
        """`score` in percent, or `psnr` in dB; lowest of all where it was not measured."""
        found = self.score if kind == SCORE else self.psnr
        return float("-inf") if found is None else found


def pareto_front(measured: Sequence[Measured], kind: str) -> list[Measured]:
    """Those that nothing as fast surpasses, from the fastest on: each is better than all that take less time."""
    front: list[Measured] = []
    for one in sorted(measured, key=lambda one: (one.seconds, -one.quality(kind))):
        if not front or one.quality(kind) > front[-1].quality(kind):
            front.append(one)
    return front


def cheapest(measured: Sequence[Measured], bounds: Mapping[str, float]) -> Measured | None:
    """The cheapest that reaches every bound; None where none does.

    Cheapest is the number of steps of the fastest one. Those with as many steps make the same calls of the UNet, and their times
    differ by little but chance: of them, the best that the bounds speak of is taken.
    """
    good = [one for one in measured if all(one.quality(kind) >= bound for kind, bound in bounds.items())]
    if not good:
        return None
    fastest = min(good, key=lambda one: one.seconds)
    kinds = [kind for kind in (SCORE, PSNR) if kind in bounds]
    return max(
        (one for one in good if one.steps == fastest.steps),
        key=lambda one: (*(one.quality(kind) for kind in kinds), one.quality(PSNR), -one.seconds),
    )


def best(measured: Sequence[Measured], kind: str) -> Measured:
    """The best of all, the fastest where several are."""
    return max(measured, key=lambda one: (one.quality(kind), -one.seconds))

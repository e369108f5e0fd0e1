"""The vocabulary of a step: what it combines, and with which weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum


class Term(IntEnum):
    """What a step combines. BASE is a sample that the solver remembers between steps (UniPC, singlestep solvers)."""

    SAMPLE = 0
    BASE = 1
    CLEAN = 2
    CLEAN_1 = 3
    CLEAN_2 = 4
    CLEAN_3 = 5
    NOISE = 6


Combination = dict[Term, float]

HISTORY = (Term.CLEAN_1, Term.CLEAN_2, Term.CLEAN_3)
"""Earlier clean predictions, the latest first."""


@dataclass(frozen=True, slots=True)
class Step:
    """The next sample, and the next BASE, each as a combination of the terms."""

    sample: Combination
    base: Combination = field(default_factory=dict)

"""Sections of briefs such as a layout transformer is trained on, and how many layouts of them pass the checks."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np

from nereid.layout.checks import check_layout, has_errors
from nereid.layout.elements import Box, Section
from nereid.layout.repair import repair

Passed = Sequence[bool]
"""Of a layout: whether it passes all error checks before repair, and after it."""


def sample_sections(count: int, seed: int) -> list[Section]:
    """Always the same for a seed; raises ImportError where the zoo is not installed."""
    from nereid_zoo.layout.batches import sample_row

    rng = Random(seed)
    return [sample_row(rng)[0] for _ in range(count)]


def passed_each(sections: Sequence[Section], layouts: Sequence[Sequence[Box]]) -> list[tuple[bool, bool]]:
    """Of each section's layout."""
    return [
        (not has_errors(check_layout(section, boxes)), not has_errors(check_layout(section, repair(section, boxes).boxes)))
        for section, boxes in zip(sections, layouts, strict=True)
    ]


def passed_shares(passed: Sequence[Passed]) -> tuple[float, float]:
    """Percent that pass before and after repair."""
    before, after = (round(100 * sum(column) / len(passed), 2) for column in zip(*passed, strict=True))
    return before, after


def off_pixels(layouts: Sequence[Sequence[Box]], others: Sequence[Sequence[Box]]) -> list[float]:
    """Of each section, the mean over its boxes' four numbers of how far they are off, in CSS pixels."""
    return [float(np.abs(np.array(one) - np.array(other)).mean()) for one, other in zip(layouts, others, strict=True)]

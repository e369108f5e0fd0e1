"""What a check says: which check, how severe, of which elements, the value found and the limit it breaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from nereid.layout.elements import Box, Section

TOLERANCE = 0.5
"""CSS pixels that rounding may take."""


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


class Check(StrEnum):
    """The checks there are."""

    COMPLETE = "complete"
    IN_BOUNDS = "in_bounds"
    DISJOINT = "disjoint"
    INSIDE_PARENT = "inside_parent"
    FIXED = "fixed"
    MINIMUM_SIZE = "minimum_size"
    RATIO = "ratio"
    TARGET_SIZE = "target_size"
    TARGET_SIZE_AAA = "target_size_aaa"
    CONTRAST = "contrast"
    READING_ORDER = "reading_order"
    HEADING_ABOVE = "heading_above"
    ALIGNMENT = "alignment"
    GRID = "grid"
    COLUMNS = "columns"
    EQUAL_GAPS = "equal_gaps"


WARNINGS = frozenset({Check.TARGET_SIZE_AAA, Check.ALIGNMENT, Check.GRID, Check.COLUMNS, Check.EQUAL_GAPS})
"""Checks whose breaking is bad style; all others are errors."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One break of one check. `value` and `limit` are in CSS pixels, except ratios (width / height) and contrasts."""

    check: Check
    elements: tuple[str, ...]
    value: float
    limit: float

    @property
    def severity(self) -> Severity:
        return Severity.WARNING if self.check in WARNINGS else Severity.ERROR

    def as_json(self) -> dict[str, Any]:
        """For an answer."""
        return {
            "check": str(self.check),
            "severity": str(self.severity),
            "elements": list(self.elements),
            "value": round(self.value, 3),
            "limit": round(self.limit, 3),
        }


def sibling_pairs(section: Section) -> Iterator[tuple[int, int]]:
    """Indices of elements with the same parent, in reading order."""
    for group in section.children:
        for place, first in enumerate(group):
            for second in group[place + 1 :]:
                yield first, second


def overlap(first: Box, second: Box) -> tuple[float, float]:
    """By how much two boxes overlap horizontally and vertically, in CSS pixels; negative is the gap between them."""
    return (
        min(first.x + first.width, second.x + second.width) - max(first.x, second.x),
        min(first.y + first.height, second.y + second.height) - max(first.y, second.y),
    )


Boxes = Sequence[Box]
"""One for each element, in the section's order."""

"""Everything a layout is held to, as one list of findings, and a score of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

from nereid.layout.checks import content, reading, rhythm, structure
from nereid.layout.checks.finding import WARNINGS, Boxes, Check, Finding, Severity
from nereid.layout.elements import Box, Section

__all__ = ["Check", "Finding", "Severity", "check_layout", "has_errors", "score"]

_CHECKS: tuple[Callable[[Section, Boxes], Iterator[Finding]], ...] = (
    structure.in_bounds,
    structure.disjoint,
    structure.inside_parent,
    structure.fixed_untouched,
    content.minimum_size,
    content.ratio_kept,
    content.target_size,
    content.target_size_aaa,
    content.contrast,
    reading.reading_order,
    reading.heading_above,
    rhythm.alignment,
    rhythm.grid,
    rhythm.columns,
    rhythm.equal_gaps,
)


def check_layout(section: Section, boxes: Sequence[Box | None]) -> list[Finding]:
    """All findings about the boxes (one for each element, in the section's order); only what is missing where one is missing."""
    missing = list(structure.complete(section, boxes))
    if missing:
        return missing
    whole = cast(Boxes, boxes)
    return [finding for check in _CHECKS for finding in check(section, whole)]


def has_errors(findings: Sequence[Finding]) -> bool:
    return any(finding.severity is Severity.ERROR for finding in findings)


def score(section: Section, findings: Sequence[Finding]) -> float:
    """2^-errors x (1 - warned / (2 x elements x kinds of warnings)), in 0..1.

    1 where nothing is wrong, above 0.5 where there is no error, at most 0.5 where there is one; `warned` counts pairs of an
    element and a warning. So of several candidates any without an error comes before any with one.
    """
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    warned = {
        (finding.check, element) for finding in findings if finding.severity is Severity.WARNING for element in finding.elements
    }
    return 0.5**errors * (1 - len(warned) / (2 * len(section) * len(WARNINGS)))

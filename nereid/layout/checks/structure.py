"""Checks of boxes against each other: complete, in bounds, siblings disjoint, children inside, fixed fields untouched."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from nereid.layout.checks.finding import TOLERANCE, Boxes, Check, Finding, overlap, sibling_pairs
from nereid.layout.elements import Box, Section


def complete(section: Section, boxes: Sequence[Box | None]) -> Iterator[Finding]:
    """Every element has a box of four finite numbers with an area: value = min(width, height) > 0, NaN where there is none."""
    for place, element in enumerate(section.elements):
        box = boxes[place] if place < len(boxes) else None
        if box is None or not all(map(math.isfinite, box)) or min(box.width, box.height) <= 0:
            yield Finding(Check.COMPLETE, (element.id,), math.nan if box is None else min(box.width, box.height), 0.0)


def in_bounds(section: Section, boxes: Boxes) -> Iterator[Finding]:
    """max(-x, -y, x + width - canvas width) <= 0: nothing is left of, above or right of the canvas, whose height is free."""
    for element, box in zip(section.elements, boxes, strict=True):
        outside = max(-box.x, -box.y, box.x + box.width - section.canvas.width)
        if outside > TOLERANCE:
            yield Finding(Check.IN_BOUNDS, (element.id,), outside, 0.0)


def disjoint(section: Section, boxes: Boxes) -> Iterator[Finding]:
    """min(overlap in x, overlap in y) <= 0 for siblings; containers overlap what they contain, so only siblings count."""
    for first, second in sibling_pairs(section):
        depth = min(overlap(boxes[first], boxes[second]))
        if depth > TOLERANCE:
            yield Finding(Check.DISJOINT, (section.elements[first].id, section.elements[second].id), depth, 0.0)


def inside_parent(section: Section, boxes: Boxes) -> Iterator[Finding]:
    """By how much a child is beyond its parent's nearest-broken edge <= 0."""
    for place, parent in enumerate(section.parents):
        if parent < 0:
            continue
        box, outer = boxes[place], boxes[parent]
        beyond = max(
            outer.x - box.x,
            outer.y - box.y,
            box.x + box.width - outer.x - outer.width,
            box.y + box.height - outer.y - outer.height,
        )
        if beyond > TOLERANCE:
            yield Finding(Check.INSIDE_PARENT, (section.elements[place].id, section.elements[parent].id), beyond, 0.0)


def fixed_untouched(section: Section, boxes: Boxes) -> Iterator[Finding]:
    """|drawn - given| <= 0.5 for each given field: value is the greatest difference."""
    for element, box in zip(section.elements, boxes, strict=True):
        moved = max((abs(own - fixed) for own, fixed in zip(box, element.fixed, strict=True) if fixed is not None), default=0.0)
        if moved > TOLERANCE:
            yield Finding(Check.FIXED, (element.id,), moved, TOLERANCE)

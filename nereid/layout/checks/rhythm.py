"""Checks of style: shared alignment lines, edges on an 8 px grid and on columns, equal gaps in repeats. All are warnings."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator

from nereid.layout.canvas import UNIT
from nereid.layout.checks.finding import TOLERANCE, Boxes, Check, Finding
from nereid.layout.elements import CONTAINERS, Box, ElementClass, Section

ON_LINE = 1.0
"""CSS pixels within which edges are on one line."""
INTRINSIC = frozenset({ElementClass.BUTTON, ElementClass.LINK})
"""Classes that are as wide as their label, whatever the columns."""


def lines_of(box: Box) -> tuple[float, ...]:
    """Left, centre, right, top, middle and bottom in CSS pixels."""
    return (box.x, box.x + box.width / 2, box.x + box.width, box.y, box.y + box.height / 2, box.y + box.height)


def alignment(section: Section, boxes: Boxes) -> Iterator[Finding]:
    """min over the six lines k and all other elements j of |l_k(i) - l_k(j)| <= 1 px (LayoutGAN++'s measure, Kikuchi et al.,
    2021, without its logarithm)."""
    if len(boxes) < 2:
        return
    columns = list(zip(*map(lines_of, boxes), strict=True))
    ordered = [sorted(column) for column in columns]
    for place, element in enumerate(section.elements):
        nearest = min(_gap(ordered[k], columns[k][place]) for k in range(6))
        if nearest > ON_LINE:
            yield Finding(Check.ALIGNMENT, (element.id,), nearest, ON_LINE)


def _gap(ordered: list[float], line: float) -> float:
    """To the nearest other line."""
    at = bisect_left(ordered, line)  # its own place, or that of an equal one before it
    after = ordered[at + 1] - line if at + 1 < len(ordered) else float("inf")
    return min(after, line - ordered[at - 1] if at else float("inf"))


def grid(section: Section, boxes: Boxes) -> Iterator[Finding]:
    """Distance of x, y, width and height from multiples of 8 px <= 0.5; value is the greatest."""
    for element, box in zip(section.elements, boxes, strict=True):
        off = max(abs(value - UNIT * round(value / UNIT)) for value in box)
        if off > TOLERANCE:
            yield Finding(Check.GRID, (element.id,), off, TOLERANCE)


def columns(section: Section, boxes: Boxes) -> Iterator[Finding]:
    """Of elements on the canvas itself that are wider than their label: distance of the left edge from a column's start, of the
    right edge from a column's end, or of the centre from the grid's <= 1 px, whichever is least."""
    own = section.canvas.grid
    starts = [own.start(column) for column in range(own.count)]
    ends = [start + own.column for start in starts]
    for place in section.children[-1]:
        box = boxes[place]
        if section.elements[place].kind in INTRINSIC:
            continue
        off = min(
            min(abs(box.x - start) for start in starts),
            min(abs(box.right - end) for end in ends),
            abs(box.x + box.width / 2 - own.center),
        )
        if off > ON_LINE:
            yield Finding(Check.COLUMNS, (section.elements[place].id,), off, ON_LINE)


def repeats(section: Section) -> Iterator[tuple[int, ...]]:
    """Runs of three or more siblings of one class that follow each other: cards, figures, fields."""
    for group in section.children:
        run: list[int] = []
        for place in (*group, None):
            if place is not None and (not run or section.elements[place].kind is section.elements[run[0]].kind):
                run.append(place)
                continue
            kind = section.elements[run[0]].kind if run else None
            if len(run) > 2 and (kind in CONTAINERS or kind is ElementClass.FIELD):
                yield tuple(run)
            run = [] if place is None else [place]


def equal_gaps(section: Section, boxes: Boxes) -> Iterator[Finding]:
    """In each row of a repeat, max - min of the gaps between neighbours <= 1 px; the same for the gaps between its rows."""
    for run in repeats(section):
        rows: list[list[int]] = [[run[0]]]
        for place in run[1:]:
            last = boxes[rows[-1][-1]]
            beside = boxes[place].x >= last.right - TOLERANCE and boxes[place].y < last.bottom
            rows[-1].append(place) if beside else rows.append([place])
        across = [boxes[second].x - boxes[first].right for row in rows for first, second in itertools.pairwise(row)]
        down = [
            min(boxes[place].y for place in below) - max(boxes[place].bottom for place in above)
            for above, below in itertools.pairwise(rows)
        ]
        spread = max(max(gaps) - min(gaps) if gaps else 0.0 for gaps in (across, down))
        if spread > ON_LINE:
            yield Finding(Check.EQUAL_GAPS, tuple(section.elements[place].id for place in run), spread, ON_LINE)

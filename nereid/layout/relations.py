"""How siblings stand to each other: which are beside, which below, and which form rows of a repeat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nereid.layout.elements import CONTAINERS, HEADINGS, TEXTS, Box, ElementClass, Section

LEVEL = 12.0
"""CSS pixels by which the tops of one row may differ."""


@dataclass(slots=True)
class Relations:
    """Of one group of siblings: each pair (earlier, later) is in `beside` or in `below`, so later ones never stand before.

    `rows` are those of repeats: runs of siblings of one class that stand side by side.
    """

    beside: set[tuple[int, int]]
    below: set[tuple[int, int]]
    rows: list[list[tuple[int, ...]]]
    """For each repeat its rows, from the top."""

    def break_row(self, first: int, second: int) -> list[tuple[int, int]]:
        """The pairs that must be below each other where `second` is no longer beside `first`; a row that both are in is cut."""
        for rows in self.rows:
            for number, row in enumerate(rows):
                if first in row and second in row:
                    cut = row.index(second)
                    rows[number : number + 1] = [row[:cut], row[cut:]]
                    return [(above, below) for above in row[:cut] for below in row[cut:]]
        return [(first, second)]


def relate(section: Section, group: Sequence[int], boxes: Sequence[Box]) -> Relations:
    """By what needs to move least; text is below the heading that it follows."""
    found = Relations(set(), set(), [])
    for at, first in enumerate(group):
        for second in group[at + 1 :]:
            a, b = boxes[first], boxes[second]
            headed = second == group[at + 1] and _heads(section, first, second)
            under = headed or a.bottom - b.y <= a.right - b.x
            (found.below if under else found.beside).add((first, second))
    for run in _runs(section, group):
        found.rows.append(_rows(run, boxes, found))
    return found


def _heads(section: Section, first: int, second: int) -> bool:
    return section.elements[first].kind in HEADINGS and section.elements[second].kind in TEXTS


def _runs(section: Section, group: Sequence[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for place in group:
        joins = runs and section.elements[runs[-1][0]].kind is section.elements[place].kind
        runs[-1].append(place) if joins else runs.append([place])
    return [run for run in runs if len(run) > 1 and section.elements[run[0]].kind in _ROWS]


_ROWS = CONTAINERS | {ElementClass.FIELD, ElementClass.BUTTON, ElementClass.LINK}


def _rows(run: list[int], boxes: Sequence[Box], found: Relations) -> list[tuple[int, ...]]:
    rows: list[list[int]] = [[run[0]]]
    for place in run[1:]:
        last = rows[-1]
        level = abs(boxes[place].y - boxes[last[0]].y) <= LEVEL and all((other, place) in found.beside for other in last)
        last.append(place) if level else rows.append([place])
    return [tuple(row) for row in rows]

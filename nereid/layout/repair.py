"""Makes a drawn layout valid and says what it moved: snapping to lines, then difference constraints as longest paths.

Every pair of siblings is put beside or below each other, whichever moves less, always the later after the earlier: so the graph
of constraints has no cycle, and its solution has siblings disjoint and no inversion. Widths come first, from the canvas
inwards; then heights, which follow from widths, from the innermost outwards.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from nereid.layout.arrange import round_up
from nereid.layout.canvas import UNIT
from nereid.layout.checks.content import RATIO_PIXELS, RATIO_SHARE
from nereid.layout.content import needed_height, needed_width
from nereid.layout.elements import CONTAINERS, Box, ElementClass, Section
from nereid.layout.longest_paths import Line
from nereid.layout.relations import Relations, relate
from nereid.layout.snapping import snap

GAP = 8
"""The least gap between siblings, and between a container and what it holds, in CSS pixels."""


@dataclass(frozen=True, slots=True)
class Move:
    """What repair did to one element: differences of x, y, width and height in CSS pixels."""

    element: str
    x: float
    y: float
    width: float
    height: float

    @property
    def distance(self) -> float:
        """The greatest way of an edge in CSS pixels."""
        return max(abs(self.x), abs(self.y), abs(self.x + self.width), abs(self.y + self.height))


@dataclass(frozen=True, slots=True)
class Repaired:
    """The boxes, in the section's order, and those that moved by more than half a pixel."""

    boxes: list[Box]
    moves: tuple[Move, ...]


def repair(section: Section, drawn: Sequence[Box]) -> Repaired:
    """Boxes that pass every check that boxes can be moved to pass; fixed fields stay, and break what they break.

    A box that is not of finite numbers counts as absent and is placed anew, above what follows it.
    """
    finite = _finite(section, drawn)
    work = _Repair(section, snap(section, finite))
    work.widths()
    work.heights()
    moves = (
        Move(element.id, *(now - before for now, before in zip(new, old, strict=True)))
        for element, new, old in zip(section.elements, work.boxes, finite, strict=True)
    )
    return Repaired(work.boxes, tuple(move for move in moves if move.distance > 0.5 or abs(move.width) + abs(move.height) > 0.5))


def _finite(section: Section, drawn: Sequence[Box]) -> list[Box]:
    grid, y, made = section.canvas.grid, 0.0, []
    for box, fixed in zip(drawn, (element.fixed for element in section.elements), strict=True):
        good = all(map(math.isfinite, box)) and max(map(abs, box)) < 1e6
        own = Box(*map(float, box)) if good else Box(grid.margin, y, grid.span(grid.count), UNIT)
        made.append(fixed.put(own))
        y = own.bottom + GAP
    return made


class _Repair:
    def __init__(self, section: Section, boxes: list[Box]) -> None:
        self.section = section
        self.before, self.boxes = boxes, list(boxes)
        self.groups = [(-1, section.children[-1])] + [
            (place, group) for place, group in enumerate(section.children[:-1]) if group
        ]
        self.relations: dict[int, Relations] = {}
        self.least = self._least_widths()

    def _least_widths(self) -> list[float]:
        """What each element needs, containers what their widest child does; a box without a width is none."""
        section = self.section
        least = [float(max(round_up(needed_width(element, section.canvas)), UNIT)) for element in section.elements]
        for place in reversed(range(len(section))):
            parent = section.parents[place]
            if parent >= 0:
                least[parent] = max(least[parent], least[place] + 2 * GAP)
        return least

    # --- across ---

    def widths(self) -> None:
        for parent, group in self.groups:
            self.relations[parent] = relate(self.section, group, self.before)
            self._even_rows(self.relations[parent])
            low, high = 0.0, float(self.section.canvas.width)
            shift = 0.0
            if parent >= 0:
                holder = self.boxes[parent]
                low, high, shift = holder.x + GAP, holder.right - GAP, holder.x - self.before[parent].x
            starts, sizes = self._across(group, self.relations[parent], low, high, shift)
            for place, x, width in zip(group, starts, sizes, strict=True):
                self.boxes[place] = self.boxes[place]._replace(x=x, width=width)

    def _even_rows(self, relations: Relations) -> None:
        """Rows of three and more that are nearly even become so: equal widths and gaps."""
        for row in (row for rows in relations.rows for row in rows if len(row) > 2):
            boxes = [self.before[place] for place in row]
            even = self.section.elements[row[0]].kind in CONTAINERS or self.section.elements[row[0]].kind is ElementClass.FIELD
            if not even or any(self.section.elements[place].fixed != (None,) * 4 for place in row):
                continue
            width = median(box.width for box in boxes)
            gap = median(second.x - first.right for first, second in itertools.pairwise(boxes))
            width, gap = UNIT * round(width / UNIT), UNIT * round(gap / UNIT)
            new = [box._replace(x=boxes[0].x + number * (width + gap), width=width) for number, box in enumerate(boxes)]
            if all(abs(a.x - b.x) + abs(a.right - b.right) <= 4 * UNIT for a, b in zip(new, boxes, strict=True)):
                for place, box in zip(row, new, strict=True):
                    self.before[place] = self.boxes[place] = box

    def _across(
        self, group: Sequence[int], relations: Relations, low: float, high: float, shift: float
    ) -> tuple[list[float], list[float]]:
        """Starts and widths of one group; what does not fit side by side is made narrower, then put below."""
        at = {place: number for number, place in enumerate(group)}
        room = max(high - low, UNIT)
        sizes, pinned = [], {}
        for number, place in enumerate(group):
            fixed = self.section.elements[place].fixed
            width = max(self.before[place].width, self.least[place])
            sizes.append(min(width, room) if fixed.width is None else fixed.width)
            if fixed.x is not None:
                pinned[number] = fixed.x
        wanted = [self.before[place].x + shift for place in group]
        while True:
            after: list[list[tuple[int, float]]] = [[] for _ in group]
            for first, second in relations.beside:
                after[at[second]].append((at[first], float(GAP)))
            line = Line(sizes, wanted, low, high, pinned, after)
            index = line.excess()
            if index is None:
                return line.solve(), sizes
            if not self._narrow(line, index, group) and not self._put_below(line, index, group, relations):
                return line.solve(), sizes

    def _narrow(self, line: Line, index: int, group: Sequence[int]) -> bool:
        """Take what is too much from the widest on the longest path through `index`, 8 px at a time; False where it cannot be."""
        path = line.path(index)
        while line.beyond(index) > 0.01:
            spare = [
                number
                for number in path
                if self.section.elements[group[number]].fixed.width is None
                and line.sizes[number] - UNIT >= self.least[group[number]]
            ]
            if not spare:
                return False
            widest = max(spare, key=lambda number: line.sizes[number])
            line.sizes[widest] -= UNIT
        return True

    def _put_below(self, line: Line, index: int, group: Sequence[int], relations: Relations) -> bool:
        """Turn the last `beside` on the longest path through `index` into `below`; of a row, all from there on goes below."""
        edge = line.path(index)[-2:]
        if len(edge) < 2:
            return False
        first, second = group[edge[0]], group[edge[1]]
        for above, below in relations.break_row(first, second):
            relations.beside.discard((above, below))
            relations.below.add((above, below))
        line.wanted[edge[1]] = line.wanted[edge[0]]
        return True

    # --- down ---

    def heights(self) -> None:
        for parent, group in reversed(self.groups):  # as if the container stayed where it was
            for place in group:
                if not self.section.children[place]:
                    self.boxes[place] = self.boxes[place]._replace(height=self._height(place))
            self._down(group, self.relations[parent], 0.0 if parent < 0 else self.before[parent].y + GAP)
            if parent >= 0:
                bottom = max(self.boxes[place].bottom for place in group) + GAP
                self._set_height(parent, max(self.before[parent].height, bottom - self.before[parent].y))
        for parent, group in self.groups[1:]:  # what has moved takes along what it holds
            moved = self.boxes[parent].y - self.before[parent].y
            for place in group:
                if self.section.elements[place].fixed.y is None:
                    self.boxes[place] = self.boxes[place]._replace(y=self.boxes[place].y + moved)

    def _set_height(self, place: int, height: float) -> None:
        fixed = self.section.elements[place].fixed.height
        self.boxes[place] = self.boxes[place]._replace(height=height if fixed is None else fixed)

    def _height(self, place: int) -> float:
        """At least what the content needs at the new width; an image's by its ratio."""
        element, box = self.section.elements[place], self.boxes[place]
        if element.fixed.height is not None:
            return element.fixed.height
        height = max(box.height, float(round_up(needed_height(element, box.width, self.section.canvas))))
        if element.ratio is None or abs(height - box.width / element.ratio) <= max(RATIO_PIXELS, RATIO_SHARE * height):
            return height
        return float(max(UNIT * round(box.width / element.ratio / UNIT), UNIT))

    def _down(self, group: Sequence[int], relations: Relations, low: float) -> None:
        """Tops of one group; rows of repeats are level and evenly spaced."""
        at = {place: number for number, place in enumerate(group)}
        after: list[list[tuple[int, float]]] = [[] for _ in group]
        for first, second in relations.below:
            after[at[second]].append((at[first], float(GAP)))
        wanted = [self.before[place].y for place in group]
        for rows in relations.rows:
            for row in rows:
                self._level(row, at, after, wanted)
            self._space(rows, at, after, wanted, relations)
        pinned = {at[place]: y for place in group if (y := self.section.elements[place].fixed.y) is not None}
        line = Line([self.boxes[place].height for place in group], wanted, low, math.inf, pinned, after)
        for place, y in zip(group, line.solve(), strict=True):
            self.boxes[place] = self.boxes[place]._replace(y=y)

    def _level(self, row: tuple[int, ...], at: dict[int, int], after: _After, wanted: list[float]) -> None:
        """One top for a row, and, of containers, one height, but of what holds nothing and has a ratio."""
        if len(row) < 2 or any(self.section.elements[place].fixed.y is not None for place in row):
            return
        top = UNIT * round(median(wanted[at[place]] for place in row) / UNIT)
        before = sorted({edge for place in row for edge in after[at[place]]})
        height = max(self.boxes[place].height for place in row)
        for place in row:
            wanted[at[place]], after[at[place]] = float(top), before
            shaped = self.section.elements[place].ratio is not None and not self.section.children[place]
            if self.section.elements[place].kind in CONTAINERS and not shaped:
                self._set_height(place, height)

    def _space(
        self, rows: list[tuple[int, ...]], at: dict[int, int], after: _After, wanted: list[float], relations: Relations
    ) -> None:
        """Each row at the repeat's usual gap below the one above."""
        if sum(map(len, rows)) < 3 or len(rows) < 2:
            return
        pairs = list(itertools.pairwise(rows))
        gaps = [
            min(self.before[place].y for place in below) - max(self.before[place].bottom for place in above)
            for above, below in pairs
        ]
        gap = max(float(UNIT * round(median(gaps) / UNIT)), float(GAP))
        for above, below in pairs:
            for place in below:
                held = self.section.elements[place].fixed.y is not None
                if not held and all((over, place) in relations.below for over in above):
                    after[at[place]] = [*after[at[place]], *((at[over], gap) for over in above)]
                    wanted[at[place]] = -math.inf


_After = list[list[tuple[int, float]]]
"""For each of a group, the constraints that lead to it (`Line.after`)."""

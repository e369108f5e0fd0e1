"""Canvases of widths that a transformer has not learnt: drawn on the nearest that it has, and stretched to their own.

What the same grid holds on another width keeps its columns; heights follow what images and texts need there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.layout.canvas import DESKTOP, MAX_WIDTH, MIN_WIDTH, TABLET, UNIT, Breakpoint, Canvas
from nereid.layout.content import needed_height, needed_width
from nereid.layout.elements import Box, Element, Fixed, Section
from nereid.layout.repair import repair

Knots = NDArray[np.float64]

_SCREENS = {
    Breakpoint.MOBILE: (MIN_WIDTH, TABLET - 1),
    Breakpoint.TABLET: (TABLET, DESKTOP - 1),
    Breakpoint.DESKTOP: (DESKTOP, MAX_WIDTH),
}


@dataclass(frozen=True, slots=True)
class KnownWidths:
    """Least and greatest width in CSS pixels of each kind of screen; between them, others are drawn as they are."""

    ranges: Mapping[Breakpoint, tuple[int, int]]

    @classmethod
    def of(cls, widths: Mapping[Breakpoint, Iterable[int]]) -> KnownWidths:
        """Of those that were trained on."""
        return cls({screen: (min(its), max(its)) for screen, its in widths.items()})

    @classmethod
    def parse(cls, raw: Any) -> KnownWidths:
        """As `written` has it; raises ValueError."""
        try:
            ranges = {Breakpoint(name): (int(least), int(most)) for name, (least, most) in raw.items()}
        except (AttributeError, TypeError, ValueError):
            ranges = {}
        bounds = [(*ranges.get(screen, (0, 0)), *allowed) for screen, allowed in _SCREENS.items()]
        if len(ranges) != len(_SCREENS) or not all(low <= least <= most <= high for least, most, low, high in bounds):
            allowed = ", ".join(f"{screen} ({low} to {high})" for screen, (low, high) in _SCREENS.items())
            raise ValueError(f"canvas_widths: {raw!r} is not allowed; it must have least and greatest width of {allowed}")
        return cls(ranges)

    def written(self) -> dict[str, list[int]]:
        return {str(screen): list(its) for screen, its in self.ranges.items()}

    def section(self, section: Section) -> Section:
        """The one to draw instead, with the same elements; the very same where its width is known.

        Fields that are fixed, drafts and measured widths are as wide in columns as they were.
        """
        canvas = section.canvas
        least, most = self.ranges[canvas.breakpoint]
        if least <= canvas.width <= most:
            return section
        drawn = replace(canvas, width=min(max(canvas.width, least), most))
        while drawn.grid.column < UNIT:  # it has no room for so many columns: the next that has
            drawn = replace(drawn, width=drawn.width + 1)
        stretch = _Stretch(_knots(canvas), _knots(drawn))
        # Not checked again: roundings may leave what is fixed beyond the canvas, by less than a pixel.
        return replace(section, canvas=drawn, elements=tuple(map(stretch.element, section.elements)))


def stretched(drawn: Section, boxes: Sequence[Box], section: Section) -> list[Box]:
    """Boxes on the canvas of `drawn` as those of `section`, whose elements are the same, in whole CSS pixels.

    They are repaired there before: what is nearly on a line there would be further from it after.
    """
    if drawn.canvas == section.canvas:
        return list(boxes)
    boxes = repair(drawn, boxes).boxes
    elements = section.elements
    across = _across(drawn, boxes, section)
    edges, moved = _heights(drawn, boxes, section, across)
    tops, bottoms = (np.interp(places, edges, moved) for places in ([box.y for box in boxes], [box.bottom for box in boxes]))
    parts = zip(elements, across, tops, bottoms, strict=True)
    placed = [element.fixed.put(Box(box.x, top, box.width, bottom - top)) for element, box, top, bottom in parts]
    for place in reversed(range(len(elements))):  # what is held before what holds it
        if elements[place].fixed.y is not None and elements[place].fixed.height is None:
            placed[place] = _hung(place, drawn, boxes, section, placed)
    return [element.fixed.put(_whole(box)) for element, box in zip(elements, placed, strict=True)]


def _across(drawn: Section, boxes: Sequence[Box], section: Section) -> list[Box]:
    """Places and widths: columns keep to the grid, and what a container holds to the distance from its edges."""
    grid = _Stretch(_knots(drawn.canvas), _knots(section.canvas))
    stretches, made = {-1: grid}, list[Box]()
    for element, parent, box in zip(section.elements, section.parents, boxes, strict=True):
        if parent not in stretches:
            stretches[parent] = _inside(boxes[parent], made[parent], [boxes[its] for its in section.children[parent]])
        made.append(element.fixed.put(_wide(stretches[parent].box(box), element, section.canvas)))
    return made


def _inside(before: Box, after: Box, held: Sequence[Box]) -> _Stretch:
    left = max(0.0, min(box.x for box in held) - before.x)
    right = max(0.0, before.right - max(box.right for box in held))
    source, target = ([box.x, box.x + left, max(box.x + left, box.right - right)] for box in (before, after))
    return _Stretch(np.array([*source, max(source[-1], before.right)]), np.array([*target, max(target[-1], after.right)]))


def _wide(box: Box, element: Element, canvas: Canvas) -> Box:
    """As wide as a label or a word needs, to the right where there is room; what has a fixed width stays where it is."""
    if element.fixed.width is not None:
        return box
    width = max(box.width, needed_width(element, canvas))
    return box._replace(x=min(box.x, max(0.0, canvas.width - canvas.grid.margin - width)), width=width)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """From places to others, both given by edges that belong together; beyond the first and the last, as far beyond."""

    source: Knots
    target: Knots

    @property
    def factor(self) -> float:
        return float(self.target[-1] / self.source[-1])

    def place(self, x: float) -> float:
        inside = min(max(x, float(self.source[0])), float(self.source[-1]))
        return float(np.interp(inside, self.source, self.target)) + x - inside

    def box(self, box: Box) -> Box:
        left = self.place(box.x)
        return box._replace(x=left, width=self.place(box.right) - left)

    def element(self, element: Element) -> Element:
        x, y, width, height = element.fixed
        if x is not None and width is not None:
            x, _, width, _ = self.box(Box(x, 0, width, 0))
        else:
            x = None if x is None else self.place(x)
            width = None if width is None else width * self.factor
        draft = None if element.draft is None else self.box(element.draft)
        fixed, least = Fixed(x, y, width, height), element.min_width * self.factor
        return replace(element, fixed=fixed, draft=draft, min_width=least)


def _knots(canvas: Canvas) -> Knots:
    grid = canvas.grid
    columns = (place for column in range(grid.count) for place in (grid.start(column), grid.start(column) + grid.column))
    return np.array([0, *columns, canvas.width], np.float64)


def _heights(drawn: Section, boxes: Sequence[Box], section: Section, across: Sequence[Box]) -> tuple[Knots, Knots]:
    """Edges from top to bottom as they were drawn, and where they are when everything has the height that its new width needs.

    What lies side by side grows by what grows most; what only shrinks shrinks. Edges that are fixed stay.
    """
    edges = sorted({edge for box in boxes for edge in (0.0, box.y, box.bottom)})
    growth = [
        (box, _height(element, box.width, box.height, drawn.canvas, now.width, section.canvas) / box.height)
        for element, box, now, held in zip(section.elements, boxes, across, section.children, strict=False)
        if box.height > 0 and not held and element.fixed.height is None
    ]
    given = [(element.fixed, box) for element, box in zip(section.elements, boxes, strict=True) if element.fixed.y is not None]
    kept = {edge for fixed, box in given for edge in (box.y, box.y if fixed.height is None else box.bottom)}
    moved = [edges[0]]
    for top, bottom in itertools.pairwise(edges):
        factor = max((factor for box, factor in growth if box.y <= top and bottom <= box.bottom), default=1.0)
        moved.append(max(bottom, moved[-1]) if bottom in kept else moved[-1] + (bottom - top) * factor)
    return np.array(edges), np.array(moved)


def _hung(place: int, drawn: Section, boxes: Sequence[Box], section: Section, placed: Sequence[Box]) -> Box:
    """One whose top is fixed: as high as itself needs, or what it holds, whatever is beside it."""
    element, before, held = section.elements[place], boxes[place], section.children[place]
    box = placed[place]
    if not held:
        return box._replace(height=_height(element, before.width, before.height, drawn.canvas, box.width, section.canvas))
    padding = before.bottom - max(boxes[its].bottom for its in held)
    return box._replace(height=max(placed[its].bottom for its in held) + padding - box.y)


def _height(element: Element, before: float, height: float, drawn: Canvas, width: float, canvas: Canvas) -> float:
    """As much above what it needs as it was."""
    if element.ratio is not None:
        return width / element.ratio
    return needed_height(element, width, canvas) + max(0.0, height - needed_height(element, before, drawn))


def _whole(box: Box) -> Box:
    return Box(*(float(round(value)) for value in box))

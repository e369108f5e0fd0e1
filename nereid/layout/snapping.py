"""Edges that are nearly on one line are put on one: a multiple of 8 px, or a column's edge where one is near."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from nereid.layout.canvas import UNIT
from nereid.layout.elements import Box, Section

TOGETHER = 3.0
"""CSS pixels between neighbouring edges of one line."""
COLUMN_REACH = 6.0
"""CSS pixels within which a column's edge draws a line to it."""


def snap(section: Section, boxes: Sequence[Box]) -> list[Box]:
    """Boxes with all edges on multiples of 8 px; fixed fields stay, and an edge on a line with a fixed one goes to that."""
    across = _Lines([edge for box in boxes for edge in (box.x, box.right)], _fixed_edges(section, 0), _columns(section))
    down = _Lines([edge for box in boxes for edge in (box.y, box.bottom)], _fixed_edges(section, 1), ())
    made = []
    for element, box in zip(section.elements, boxes, strict=True):
        x, y = across.of(box.x), down.of(box.y)
        width = max(across.of(box.right) - x, UNIT)
        height = max(down.of(box.bottom) - y, UNIT)
        made.append(element.fixed.put(Box(x, y, width, height)))
    return made


def _columns(section: Section) -> tuple[float, ...]:
    grid = section.canvas.grid
    starts = [grid.start(column) for column in range(grid.count)]
    return tuple(sorted([*starts, *(start + grid.column for start in starts)]))


def _fixed_edges(section: Section, axis: int) -> tuple[float, ...]:
    edges = []
    for element in section.elements:
        start, size = element.fixed[axis], element.fixed[axis + 2]
        if start is not None:
            edges += [start] if size is None else [start, start + size]
    return tuple(edges)


class _Lines:
    """Clusters of edges along one axis, and the place of each."""

    def __init__(self, edges: list[float], fixed: tuple[float, ...], columns: tuple[float, ...]) -> None:
        self._place: dict[float, float] = {}
        cluster: list[float] = []
        for edge in [*sorted(edges), None]:
            if edge is not None and (not cluster or edge - cluster[-1] <= TOGETHER):
                cluster.append(edge)
                continue
            line = self._line(median(cluster), fixed, columns) if cluster else 0.0
            self._place.update(dict.fromkeys(cluster, line))
            cluster = [] if edge is None else [edge]

    def of(self, edge: float) -> float:
        return self._place[edge]

    @staticmethod
    def _line(middle: float, fixed: tuple[float, ...], columns: tuple[float, ...]) -> float:
        for lines, reach in ((fixed, TOGETHER), (columns, COLUMN_REACH)):
            near = min(lines, key=lambda line: abs(line - middle), default=None)
            if near is not None and abs(near - middle) <= reach:
                return near
        return float(UNIT * round(middle / UNIT))

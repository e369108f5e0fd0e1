"""The canvas of a section: its width, density, column grid and style; from them alone follow margins, gutters and columns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TypeVar

from nereid.flow.errors import InvalidRequestError

UNIT = 8
"""CSS pixels that edges keep to."""
MIN_WIDTH, MAX_WIDTH = 240, 2560
MOST_COLUMNS = 24
E = TypeVar("E", bound=StrEnum)
TABLET, DESKTOP = 640, 1024
"""The narrowest canvases, in CSS pixels, that are no mobile's, and no tablet's, any more."""


class Density(StrEnum):
    COMPACT = "compact"
    NORMAL = "normal"
    SPACIOUS = "spacious"


class Style(StrEnum):
    """How a section is arranged where its canvas is wide enough; on a mobile's all of them are columns."""

    STACKED = "stacked"
    CENTERED = "centered"
    GRID = "grid"
    CARDS = "cards"
    SPLIT = "split"
    SIDEBAR = "sidebar"


class Breakpoint(StrEnum):
    MOBILE = "mobile"
    TABLET = "tablet"
    DESKTOP = "desktop"


_GUTTERS = {Density.COMPACT: 16, Density.NORMAL: 24, Density.SPACIOUS: 32}
_MARGINS = {Breakpoint.MOBILE: 16, Breakpoint.TABLET: 32, Breakpoint.DESKTOP: 64}
_COLUMNS = {Breakpoint.MOBILE: 4, Breakpoint.TABLET: 8, Breakpoint.DESKTOP: 12}


@dataclass(frozen=True, slots=True)
class ColumnGrid:
    """Equal columns and gutters between them, in CSS pixels; all are multiples of 8, so what is left over is on the right."""

    margin: int
    column: int
    gutter: int
    count: int

    def start(self, column: int) -> int:
        """The left edge of a column, counted from 0."""
        return self.margin + column * (self.column + self.gutter)

    def span(self, columns: int) -> int:
        """The width of so many columns."""
        return columns * self.column + (columns - 1) * self.gutter

    @property
    def center(self) -> float:
        return self.margin + self.span(self.count) / 2


@dataclass(frozen=True)
class Canvas:
    """Width in CSS pixels (240 to 2560; the height is what the layout makes it), density, columns of its grid, and style."""

    width: int
    density: Density
    columns: int
    style: Style

    @classmethod
    def of(cls, width: int, density: str | None = None, columns: int | None = None, style: str | None = None) -> Canvas:
        """With what is usual where nothing is said: normal, 4, 8 or 12 columns by width, stacked.

        Raises InvalidRequestError, where a value is not allowed or the columns would be narrower than 8 px.
        """
        if isinstance(width, bool) or not isinstance(width, int) or not MIN_WIDTH <= width <= MAX_WIDTH:
            raise InvalidRequestError.of("canvas.width", width, f"an integer, {MIN_WIDTH} to {MAX_WIDTH} (CSS pixels)")
        count = _COLUMNS[breakpoint_of(width)] if columns is None else columns
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_COLUMNS:
            raise InvalidRequestError.of("canvas.columns", columns, f"an integer, 1 to {MOST_COLUMNS}")
        made = cls(
            width,
            _one_of("canvas.density", Density.NORMAL if density is None else density, Density),
            count,
            _one_of("canvas.style", Style.STACKED if style is None else style, Style),
        )
        if made.grid.column < UNIT:
            raise InvalidRequestError.of("canvas.columns", count, f"so few that columns on {width} px are {UNIT} px wide or more")
        return made

    @property
    def breakpoint(self) -> Breakpoint:
        return breakpoint_of(self.width)

    @cached_property
    def grid(self) -> ColumnGrid:
        narrow = self.breakpoint is Breakpoint.MOBILE
        gutter = 16 if narrow else _GUTTERS[self.density]
        room = self.width - 2 * _MARGINS[self.breakpoint] - (self.columns - 1) * gutter
        column = room // self.columns // UNIT * UNIT
        used = self.columns * column + (self.columns - 1) * gutter
        return ColumnGrid((self.width - used) // 2 // UNIT * UNIT, column, gutter, self.columns)


def breakpoint_of(width: int) -> Breakpoint:
    """The kind of screen that is so many CSS pixels wide."""
    return Breakpoint.MOBILE if width < TABLET else Breakpoint.TABLET if width < DESKTOP else Breakpoint.DESKTOP


def _one_of(field: str, value: str, allowed: type[E]) -> E:
    try:
        return allowed(value)
    except ValueError:
        raise InvalidRequestError.of(field, value, f"one of {', '.join(allowed)}") from None

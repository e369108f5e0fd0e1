"""A section as the arrays that a layout transformer takes, one token for each element, and its boxes as numbers around 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from nereid.layout.canvas import Breakpoint, Canvas, Density, Style
from nereid.layout.content import CHARACTER, needed_height, needed_width, text_style
from nereid.layout.elements import MAX_ELEMENTS, Box, Element, ElementClass, Section

SCALE = 320.0
"""CSS pixels of one unit: the same everywhere, so that a pixel weighs the same on every canvas and in both directions."""
BUCKETS = (8, 16, 24, MAX_ELEMENTS)
"""Numbers of tokens that engines are asked for: a section is padded to the next."""
MOST_DEPTH = 4
"""Deeper elements count as this deep."""
DRAFT = 0.5
"""In the field mask: a box to refine."""
CANVAS = 18
"""Numbers that describe a canvas."""
ITEMS_UNIT, LINE_UNIT, COUNT_UNIT = 10, 4, 8
"""What counts as 1: of a list's items, of the units that a line of text is long, of children and siblings."""
MOST_LINE = 16.0
"""Units that a line of text counts at most as."""


class Content(IntEnum):
    """Where in the numbers that describe an element's content each stands; sizes are in units."""

    CHARACTERS = 0
    """Logarithmic."""
    ITEMS = 1
    HAS_RATIO = 2
    RATIO = 3
    """Its logarithm."""
    LEAST_WIDTH = 4
    LEAST_HEIGHT = 5
    """However wide it is."""
    LINE_LOGARITHM = 6
    """Of 1 + the width of its text on one line."""
    LINE = 7
    """That width, up to `MOST_LINE`."""
    CHILDREN = 8
    PLACE = 9
    """Among its siblings."""
    SIBLINGS = 10
    """Itself among them: above 0 of every element, and 0 of what padding adds."""
    ALIKE = 11
    """Those of its class among them."""


CONTENT = len(Content)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What is given of a batch of sections, with B rows of N tokens (padded: `valid` is 0 there).

    `known` float32 B x N x 4 holds fields that are given (x, y, width, height as `to_units` has them; 0 elsewhere), `field_mask`
    the same shape: 1 where a field is given, 0.5 where it is a draft to refine, 0 where it is free. `classes`, `depths` int64
    B x N; `parents` int64 B x N: the parent's place + 1, 0 for the canvas. `content` float32 B x N x CONTENT, `canvas`
    float32 B x CANVAS, `valid` float32 B x N. The reading order is the order of the tokens.
    """

    known: Floats
    field_mask: Floats
    classes: Ints
    parents: Ints
    depths: Ints
    content: Floats
    canvas: Floats
    valid: Floats

    def as_inputs(self) -> dict[str, NDArray]:
        """By the names of an engine's inputs."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def bucket_of(elements: int) -> int:
    """The least number of tokens that holds so many elements."""
    return next(size for size in BUCKETS if size >= elements)


def tokens_of(
    sections: Sequence[Section], count: int | None = None, drafts: Sequence[Sequence[Box] | None] | None = None
) -> Tokens:
    """Arrays of sections whose fixed fields are given; `count` tokens in each row, the least bucket where absent.

    `drafts` has for each section the boxes that its layout shall refine, or None.
    """
    rows, size = len(sections), count or bucket_of(max(map(len, sections)))
    made = Tokens(
        known=np.zeros((rows, size, 4), np.float32),
        field_mask=np.zeros((rows, size, 4), np.float32),
        classes=np.zeros((rows, size), np.int64),
        parents=np.zeros((rows, size), np.int64),
        depths=np.zeros((rows, size), np.int64),
        content=np.zeros((rows, size, CONTENT), np.float32),
        canvas=np.array([canvas_numbers(section.canvas) for section in sections], np.float32),
        valid=np.zeros((rows, size), np.float32),
    )
    for row, (section, draft) in enumerate(zip(sections, drafts or [None] * rows, strict=True)):
        own = len(section)
        made.classes[row, :own] = [_INDEX[element.kind] for element in section.elements]
        made.parents[row, :own] = np.add(section.parents, 1)
        made.depths[row, :own] = np.minimum(section.depths, MOST_DEPTH)
        made.content[row, :own] = content_numbers(section)
        made.valid[row, :own] = 1
        if draft is not None:
            made.known[row, :own] = to_units(np.array([draft]), made.canvas[row : row + 1])[0]
            made.field_mask[row, :own] = DRAFT
        if any(element.fixed != (None,) * 4 for element in section.elements):
            given = np.array([element.fixed for element in section.elements], np.float32)  # NaN where None
            mask = ~np.isnan(given)
            units = to_units(np.nan_to_num(given)[None], made.canvas[row : row + 1])[0]
            made.known[row, :own] = np.where(mask, units, made.known[row, :own])
            made.field_mask[row, :own] = np.where(mask, 1, made.field_mask[row, :own])
    return made


def to_units(boxes: NDArray, canvas: Floats) -> Floats:
    """Boxes in CSS pixels (B x N x 4: x, y, width, height) to units: x from the canvas' middle, all else less one unit."""
    return ((boxes - _offsets(canvas)) / SCALE).astype(np.float32)


def to_pixels(units: Floats, canvas: Floats) -> NDArray[np.float64]:
    """The way back."""
    return units.astype(np.float64) * SCALE + _offsets(canvas)


def boxes_of(section: Section, units: Floats) -> list[Box]:
    """One row of an engine's boxes (N x 4, padded or not) as boxes in whole CSS pixels; fixed fields are what was given."""
    pixels = to_pixels(units[None, : len(section)], np.array([canvas_numbers(section.canvas)], np.float32))[0]
    rounded = np.rint(pixels).tolist()
    return [element.fixed.put(Box(*box)) for element, box in zip(section.elements, rounded, strict=True)]


def _offsets(canvas: Floats) -> NDArray[np.float64]:
    offsets = np.full((len(canvas), 1, 4), SCALE)
    offsets[:, 0, 0] = canvas[:, 0] * SCALE / 2
    return offsets


def canvas_numbers(canvas: Canvas) -> list[float]:
    """Its width and its grid in units and in columns, and what it is of each closed set."""
    grid = canvas.grid
    return [
        canvas.width / SCALE,
        math.log(canvas.width / 768),
        grid.count / 12,
        grid.margin / 64,
        grid.column / SCALE,
        grid.gutter / 32,
        *(float(canvas.density is density) for density in Density),
        *(float(canvas.style is style) for style in Style),
        *(float(canvas.breakpoint is breakpoint) for breakpoint in Breakpoint),
    ]


def content_numbers(section: Section) -> list[list[float]]:
    """As `Content` has them, for each element."""
    canvas, made = section.canvas, []
    for place, element in enumerate(section.elements):
        siblings = section.children[section.parents[place]]
        alike = sum(section.elements[other].kind is element.kind for other in siblings)
        line = _one_line(element, canvas)
        told = {
            Content.CHARACTERS: math.log1p(element.characters) / 8,
            Content.ITEMS: element.items / ITEMS_UNIT,
            Content.HAS_RATIO: float(element.ratio is not None),
            Content.RATIO: math.log(element.ratio) if element.ratio else 0.0,
            Content.LEAST_WIDTH: needed_width(element, canvas) / SCALE,
            Content.LEAST_HEIGHT: needed_height(element, math.inf, canvas) / SCALE,
            Content.LINE_LOGARITHM: math.log1p(line / SCALE),
            Content.LINE: min(line / SCALE, MOST_LINE) / LINE_UNIT,
            Content.CHILDREN: len(section.children[place]) / COUNT_UNIT,
            Content.PLACE: siblings.index(place) / COUNT_UNIT,
            Content.SIBLINGS: len(siblings) / COUNT_UNIT,
            Content.ALIKE: alike / COUNT_UNIT,
        }
        made.append([told[its] for its in Content])
    return made


def _one_line(element: Element, canvas: Canvas) -> float:
    """The width of its text on one line, in CSS pixels."""
    style = text_style(element.kind, canvas)
    return 0.0 if style is None else element.characters * CHARACTER * style.size


_INDEX = {kind: number for number, kind in enumerate(ElementClass)}

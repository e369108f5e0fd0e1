"""Small sections that tests lay out by hand."""

from __future__ import annotations

from typing import Any

from nereid.layout.canvas import Canvas
from nereid.layout.element_list import read_elements
from nereid.layout.elements import Box, Section

DESKTOP = Canvas.of(1280, "normal", 12, "grid")


def section(*elements: dict[str, Any], canvas: Canvas = DESKTOP) -> Section:
    return read_elements(list(elements), canvas)


def two_cards(**first: Any) -> tuple[Section, list[Box]]:
    """A heading, a text and two cards with a heading and a text each, without any finding; `first` goes to the first card."""
    made = section(
        {"id": "title", "class": "heading", "characters": 12},
        {"id": "lead", "class": "paragraph", "characters": 40},
        {"id": "one", "class": "card", **first},
        {"id": "one-title", "class": "subheading", "parent": "one", "characters": 8},
        {"id": "one-text", "class": "paragraph", "parent": "one", "characters": 30},
        {"id": "two", "class": "card"},
        {"id": "two-title", "class": "subheading", "parent": "two", "characters": 8},
        {"id": "two-text", "class": "paragraph", "parent": "two", "characters": 30},
    )
    grid = DESKTOP.grid
    left, right, width = grid.start(0), grid.start(6), grid.span(6)
    boxes = [Box(left, 48, grid.span(12), 56), Box(left, 120, grid.span(12), 32)]
    for x in (left, right):
        boxes += [Box(x, 184, width, 136), Box(x + 16, 200, width - 32, 40), Box(x + 16, 256, width - 32, 48)]
    return made, boxes

"""How much room an element's content needs, by its class and the length of its text; a layout has to give it that much.

Sizes are of a usual style sheet: 16 px paragraphs, 40 px headings (32 px on a mobile). Text is reckoned by its length: an average
character is 0.55 em wide (0.5 in running text of the common sans-serif fonts, and capitals and digits beyond that), and text of
several lines takes a tenth more, because lines break at spaces. Whoever has measured the text gives `min_width`, `min_height`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from nereid.layout.canvas import Breakpoint, Canvas
from nereid.layout.elements import Element, ElementClass

CHARACTER = 0.55
"""Width of an average character, in em."""
BREAKING = 1.1
"""Text of several lines against the same in one."""
WORD = 10
"""Characters of the longest word, where nobody has looked."""
ITEM_GAP = 8
"""Between the items of a list, in CSS pixels."""
BUTTON_PADDING, LINK_PADDING = 24, 8
"""Left and right of a label, in CSS pixels."""


class TextStyle(NamedTuple):
    """Font size and line height in CSS pixels."""

    size: int
    line: int


_STYLES = {
    ElementClass.HEADING: TextStyle(40, 48),
    ElementClass.SUBHEADING: TextStyle(20, 28),
    ElementClass.PARAGRAPH: TextStyle(16, 24),
    ElementClass.CAPTION: TextStyle(14, 20),
    ElementClass.NUMBER: TextStyle(40, 48),
    ElementClass.LIST: TextStyle(16, 24),
    ElementClass.BUTTON: TextStyle(16, 24),
    ElementClass.LINK: TextStyle(16, 24),
    ElementClass.FIELD: TextStyle(14, 20),
}
_SMALL = {ElementClass.HEADING: TextStyle(32, 40), ElementClass.NUMBER: TextStyle(32, 40)}
_WIDTHS = {ElementClass.FIELD: 120.0, ElementClass.IMAGE: 48.0}
_HEIGHTS = {ElementClass.BUTTON: 40.0, ElementClass.LINK: 24.0, ElementClass.FIELD: 64.0, ElementClass.IMAGE: 32.0}


def text_style(kind: ElementClass, canvas: Canvas) -> TextStyle | None:
    """The font of a class on this canvas; None where it has no text of its own."""
    small = _SMALL.get(kind) if canvas.breakpoint is Breakpoint.MOBILE else None
    return small or _STYLES.get(kind)


def line_height(kind: ElementClass, canvas: Canvas) -> int:
    """CSS pixels of a line of a class whose height grows with its text; 0 of the others."""
    style = text_style(kind, canvas)
    return 0 if style is None or kind in _HEIGHTS else style.line


def needed_width(element: Element, canvas: Canvas) -> float:
    """The least width in CSS pixels: a button's or link's whole label, an image's by its least height, else the longest word."""
    style = text_style(element.kind, canvas)
    least = max(element.min_width, _WIDTHS.get(element.kind, 0.0))
    if element.ratio is not None:
        least = max(least, element.ratio * max(element.min_height, _HEIGHTS.get(element.kind, 0.0)))
    if style is None or not element.characters:
        return least
    if element.kind is ElementClass.BUTTON:
        return max(least, element.characters * CHARACTER * style.size + 2 * BUTTON_PADDING)
    if element.kind is ElementClass.LINK:
        return max(least, element.characters * CHARACTER * style.size + 2 * LINK_PADDING)
    return max(least, min(element.characters, WORD) * CHARACTER * style.size)


def needed_height(element: Element, width: float, canvas: Canvas) -> float:
    """The least height in CSS pixels at this width: lines x line height, of a list for each item with gaps of 8 px between."""
    least = max(element.min_height, _HEIGHTS.get(element.kind, 0.0))
    style = text_style(element.kind, canvas)
    if style is None or element.kind in _HEIGHTS or not element.characters:
        return least
    items = max(element.items, 1) if element.kind is ElementClass.LIST else 1
    lines = _lines(element.characters / items, width, style)
    return max(least, items * lines * style.line + (items - 1) * ITEM_GAP)


def _lines(characters: float, width: float, style: TextStyle) -> int:
    long = characters * CHARACTER * style.size
    return 1 if long <= width else math.ceil(long * BREAKING / max(width, 1.0))

"""A section's HTML, whoever wrote it, as parts: what is shown, in tags of our own choice; nothing else of the HTML is kept.

So nothing that a model writes reaches a page but text, the order and nesting of elements, and pictures' descriptions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nereid.flow.errors import InvalidRequestError
from nereid.layout.canvas import Canvas
from nereid.layout.content import BUTTON_PADDING, CHARACTER, ITEM_GAP, LINK_PADDING, needed_height, text_style
from nereid.layout.element_list import MOST_ITEMS, read_elements
from nereid.layout.elements import CONTAINERS, HEADINGS, MAX_ELEMENTS, MOST_CHARACTERS, ElementClass, Section
from nereid.layout.html import Found, find_elements
from nereid.page.text import Style, break_lines, clean, longest_word, shipped_font
from nereid.page.theme import Theme

INDENT = 20
"""CSS pixels before the text of a list's item."""
LABEL_SIDE, LABEL_ABOVE = 12, 8
"""CSS pixels that a button's label keeps free at least; layouts give it more."""
INPUT, INPUT_GAP = 40, 4
"""Of a form's field, below its label."""
CARD_SIDE = 24
BULLET = "•"
_TAGS = {
    ElementClass.SUBHEADING: "h3",
    ElementClass.PARAGRAPH: "p",
    ElementClass.CAPTION: "p",
    ElementClass.NUMBER: "p",
    ElementClass.LIST: "ul",
    ElementClass.BUTTON: "a",
    ElementClass.LINK: "a",
    ElementClass.FIELD: "label",
    ElementClass.IMAGE: "img",
    ElementClass.CARD: "div",
    ElementClass.FIGURE: "figure",
    ElementClass.FORM: "form",
    ElementClass.NAV: "nav",
    ElementClass.GROUP: "ol",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One element of a page: its id, unique in the page; what it is; the tag it is drawn with; its text, a line for each item.

    `alt` describes a picture.
    """

    id: str
    kind: ElementClass
    tag: str
    parent: str | None
    lines: tuple[str, ...] = ()
    alt: str = ""


@dataclass(frozen=True, slots=True)
class Content:
    """A section: its number from 1, its parts in reading order, the same as a layout is asked for, how many were left out."""

    number: int
    parts: tuple[Part, ...]
    elements: tuple[dict[str, Any], ...]
    section: Section
    left_out: int = 0

    @property
    def pictures(self) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.kind is ElementClass.IMAGE)


def style_of(kind: ElementClass, canvas: Canvas) -> Style | None:
    """How a class' text is set; None where it has none."""
    style = text_style(kind, canvas)
    return style and Style(style.size, style.line, kind in HEADINGS or kind is ElementClass.BUTTON)


def set_lines(part: Part, width: float, canvas: Canvas) -> list[list[str]]:
    """The lines of each of the part's texts in a box of this width (CSS pixels)."""
    style = style_of(part.kind, canvas)
    if style is None:
        return []
    side = {ElementClass.LIST: INDENT, ElementClass.BUTTON: 2 * LABEL_SIDE}.get(part.kind, 0)
    return [break_lines(line, width - side, style) for line in part.lines]


def room_for(part: Part, width: float, section: Section, place: int) -> float:
    """The least height in CSS pixels in which the part's text, as it is drawn, fits at this width."""
    canvas, style = section.canvas, style_of(part.kind, section.canvas)
    if style is None:
        return needed_height(section.elements[place], width, canvas)
    lines = set_lines(part, width, canvas)
    own = style.line * sum(map(len, lines))
    match part.kind:
        case ElementClass.LIST:
            return own + ITEM_GAP * (len(lines) - 1)
        case ElementClass.BUTTON:
            return max(own + 2 * LABEL_ABOVE, 40.0)
        case ElementClass.FIELD:
            return own + INPUT_GAP + INPUT
    return float(own)


def read_content(html: str, number: int, canvas: Canvas, theme: Theme, ratio: float) -> Content:
    """The parts of a section's HTML, their texts measured in the font that draws them; `ratio` is that of pictures.

    Elements without anything to show are left out, and those beyond the 32 that a layout takes. Raises InvalidRequestError where
    it cannot be read.
    """
    found = find_elements(html)
    kept = _shown(found)
    left_out = max(0, len(kept) - MAX_ELEMENTS)
    parts = _parts([found[place] for place in kept[:MAX_ELEMENTS]], kept, number)
    parts = _without_empty(parts)
    if not parts:
        raise InvalidRequestError("html: a section without text is not allowed; it must have at least one element", "html")
    elements = tuple(_element(part, canvas, theme, number, ratio) for part in parts)
    return Content(number, parts, elements, read_elements(list(elements), canvas), left_out)


def _shown(found: Sequence[Found]) -> list[int]:
    """Places of elements that have text, or may be shown without."""
    own = (*CONTAINERS, ElementClass.IMAGE, ElementClass.FIELD)
    return [place for place, item in enumerate(found) if item.kind in own or any(map(clean, item.lines))]


def _parts(found: Sequence[Found], places: Sequence[int], number: int) -> tuple[Part, ...]:
    counts: dict[ElementClass, int] = {}
    names: dict[int, tuple[str, Found]] = {}
    made = []
    for place, item in zip(places, found, strict=False):
        counts[item.kind] = counts.get(item.kind, 0) + 1
        name = f"s{number}-{item.kind}-{counts[item.kind]}"
        above = None if item.parent is None else names[item.parent]
        names[place] = (name, item)
        made.append(
            Part(
                id=name,
                kind=item.kind,
                tag=_tag(item, above and above[1], first=number == 1 and counts[item.kind] == 1),
                parent=above and above[0],
                lines=tuple(filter(None, map(clean, item.lines)))[:MOST_ITEMS] if item.kind not in CONTAINERS else (),
                alt=clean(item.alt)[:300],
            )
        )
    return tuple(made)


def _tag(item: Found, above: Found | None, *, first: bool) -> str:
    if above is not None and above.kind is ElementClass.GROUP:
        return "li"
    match item.kind, item.tag:
        case ElementClass.HEADING, _:
            return "h1" if first else "h2"
        case ElementClass.CARD, "blockquote" | "article":
            return item.tag
        case ElementClass.CAPTION, "figcaption" | "cite":
            return item.tag if item.tag == "cite" or (above and above.tag == "figure") else "p"
        case ElementClass.BUTTON, "button":
            return "button"
    return _TAGS[item.kind]


def _without_empty(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    """Without those that would hold others and hold none."""
    while True:
        holders = {part.parent for part in parts}
        kept = tuple(part for part in parts if part.kind not in CONTAINERS or part.id in holders)
        if len(kept) == len(parts):
            return parts
        parts = kept


def _element(part: Part, canvas: Canvas, theme: Theme, number: int, ratio: float) -> dict[str, Any]:
    """As `layout` takes it. Layouts reckon with an average character: of those, as many as are as wide as this text is."""
    made: dict[str, Any] = {"id": part.id, "class": str(part.kind)}
    if part.parent is not None:
        made["parent"] = part.parent
    ground = theme.ground_of(part.kind, number, free=part.parent is None)
    if ground is not None:
        made["background"] = ground
    if part.kind is ElementClass.IMAGE:
        return {**made, "ratio": round(ratio, 4)}
    style = style_of(part.kind, canvas)
    if style is None:
        return made
    font, side = shipped_font(), INDENT if part.kind is ElementClass.LIST else 0
    long = [font.width(line, style) + side for line in part.lines]
    each = len(long) * max(long, default=0.0) if part.kind is ElementClass.LIST else sum(long)
    widest = max((longest_word(line, style) for line in part.lines), default=0.0) + side
    most = _longest_label(part, canvas) if part.kind in _LABELS else MOST_CHARACTERS
    made["characters"] = min(math.ceil(each / (CHARACTER * style.size)), most)
    made["min_width"] = math.ceil(min(widest + 1, _widest_word(canvas)))
    made["color"] = theme.color_of(part.kind)
    if part.kind is ElementClass.LIST:
        made["items"] = len(part.lines)
    return made


def _longest_label(part: Part, canvas: Canvas) -> int:
    """Characters that one line can have on this canvas: a layout keeps labels on one line, a page breaks longer ones."""
    grid, size = canvas.grid, text_style(part.kind, canvas)
    assert size is not None
    room = grid.span(grid.count) - 2 * _LABELS[part.kind] - (2 * CARD_SIDE if part.parent is not None else 0)
    return max(1, math.floor(room / (CHARACTER * size.size)))


_LABELS = {ElementClass.BUTTON: BUTTON_PADDING, ElementClass.LINK: LINK_PADDING}
"""Classes whose text a layout keeps on one line, and how wide they are beside it on each side."""


def _widest_word(canvas: Canvas) -> float:
    """Longer words are broken: on a narrow canvas they would not fit into a card."""
    grid = canvas.grid
    return max(120.0, grid.span(grid.count) / 2 - 2 * CARD_SIDE)

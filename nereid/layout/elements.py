"""What a layout is asked for: the elements of one section in reading order, and the canvas; knows nothing of boxes drawn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from nereid.flow.errors import InvalidRequestError
from nereid.layout.canvas import Canvas

MAX_ELEMENTS = 32
"""Of one section; the transformer's tokens."""
MOST_CHARACTERS = 4000
"""Of one element."""
MOST_ID = 64
"""Characters of an element's id."""


class ElementClass(StrEnum):
    """The classes there are. Their order is the order of the transformer's embeddings: new ones go to the end."""

    HEADING = "heading"
    SUBHEADING = "subheading"
    PARAGRAPH = "paragraph"
    CAPTION = "caption"
    NUMBER = "number"
    LIST = "list"
    BUTTON = "button"
    LINK = "link"
    FIELD = "field"
    IMAGE = "image"
    CARD = "card"
    FIGURE = "figure"
    FORM = "form"
    NAV = "nav"
    GROUP = "group"


CONTAINERS = frozenset({ElementClass.CARD, ElementClass.FIGURE, ElementClass.FORM, ElementClass.NAV, ElementClass.GROUP})
"""Classes that may hold others."""
TARGETS = frozenset({ElementClass.BUTTON, ElementClass.LINK, ElementClass.FIELD})
"""Classes that a pointer is aimed at."""
HEADINGS = frozenset({ElementClass.HEADING, ElementClass.SUBHEADING, ElementClass.NUMBER})
TEXTS = frozenset({ElementClass.PARAGRAPH, ElementClass.CAPTION, ElementClass.LIST})
"""What a heading stands above."""


class Box(NamedTuple):
    """A rectangle in CSS pixels from the canvas' top left corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height


class Fixed(NamedTuple):
    """The fields of a box that must stay as they are, in CSS pixels; None where a layout may choose."""

    x: float | None = None
    y: float | None = None
    width: float | None = None
    height: float | None = None

    def put(self, box: Box) -> Box:
        """The box with what is fixed."""
        return Box(*(own if fixed is None else fixed for own, fixed in zip(box, self, strict=True)))


FREE = Fixed()


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One element: what it holds, and what of its box is given.

    `items` counts a list's; `ratio` is width / height, given for images; `min_width` and `min_height` (CSS pixels) are what its
    content needs at least, where somebody has measured that, on top of what its class and text need (`content.py`).
    """

    id: str
    kind: ElementClass
    parent: str | None = None
    characters: int = 0
    items: int = 0
    ratio: float | None = None
    min_width: float = 0.0
    min_height: float = 0.0
    fixed: Fixed = FREE
    draft: Box | None = None
    """A box that the layout shall refine."""
    color: str | None = None
    background: str | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """A valid request: elements in reading order, each parent before its children. Made by `Section.of`.

    `parents` has the parent's index of each element, -1 for the canvas; `children` those of each element and, last, the
    canvas' own; `depths` count containers above.
    """

    canvas: Canvas
    elements: tuple[Element, ...]
    parents: tuple[int, ...] = field(compare=False)
    children: tuple[tuple[int, ...], ...] = field(compare=False)
    depths: tuple[int, ...] = field(compare=False)

    def __len__(self) -> int:
        return len(self.elements)

    @property
    def drafts(self) -> list[Box] | None:
        """The boxes to refine, one for each element; None where none is given. Raises InvalidRequestError where some are."""
        drafts = [element.draft for element in self.elements]
        if all(draft is None for draft in drafts):
            return None
        for element in self.elements:
            if element.draft is None:
                raise InvalidRequestError.of(f"elements.{element.id}.draft", None, "given, as other elements have one")
        return [draft for draft in drafts if draft is not None]

    @classmethod
    def of(cls, canvas: Canvas, elements: Iterable[Element]) -> Section:
        """Bring elements into reading order and check them.

        Siblings keep the order they come in. Raises InvalidRequestError, which names the element: ids given twice, parents that
        are not there, hold nothing or hold each other, boxes outside the canvas, no elements or more than 32.
        """
        given = tuple(elements)
        if not 1 <= len(given) <= MAX_ELEMENTS:
            extra = f" ({given[MAX_ELEMENTS].id} is one too many)" if given else ""
            raise InvalidRequestError.of("elements", len(given), f"1 to {MAX_ELEMENTS} elements{extra}")
        places: dict[str, int] = {}
        for place, element in enumerate(given):
            if element.id in places:
                raise InvalidRequestError.of(f"elements.{element.id}.id", element.id, "given to one element only")
            places[element.id] = place
        held: dict[str | None, list[Element]] = {None: []}
        for element in given:
            _require_parent(element, given, places)
            _require_inside(element, canvas)
            held.setdefault(element.parent, []).append(element)
        ordered: list[Element] = []
        waiting = held[None][::-1]
        while waiting:
            element = waiting.pop()
            ordered.append(element)
            waiting += held.get(element.id, [])[::-1]
        if len(ordered) < len(given):
            reached = {element.id for element in ordered}
            lost = next(element for element in given if element.id not in reached)
            passed: set[str] = set()
            while lost.id not in passed and lost.parent is not None:  # to one that the cycle goes through
                passed.add(lost.id)
                lost = given[places[lost.parent]]
            raise InvalidRequestError.of(f"elements.{lost.id}.parent", lost.parent, "an element that is not inside it (a cycle)")
        return cls._linked(canvas, tuple(ordered))

    @classmethod
    def _linked(cls, canvas: Canvas, ordered: tuple[Element, ...]) -> Section:
        index = {element.id: place for place, element in enumerate(ordered)}
        parents = tuple(-1 if element.parent is None else index[element.parent] for element in ordered)
        children: list[list[int]] = [[] for _ in range(len(ordered) + 1)]
        depths: list[int] = []
        for place, parent in enumerate(parents):
            children[parent].append(place)
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return cls(canvas, ordered, parents, tuple(map(tuple, children)), tuple(depths))


def _require_parent(element: Element, given: tuple[Element, ...], places: dict[str, int]) -> None:
    if element.parent is None:
        return
    field = f"elements.{element.id}.parent"
    if element.parent not in places:
        raise InvalidRequestError.of(field, element.parent, "another element's id, or absent")
    kind = given[places[element.parent]].kind
    if kind not in CONTAINERS:
        raise InvalidRequestError.of(field, element.parent, f"a {', '.join(sorted(CONTAINERS))}; it is a {kind}")


def _require_inside(element: Element, canvas: Canvas) -> None:
    x, y, width, height = element.fixed
    right = (x or 0) + (width or 0)
    for name, value, good in (
        ("width", width, width is None or width > 0),
        ("height", height, height is None or height > 0),
        ("x", x, x is None or x >= 0),
        ("y", y, y is None or y >= 0),
        ("x" if width is None else "width", x if width is None else width, right <= canvas.width),
    ):
        if not good:
            raise InvalidRequestError.of(f"elements.{element.id}.{name}", value, f"inside the canvas, {canvas.width} px wide")
    draft = element.draft
    if draft is not None and not (draft.x < canvas.width and draft.right > 0 and draft.bottom > 0):
        name, value = ("y", draft.y) if draft.bottom <= 0 else ("x", draft.x)
        allowed = f"on the canvas, {canvas.width} px wide, at least in part"
        raise InvalidRequestError.of(f"elements.{element.id}.draft.{name}", value, allowed)

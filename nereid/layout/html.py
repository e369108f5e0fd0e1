"""The HTML of one section to its elements: tags, and the class `button`, say what each is. Other attributes mean nothing."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import NoReturn

from nereid.flow.errors import InvalidRequestError
from nereid.layout.canvas import Canvas
from nereid.layout.content import CHARACTER, text_style
from nereid.layout.element_list import LARGEST_RATIO, MOST_ITEMS, SMALLEST_RATIO
from nereid.layout.elements import CONTAINERS, MOST_CHARACTERS, MOST_ID, Element, ElementClass, Section
from nereid.layout.words import length_of, longest_word

MOST_HTML = 100_000
"""Characters of a section's HTML."""
ROOTS = frozenset({"section", "footer", "header", "main", "article", "div"})
"""What the section itself may be."""
VOID = frozenset({"img", "input", "br", "wbr", "hr"})
INLINE = frozenset("strong em b i u br wbr code sub sup small".split())
"""Tags that are part of the text around them."""
_SPACE_WITHOUT_WIDTH = "\u200b"
"""What `wbr` is: a place for a line's end."""
_CLASSES = {
    **dict.fromkeys(("h1", "h2"), ElementClass.HEADING),
    **dict.fromkeys(("h3", "h4", "h5", "h6", "summary"), ElementClass.SUBHEADING),
    **dict.fromkeys(("cite", "figcaption"), ElementClass.CAPTION),
    **dict.fromkeys(("div", "article", "blockquote", "details"), ElementClass.CARD),
    **dict.fromkeys(("label", "input", "textarea", "select"), ElementClass.FIELD),
    "p": ElementClass.PARAGRAPH,
    "ul": ElementClass.LIST,
    "ol": ElementClass.GROUP,
    "button": ElementClass.BUTTON,
    "a": ElementClass.LINK,
    "img": ElementClass.IMAGE,
    "figure": ElementClass.FIGURE,
    "form": ElementClass.FORM,
    "nav": ElementClass.NAV,
}
KNOWN = tuple(sorted({*_CLASSES, *INLINE, *ROOTS, "li", "span", "option"}))


@dataclass(slots=True)
class _Tag:
    name: str
    place: int | None
    """Of its element; None where it is part of another or the section itself."""


@dataclass(slots=True)
class Found:
    """One element as it stands in the HTML.

    `parent` is the place of what holds it, None where that is the section; `text` its parts, of which a list's item `i` begins at
    `starts[i]`; `alt` an image's; `own_text` whether text stands in it and not in an element within it.
    """

    kind: ElementClass
    tag: str
    parent: int | None
    id: str | None
    ratio: float | None
    alt: str = ""
    text: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    own_text: bool = False
    line: int = 1
    """Where its tag begins in the HTML."""

    @property
    def lines(self) -> list[str]:
        """Its text in one line, or a line for each item of a list, with single spaces."""
        cuts = [*self.starts, len(self.text)] if self.starts else [0, len(self.text)]
        return [" ".join("".join(self.text[at:end]).split()) for at, end in itertools.pairwise(cuts)]


def read_html(html: str, canvas: Canvas) -> Section:
    """Elements of a section as `nereid_zoo.sections` or another author writes it: one root, every tag closed.

    A `div`, `blockquote` or `li` that holds only text is a paragraph; one with elements is a card. Images have a ratio where
    `width` and `height` are attributes. The longest word is a text's least width. Raises InvalidRequestError, which names the
    tag and its line.
    """
    found = find_elements(html)
    names = _names(found)
    elements = [
        _element(name, None if item.parent is None else names[item.parent], item, canvas)
        for name, item in zip(names, found, strict=True)
    ]
    return Section.of(canvas, elements)


def find_elements(html: str) -> list[Found]:
    """What `read_html` reads, before it is a section: kinds, tags and texts. Raises InvalidRequestError, as that does."""
    if len(html) > MOST_HTML:
        raise InvalidRequestError.of("characters of html", len(html), f"at most {MOST_HTML}")
    reader = _Reader()
    reader.feed(html.removeprefix("\ufeff"))  # some editors write a mark of bytes' order before all
    return reader.finish()


def _names(found: list[Found]) -> list[str]:
    """Ids as given, and class and number where none is. Raises InvalidRequestError where one is too long."""
    taken = {item.id for item in found}
    counts: dict[ElementClass, int] = {}
    names = []
    for place, item in enumerate(found):
        name = item.id
        if name is not None and len(name) > MOST_ID:
            raise InvalidRequestError.of(f"elements.{place}.id", name, f"a string of 1 to {MOST_ID} characters")
        while name is None or (item.id is None and name in taken):
            counts[item.kind] = counts.get(item.kind, 0) + 1
            name = f"{item.kind}-{counts[item.kind]}"
        names.append(name)
    return names


def _element(name: str, parent: str | None, item: Found, canvas: Canvas) -> Element:
    text = " ".join("".join(item.text).split())
    characters = length_of(text)
    if characters > MOST_CHARACTERS:
        raise InvalidRequestError.of(f"characters of {name}", characters, f"at most {MOST_CHARACTERS}")
    if (items := len(item.starts)) > MOST_ITEMS:
        raise InvalidRequestError.of(f"items of {name}", items, f"at most {MOST_ITEMS}")
    style = text_style(item.kind, canvas)
    return Element(
        id=name,
        kind=item.kind,
        parent=parent,
        characters=0 if item.kind in CONTAINERS else characters,
        items=items,
        ratio=item.ratio,
        min_width=0.0 if style is None or item.kind is ElementClass.FIELD else longest_word(text) * CHARACTER * style.size,
    )


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._found: list[Found] = []
        self._open: list[_Tag] = []
        self._closed = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._closed:
            self._refuse(f"<{tag}>", "inside the section, which ends before it")
        if not self._open:
            if tag not in ROOTS:
                self._refuse(f"<{tag}>", f"the section itself: one of {', '.join(sorted(ROOTS))}")
            self._open.append(_Tag(tag, None))
            return
        if tag not in KNOWN:
            self._refuse(f"<{tag}>", f"one of {', '.join(KNOWN)}")
        if tag == "wbr" and (place := self._inner()) is not None:
            self._found[place].text.append(_SPACE_WITHOUT_WIDTH)
        place = self._place(tag, dict(reversed(attrs)))  # of one that is there twice, the first counts
        if tag not in VOID:
            self._open.append(_Tag(tag, place))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self._open or self._open[-1].name != tag:
            inside = f"; <{self._open[-1].name}> is still open" if self._open else ""
            self._refuse(f"</{tag}>", f"the end of the tag opened last{inside}")
        self._open.pop()
        self._closed = not self._open

    def handle_data(self, data: str) -> None:
        place = self._inner() if self._open else None
        if place is None:
            if data.strip():
                self._refuse(data.strip()[:40], "inside an element of the section, like <p>")
            return
        self._found[place].text.append(data)
        self._found[place].own_text = self._found[place].own_text or bool(data.strip())

    def parse_html_declaration(self, i: int) -> int:
        if self.rawdata.startswith("<![", i):  # no HTML has it, and the standard library ends with an AssertionError over some
            self._refuse(self.rawdata[i : i + 40], "absent")
        return super().parse_html_declaration(i)

    def finish(self) -> list[Found]:
        if self.rawdata.startswith("<"):  # which the standard library would take for text
            self._refuse(self.rawdata.strip()[:40], "closed by >")
        self.close()
        if self._open:
            self._refuse(f"<{self._open[-1].name}>", "closed")
        if not self._found:
            raise InvalidRequestError.of("html", "", "a section with at least one element")
        holders = {item.parent for item in self._found}
        for place, item in enumerate(self._found):
            if item.kind is not ElementClass.CARD or not item.own_text:
                continue
            if place in holders:
                where, allowed = f"line {item.line} of html", "in an element of its own, like <p>, beside others"
                raise InvalidRequestError.of(where, f"text in <{item.tag}>", allowed)
            item.kind = ElementClass.PARAGRAPH
        return self._found

    def _inner(self) -> int | None:
        """The element that is open."""
        return self._open[-1].place

    def _place(self, tag: str, attributes: dict[str, str | None]) -> int | None:
        """A new element's place, or that of the one it is a part of."""
        inner = self._inner()
        around = None if inner is None else self._found[inner]
        if around is not None and around.kind not in CONTAINERS:
            if tag == "li" and around.kind is ElementClass.LIST:
                around.starts.append(len(around.text))
            elif tag not in INLINE and (around.kind, tag) not in _PARTS:
                self._refuse(f"<{tag}> in <{around.tag}>", "inside a container or the section itself")
            return inner
        if tag in INLINE:
            return inner
        kind = self._kind(tag, attributes, around)
        ratio = _ratio(attributes) if kind is ElementClass.IMAGE else None
        alt = attributes.get("alt") or ""
        self._found.append(Found(kind, tag, inner, attributes.get("id") or None, ratio, alt, line=self.getpos()[0]))
        return len(self._found) - 1

    def _kind(self, tag: str, attributes: dict[str, str | None], around: Found | None) -> ElementClass:
        classes = (attributes.get("class") or "").split()
        if "button" in classes and tag in ("a", "button", "span"):
            return ElementClass.BUTTON
        if tag == "span":
            return ElementClass.NUMBER if around is not None and around.kind is ElementClass.CARD else ElementClass.CAPTION
        if tag == "li":
            return ElementClass.CARD
        if tag not in _CLASSES:
            self._refuse(f"<{tag}>", "the section itself, or absent")
        return _CLASSES[tag]

    def _refuse(self, what: str, allowed: str) -> NoReturn:
        raise InvalidRequestError.of(f"line {self.getpos()[0]} of html", what, allowed)


_PARTS = {
    (ElementClass.FIELD, "input"),
    (ElementClass.FIELD, "textarea"),
    (ElementClass.FIELD, "select"),
    (ElementClass.FIELD, "option"),
    (ElementClass.FIELD, "span"),
    (ElementClass.PARAGRAPH, "a"),
    (ElementClass.PARAGRAPH, "span"),
    (ElementClass.LIST, "a"),
    (ElementClass.LIST, "span"),
    *((kind, "span") for kind in (ElementClass.HEADING, ElementClass.SUBHEADING, ElementClass.BUTTON, ElementClass.LINK)),
}
"""Tags that may stand inside an element and are part of it."""


def _ratio(attributes: dict[str, str | None]) -> float | None:
    sizes = [re.fullmatch(r"[1-9]\d{0,4}", attributes.get(name) or "") for name in ("width", "height")]
    if not all(sizes):
        return None
    width, height = (int(size.group()) for size in sizes if size)
    return min(max(width / height, SMALLEST_RATIO), LARGEST_RATIO)

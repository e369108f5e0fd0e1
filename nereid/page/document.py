"""Writes a page as one HTML file that needs nothing else: boxes as CSS, pictures and the font's pieces as data URIs, no script.

Text is escaped, tags and attributes are of a fixed set, ids and numbers are made here; beside that a policy in the file allows
nothing to be loaded or sent, and no style but its own, known by its hash. So neither a brief nor a model can break out of an
element.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from nereid.layout.canvas import Canvas, Style
from nereid.layout.content import ITEM_GAP
from nereid.layout.elements import CONTAINERS, HEADINGS, TEXTS, Box, ElementClass
from nereid.layout.picture import BOTTOM
from nereid.page.content import BULLET, INDENT, INPUT, LABEL_SIDE, Content, Part, set_lines, style_of
from nereid.page.text import shipped_font, turns
from nereid.page.theme import Theme

FAMILY = "page"
_MOST_TITLE = 120
_NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedSection:
    """A section with its boxes, in CSS pixels from its own top left corner, and by part the pictures (PNG) that are there.

    `kind` and `brief` are the plan's, and the targets of links are found by them.
    """

    content: Content
    boxes: tuple[Box, ...]
    kind: str
    brief: str
    pictures: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def height(self) -> float:
        return max(box.bottom for box in self.boxes) + BOTTOM

    @property
    def name(self) -> str:
        return f"s{self.content.number}"


def tops(sections: Sequence[PlacedSection]) -> list[float]:
    """Where each section begins on the page, in CSS pixels."""
    made, y = [], 0.0
    for section in sections:
        made.append(y)
        y += section.height
    return made


def write_page(title: str, canvas: Canvas, theme: Theme, sections: Sequence[PlacedSection]) -> str:
    """The whole file; `canvas` is the page's, of the width of all its sections."""
    style = "\n".join((*_font_faces(sections), *_base(canvas, theme), *_rules(theme, sections)))
    allowed = base64.b64encode(hashlib.sha256(f"\n{style}\n".encode()).digest()).decode()
    policy = f"{_NOTHING}; style-src 'sha256-{allowed}'; img-src data:; font-src data:"
    body = "\n".join(_Writer(sections, section).written() for section in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy, quote=True)}">\n'
        f'<meta name="viewport" content="width={canvas.width}">\n'
        f"<title>{escape(title[:_MOST_TITLE])}</title>\n<style>\n{style}\n</style>\n</head>\n"
        f'<body>\n<main class="page">\n{body}\n</main>\n</body>\n</html>\n'
    )


def _font_faces(sections: Sequence[PlacedSection]) -> Iterable[str]:
    for piece in shipped_font().pieces_for(_texts(sections)):
        yield (
            f"@font-face {{ font-family: {FAMILY}; font-weight: {700 if piece.bold else 400}; "
            f'src: url("{piece.data_uri()}") format("woff2"); unicode-range: {piece.unicode_range}; }}'
        )


def _texts(sections: Sequence[PlacedSection]) -> Iterable[tuple[str, bool]]:
    for section in sections:
        for part in section.content.parts:
            style = style_of(part.kind, section.content.section.canvas)
            if style is not None:
                yield from ((f"{BULLET} {line}", style.bold) for line in part.lines)


def _base(canvas: Canvas, theme: Theme) -> Iterable[str]:
    """Rules by class: what is drawn is as high and as wide as it was measured, with no border that would take room."""
    yield f"html {{ background: {theme.ground}; -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }}"
    yield "body { margin: 0; }"
    yield f".page {{ position: relative; width: {canvas.width}px; margin: 0 auto; overflow: hidden; }}"
    yield f".page > * {{ position: absolute; left: 0; width: {canvas.width}px; }}"
    yield (
        ".e { position: absolute; box-sizing: border-box; margin: 0; padding: 0; border: 0; list-style: none; "
        "white-space: pre; text-decoration: none; }"
    )
    yield (
        f".e, .e input {{ font-family: {FAMILY}, sans-serif; font-style: normal; font-kerning: none; "
        "font-variant-ligatures: none; font-feature-settings: normal; letter-spacing: 0; word-spacing: 0; "
        "text-rendering: geometricPrecision; }"
    )
    yield f"{', '.join(f'.{kind}' for kind in sorted(CONTAINERS))} {{ white-space: normal; }}"
    for kind in ElementClass:
        if (style := style_of(kind, canvas)) is not None:
            weight, color = 700 if style.bold else 400, theme.color_of(kind)
            yield f".{kind} {{ font-size: {style.size}px; line-height: {style.line}px; font-weight: {weight}; color: {color}; }}"
    yield f".card, .figure {{ background: {theme.card}; border-radius: 12px; box-shadow: 0 0 0 1px {theme.edge}; }}"
    yield (
        f".button {{ display: flex; align-items: center; justify-content: center; padding: 0 {LABEL_SIDE}px; "
        f"text-align: center; background: {theme.accent}; border-radius: 8px; cursor: pointer; }}"
    )
    yield ".link { display: flex; align-items: center; }"
    yield f".list li {{ position: relative; margin: 0 0 {ITEM_GAP}px; padding: 0; padding-inline-start: {INDENT}px; }}"
    yield ".list li:last-child { margin: 0; }"
    yield f'.list li::before {{ content: "{BULLET}"; position: absolute; inset-inline-start: 0; top: 0; }}'
    yield (
        f".field input {{ position: absolute; left: 0; bottom: 0; box-sizing: border-box; width: 100%; height: {INPUT}px; "
        f"margin: 0; padding: 0 12px; border: 1px solid {theme.soft}; border-radius: 8px; background: {theme.card}; "
        f"color: {theme.ink}; font-size: 16px; line-height: 24px; font-weight: 400; }}"
    )
    yield f".image {{ display: block; object-fit: contain; border-radius: 8px; background: {theme.band}; }}"
    yield f".blank {{ background: repeating-linear-gradient(45deg, {theme.band} 0 12px, {theme.edge} 12px 24px); }}"
    yield ".mid { text-align: center; }"


def _rules(theme: Theme, sections: Sequence[PlacedSection]) -> Iterable[str]:
    """A rule for each box, placed in what holds it."""
    last = 0.0
    for top, section in zip(tops(sections), sections, strict=True):
        last = top + section.height
        ground = theme.band_of(section.content.number)
        yield f"#{section.name} {{ top: {_px(top)}; height: {_px(section.height)}; background: {ground}; }}"
        own = section.content.section
        for place, (part, box) in enumerate(zip(section.content.parts, section.boxes, strict=True)):
            above = own.parents[place]
            x, y = (box.x, box.y) if above < 0 else (box.x - section.boxes[above].x, box.y - section.boxes[above].y)
            yield f"#{part.id} {{ left: {_px(x)}; top: {_px(y)}; width: {_px(box.width)}; height: {_px(box.height)}; }}"
    yield f".page {{ height: {_px(last)}; }}"


def _px(value: float) -> str:
    return f"{round(value, 3):g}px"


@dataclass(frozen=True, slots=True)
class _Writer:
    """Of one section's elements."""

    page: Sequence[PlacedSection]
    section: PlacedSection

    def written(self) -> str:
        tag = "footer" if self.section.kind == "footer" else "section"
        inner = "".join(self._element(place) for place in self.section.content.section.children[-1])
        return f'<{tag} id="{self.section.name}">{inner}\n</{tag}>'

    def _element(self, place: int) -> str:
        part = self.section.content.parts[place]
        opening = f'<{part.tag} id="{part.id}" class="{self._classes(part, place)}"'
        if turns(part.lines):  # else a browser puts such a text's last full stop before it
            opening += ' dir="auto"'
        inner = self._inner(part, place)
        match part.kind:
            case ElementClass.IMAGE:
                return f"\n{self._image(part)}"
            case ElementClass.BUTTON if part.tag == "button":
                opening += ' type="button"'
            case ElementClass.BUTTON | ElementClass.LINK:
                opening += f' href="#{self._target(part)}"'
        return f"\n{opening}>{inner}</{part.tag}>"

    def _inner(self, part: Part, place: int) -> str:
        if part.kind in CONTAINERS:
            return "".join(self._element(child) for child in self.section.content.section.children[place]) + "\n"
        texts = set_lines(part, self.section.boxes[place].width, self.section.content.section.canvas)
        drawn = [escape("\n".join(lines), quote=True) for lines in texts]
        if part.kind is ElementClass.LIST:
            return "".join(f"<li>{text}</li>" for text in drawn)
        text = "\n".join(drawn)
        return f'{text}<input type="text" autocomplete="off">' if part.kind is ElementClass.FIELD else text

    def _image(self, part: Part) -> str:
        """The picture, or a placeholder of the same size that says what it would show."""
        alt = escape(part.alt, quote=True)
        made = self.section.pictures.get(part.id)
        if made is None:
            return f'<div id="{part.id}" class="e image blank" role="img" aria-label="{alt}"></div>'
        data = base64.b64encode(made).decode()
        return f'<img id="{part.id}" class="e image" alt="{alt}" src="data:image/png;base64,{data}">'

    def _classes(self, part: Part, place: int) -> str:
        own = self.section.content.section
        free = own.canvas.style is Style.CENTERED and own.parents[place] < 0
        middle = " mid" if free and part.kind in HEADINGS | TEXTS and part.kind is not ElementClass.LIST else ""
        return f"e {part.kind}{middle}"

    def _target(self, part: Part) -> str:
        """The section whose heading, kind or brief a link's words name, headings first; the first one where they name none."""
        words = _words(" ".join(part.lines))
        for named in (_heading, lambda other: f"{other.kind} {other.brief}"):
            for other in self.page:
                if words & _words(named(other)):
                    return other.name
        return self.page[0].name


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{4,}", text.lower()))


def _heading(section: PlacedSection) -> str:
    return " ".join(line for part in section.content.parts if part.kind is ElementClass.HEADING for line in part.lines)

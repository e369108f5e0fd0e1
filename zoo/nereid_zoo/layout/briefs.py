"""What layouts are asked for in training and in scoring: sections written from briefs, varied, on canvases of three widths."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from random import Random

from nereid.layout.canvas import Breakpoint, Canvas, Density, Style, breakpoint_of
from nereid.layout.elements import MAX_ELEMENTS, Element, ElementClass, Section
from nereid.layout.html import read_html
from nereid_zoo.sections.briefs import Kind, sample_brief
from nereid_zoo.sections.html import write_section

WIDTHS: dict[Breakpoint, tuple[int, ...]] = {
    Breakpoint.MOBILE: (360, 375, 390, 393, 412, 430),
    Breakpoint.TABLET: (744, 768, 800, 820, 834),
    Breakpoint.DESKTOP: (1200, 1280, 1366, 1440, 1536),
}
"""CSS pixels of usual screens."""
RATIOS = (1.0, 4 / 3, 3 / 2, 16 / 9, 4 / 5, 21 / 9)
"""Of images: width / height."""


@dataclass(frozen=True, slots=True)
class LayoutBrief:
    """A section and its canvas, and the combination of what decides its layout."""

    section: Section
    kind: Kind
    variant: str

    @property
    def combination(self) -> tuple[str, str, str, str]:
        canvas = self.section.canvas
        return (str(self.kind), self.variant, str(canvas.style), str(canvas.breakpoint))

    @property
    def held_out(self) -> bool:
        return is_held_out(self.combination)


def is_held_out(combination: tuple[str, str, str, str]) -> bool:
    """A fixed eighth of all combinations of kind, variant (number of elements), style and screen, never trained on."""
    return hashlib.sha256("/".join(combination).encode()).digest()[0] % 8 == 0


def sample_layout_brief(rng: Random, *, held_out: bool = False, width: int | None = None) -> LayoutBrief:
    """A random section on a random canvas whose combination is held out, or is not; so is its pair of kind and business."""
    while True:
        brief = sample_brief(rng, held_out=held_out)
        canvas = sample_canvas(rng, width)
        section = _section(write_section(brief.demand, rng), canvas, rng)
        if section is None:
            continue
        made = LayoutBrief(section, brief.demand.kind, str(len(section)))
        if made.held_out is held_out:
            return made


def sample_canvas(rng: Random, width: int | None = None) -> Canvas:
    """Any of three screens, or of this width, of densities, and styles; now and then another number of columns than is usual."""
    breakpoint = rng.choice(tuple(Breakpoint)) if width is None else breakpoint_of(width)
    usual = {Breakpoint.MOBILE: 4, Breakpoint.TABLET: 8, Breakpoint.DESKTOP: 12}[breakpoint]
    other = {Breakpoint.MOBILE: 2, Breakpoint.TABLET: 12, Breakpoint.DESKTOP: 16}[breakpoint]
    columns = usual if rng.random() < 0.8 else other
    return Canvas.of(width or rng.choice(WIDTHS[breakpoint]), rng.choice(tuple(Density)), columns, rng.choice(tuple(Style)))


def _section(html: str, canvas: Canvas, rng: Random) -> Section | None:
    """The section with texts of other lengths, and images that a writer of text alone leaves out; None where it is too large."""
    elements = [_lengthened(element, rng) for element in read_html(html, canvas).elements]
    elements = _illustrated(elements, rng)
    return Section.of(canvas, elements) if len(elements) <= MAX_ELEMENTS else None


def _lengthened(element: Element, rng: Random) -> Element:
    if element.kind is ElementClass.IMAGE:
        return replace(element, ratio=rng.choice(RATIOS))
    if element.kind is ElementClass.PARAGRAPH:
        return replace(element, characters=round(element.characters * rng.choice((1, 1, 1.5, 2.5, 4)) * rng.uniform(0.9, 1.1)))
    if element.kind is ElementClass.LIST:
        more = rng.randrange(0, 4)
        each = element.characters / max(element.items, 1)
        return replace(element, items=element.items + more, characters=round(element.characters + more * each))
    return element


def _illustrated(elements: list[Element], rng: Random) -> list[Element]:
    """Sometimes one image of the section's own after its heading and text, or one in each card."""
    cards = [element for element in elements if element.kind is ElementClass.CARD]
    chosen = rng.random()
    ratio = rng.choice(RATIOS)
    if chosen < 0.3 and not any(element.kind is ElementClass.IMAGE for element in elements):
        at = next((place for place, element in enumerate(elements) if _ends_intro(element)), len(elements))
        return [*elements[:at], Element(id="picture", kind=ElementClass.IMAGE, ratio=ratio), *elements[at:]]
    if chosen < 0.55 and cards:
        made: list[Element] = []
        for element in elements:
            made.append(element)
            if element.kind is ElementClass.CARD:
                image = Element(id=f"picture-{element.id}", kind=ElementClass.IMAGE, parent=element.id, ratio=ratio)
                made.append(image)
        return made
    return elements


def _ends_intro(element: Element) -> bool:
    intro = (ElementClass.HEADING, ElementClass.PARAGRAPH, ElementClass.BUTTON)
    return element.parent is not None or element.kind not in intro

"""Checks of boxes against what is in them: minimum sizes, image ratios, pointer targets (WCAG 2.5.8, 2.5.5), contrast (1.4.3)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from nereid.layout.checks.finding import TOLERANCE, Boxes, Check, Finding
from nereid.layout.content import needed_height, needed_width, text_style
from nereid.layout.elements import TARGETS, Box, Section

TARGET, TARGET_AAA = 24.0, 44.0
"""Least width and height of a pointer target in CSS pixels: WCAG 2.5.8 (AA), 2.5.5 (AAA)."""
CONTRAST, LARGE_CONTRAST = 4.5, 3.0
"""WCAG 1.4.3: text, and text of 24 px or more."""
LARGE = 24
RATIO_SHARE, RATIO_PIXELS = 0.02, 8.0
"""An image may be cut by this share of its height, or so many CSS pixels where that is more."""


def minimum_size(section: Section, boxes: Boxes) -> Iterator[Finding]:
    """width >= needed width, and height >= needed height at this width (`content.py`).

    Value and limit are of the width where that is too small, and else of the height.
    """
    for element, box in zip(section.elements, boxes, strict=True):
        width = needed_width(element, section.canvas)
        height = needed_height(element, box.width, section.canvas)
        if width - box.width > TOLERANCE:
            yield Finding(Check.MINIMUM_SIZE, (element.id,), box.width, width)
        elif height - box.height > TOLERANCE:
            yield Finding(Check.MINIMUM_SIZE, (element.id,), box.height, height)


def ratio_kept(section: Section, boxes: Boxes) -> Iterator[Finding]:
    """|height - width / ratio| <= max(8 px, 2% of the height) where a ratio is given; value is the box's own ratio."""
    for element, box in zip(section.elements, boxes, strict=True):
        if element.ratio is not None:
            off = abs(box.height - box.width / element.ratio)
            if off > max(RATIO_PIXELS, RATIO_SHARE * box.height) + TOLERANCE:
                yield Finding(Check.RATIO, (element.id,), box.width / max(box.height, 1e-6), element.ratio)


def target_size(section: Section, boxes: Boxes) -> Iterator[Finding]:
    """WCAG 2.5.8: width and height >= 24 px, or a circle of 24 px around the centre that meets no other target nor, of a small
    one, its circle. Value is min(width, height)."""
    targets = [place for place, element in enumerate(section.elements) if element.kind in TARGETS]
    for place in targets:
        box = boxes[place]
        least = min(box.width, box.height)
        if least + TOLERANCE < TARGET and not all(_spaced(box, boxes[other]) for other in targets if other != place):
            yield Finding(Check.TARGET_SIZE, (section.elements[place].id,), least, TARGET)


def target_size_aaa(section: Section, boxes: Boxes) -> Iterator[Finding]:
    """WCAG 2.5.5: min(width, height) >= 44 px."""
    for element, box in zip(section.elements, boxes, strict=True):
        if element.kind in TARGETS and min(box.width, box.height) + TOLERANCE < TARGET_AAA:
            yield Finding(Check.TARGET_SIZE_AAA, (element.id,), min(box.width, box.height), TARGET_AAA)


def contrast(section: Section, boxes: Boxes) -> Iterator[Finding]:
    """(L1 + 0.05) / (L2 + 0.05) >= 4.5, or 3 of text of 24 px and more, where a colour is given; L are relative luminances of
    the text and of the nearest background given for it or for what holds it, white where none is."""
    for element in section.elements:
        style = text_style(element.kind, section.canvas)
        if element.color is None or style is None:
            continue
        first, second = sorted((luminance(element.color), luminance(_background(section, element.id))))
        value, limit = (second + 0.05) / (first + 0.05), LARGE_CONTRAST if style.size >= LARGE else CONTRAST
        if value < limit:
            yield Finding(Check.CONTRAST, (element.id,), value, limit)


def luminance(color: str) -> float:
    """WCAG's relative luminance, 0 to 1, of an sRGB colour `#rrggbb`."""
    red, green, blue = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue))
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _background(section: Section, name: str) -> str:
    by_id = {element.id: element for element in section.elements}
    holder: str | None = name
    while holder is not None:
        if (given := by_id[holder].background) is not None:
            return given
        holder = by_id[holder].parent
    return "#ffffff"


def _spaced(box: Box, other: Box) -> bool:
    """Whether the 24 px circle around a small target's centre is clear of another target, and of its circle if it is small."""
    x, y = box.x + box.width / 2, box.y + box.height / 2
    away = math.hypot(
        max(other.x - x, 0.0, x - other.x - other.width),
        max(other.y - y, 0.0, y - other.y - other.height),
    )
    if min(other.width, other.height) + TOLERANCE < TARGET:
        centers = math.hypot(other.x + other.width / 2 - x, other.y + other.height / 2 - y)
        return away >= TARGET / 2 and centers >= TARGET
    return away >= TARGET / 2

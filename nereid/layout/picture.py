"""A layout as an SVG of boxes, for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from nereid.layout.checks.finding import Finding, Severity
from nereid.layout.elements import CONTAINERS, TARGETS, Box, ElementClass, Section

_FILLS = {
    **dict.fromkeys(CONTAINERS, "#f4f4f5"),
    **dict.fromkeys(TARGETS, "#bfdbfe"),
    ElementClass.IMAGE: "#bbf7d0",
    ElementClass.HEADING: "#fde68a",
    ElementClass.SUBHEADING: "#fef3c7",
    ElementClass.NUMBER: "#fde68a",
}
_TEXT, _ERROR, _WARNING, _LINE = "#e5e7eb", "#dc2626", "#d97706", "#6b7280"
BOTTOM = 32
"""CSS pixels below the lowest box."""


def picture(section: Section, boxes: Sequence[Box], findings: Sequence[Finding] = ()) -> str:
    """An SVG document in CSS pixels: a rectangle and an id for each element, errors outlined red, warnings amber and broken.

    What is wrong with an element is in its title, which viewers show under the pointer.
    """
    height = max((box.bottom for box in boxes), default=0) + BOTTOM
    width = section.canvas.width
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:g}" viewBox="0 0 {width} {height:g}">',
        f"<title>Layout of {len(boxes)} elements, {width} x {height:g} px</title>",
        f'<rect width="{width}" height="{height:g}" fill="#ffffff"/>',
    ]
    for element, box in zip(section.elements, boxes, strict=True):
        own = [finding for finding in findings if element.id in finding.elements]
        wrong = any(finding.severity is Severity.ERROR for finding in own)
        stroke = _ERROR if wrong else _WARNING if own else _LINE
        broken = ' stroke-dasharray="6 3"' if own and not wrong else ""  # who cannot tell red from amber sees it, too
        said = "; ".join(f"{finding.check}: {finding.value:g}, limit {finding.limit:g}" for finding in own)
        lines.append(
            f"<g><title>{_text(f'{element.id} {said}'.strip())}</title>"
            f'<rect x="{box.x:g}" y="{box.y:g}" width="{max(box.width, 0):g}" height="{max(box.height, 0):g}"'
            f' fill="{_FILLS.get(element.kind, _TEXT)}" stroke="{stroke}" stroke-width="{2 if own else 1}"{broken}/>'
            f'<text x="{box.x + 4:g}" y="{box.y + 14:g}" font-family="sans-serif" font-size="11">{_text(element.id)}</text></g>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


def _text(text: str) -> str:
    """As it may stand in XML, which has no control characters."""
    return escape("".join(char if char.isprintable() else "\ufffd" for char in text))

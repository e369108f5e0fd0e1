"""What a page is held to: each section's layout, texts that fit into their boxes, glyphs that the font has, pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from nereid.layout.checks import Severity, check_layout
from nereid.layout.checks.finding import TOLERANCE
from nereid.layout.elements import ElementClass
from nereid.page.content import room_for
from nereid.page.document import PlacedSection
from nereid.page.text import shipped_font

Finding = dict[str, Any]


def check_page(sections: Sequence[PlacedSection]) -> list[Finding]:
    """All findings, in the form of a layout's: check, severity, elements by their ids, value and limit."""
    return [finding for section in sections for finding in _of_section(section)]


def passed(findings: Sequence[Finding]) -> bool:
    """Whether none of severity error is among them."""
    return all(finding["severity"] != Severity.ERROR for finding in findings)


def _of_section(section: PlacedSection) -> Iterator[Finding]:
    content = section.content
    for finding in check_layout(content.section, section.boxes):
        yield finding.as_json()
    for place, (part, box) in enumerate(zip(content.parts, section.boxes, strict=True)):
        room = room_for(part, box.width, content.section, place)
        if room - box.height > TOLERANCE:
            yield _finding("text_overflow", Severity.ERROR, part.id, box.height, room)
        if lacking := shipped_font().lacks("".join(part.lines)):
            yield _finding("glyphs", Severity.WARNING, part.id, len(lacking), 0)
        if part.kind is ElementClass.IMAGE and part.id not in section.pictures:
            yield _finding("picture", Severity.WARNING, part.id, 0, 1)


def _finding(check: str, severity: Severity, element: str, value: float, limit: float) -> Finding:
    return {"check": check, "severity": str(severity), "elements": [element], "value": float(value), "limit": float(limit)}

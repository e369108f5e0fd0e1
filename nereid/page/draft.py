"""A page while it is made: what is there of each section, why it is not what was asked for, and what is answered of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from nereid.layout.canvas import Canvas
from nereid.layout.elements import Box
from nereid.page.checks import check_page, passed
from nereid.page.content import Content, Part
from nereid.page.document import PlacedSection, tops, write_page
from nereid.page.plan import Plan, PlannedSection
from nereid.page.stages import Stage
from nereid.page.theme import Theme

BY_RULES = "rules"


@dataclass(frozen=True, slots=True)
class Degraded:
    """That a piece is worse than was asked for, in one sentence; `section` is None where it is the whole page's."""

    stage: Stage
    section: int | None
    said: str

    def as_json(self) -> dict[str, Any]:
        return {"stage": str(self.stage), "section": self.section, "said": self.said}


@dataclass(slots=True)
class Slot:
    """A place for a picture, and what it was asked for with; `png` is None until it is drawn."""

    part: Part
    prompt: str = ""
    png: bytes | None = None


@dataclass(slots=True)
class DraftSection:
    """One planned section, from its number on the page (1 is the first) to its boxes."""

    number: int
    planned: PlannedSection
    canvas: Canvas
    written_by: str = ""
    drawn_by: str = ""
    content: Content | None = None
    boxes: tuple[Box, ...] | None = None
    grown: dict[str, float] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)

    def placed(self) -> PlacedSection | None:
        """As it can be drawn now; None where it has no boxes yet."""
        if self.content is None or self.boxes is None:
            return None
        return PlacedSection(
            content=self.content,
            boxes=self.boxes,
            kind=self.planned.kind,
            brief=self.planned.brief,
            pictures={slot.part.id: slot.png for slot in self.slots if slot.png is not None},
        )


@dataclass(slots=True)
class Draft:
    """The whole page. `canvas` is of its width; a section's own differs from it in style."""

    canvas: Canvas
    theme: Theme
    plan: Plan | None = None
    planned_by: str = ""
    sections: list[DraftSection] = field(default_factory=list)
    degraded: list[Degraded] = field(default_factory=list)

    @property
    def placed(self) -> list[PlacedSection]:
        """What can be drawn now, in order."""
        return [made for section in self.sections if (made := section.placed()) is not None]

    def degrade(self, stage: Stage, section: int | None, said: str) -> None:
        self.degraded.append(Degraded(stage, section, said))

    def html(self) -> str:
        """The page as it is now; empty where no section can be drawn yet."""
        placed = self.placed
        return write_page(self.title, self.canvas, self.theme, placed) if placed else ""

    @property
    def title(self) -> str:
        topic = "" if self.plan is None else self.plan.topic
        words = topic.partition(" ")[2] if topic.partition(" ")[0].lower() in ("a", "an", "some") else topic
        return f"{words[:1].upper()}{words[1:]}"

    def answered(self, seed: int, seconds: dict[str, float]) -> dict[str, Any]:
        """All that is answered of a page that is done, beside its HTML."""
        placed = self.placed
        findings = check_page(placed)
        assert self.plan is not None
        return {
            "title": self.title,
            "topic": self.plan.topic,
            "width": self.canvas.width,
            "height": sum(section.height for section in placed),
            "planned_by": self.planned_by,
            "sections": [
                _section(draft, section, top) for draft, section, top in zip(self.sections, placed, tops(placed), strict=True)
            ],
            "checks": findings,
            "passed": passed(findings),
            "degraded": [one.as_json() for one in self.degraded],
            "seconds": seconds,
            "seed": seed,
        }


def _section(draft: DraftSection, section: PlacedSection, top: float) -> dict[str, Any]:
    """Boxes are in CSS pixels from the page's top left corner."""
    return {
        "id": section.name,
        "kind": section.kind,
        "brief": section.brief,
        "style": str(draft.canvas.style),
        "y": top,
        "height": section.height,
        "written_by": draft.written_by,
        "drawn_by": draft.drawn_by,
        "grown": draft.grown,
        "elements": [
            {"id": part.id, "parent": part.parent, "class": str(part.kind), **box._replace(y=box.y + top)._asdict()}
            for part, box in zip(section.content.parts, section.boxes, strict=True)
        ],
        "pictures": [
            {"element": slot.part.id, "alt": slot.part.alt, "prompt": slot.prompt, "drawn": slot.png is not None}
            for slot in draft.slots
        ],
    }


def section_by_rules(planned: PlannedSection, topic: str) -> str:
    """HTML that says what should have been written."""
    tag = "footer" if planned.kind == "footer" else "section"
    title = planned.kind.replace("-", " ").capitalize()
    return f"<{tag}><h2>{escape(title)}</h2><p>{escape(topic[:1].upper() + topic[1:])}</p></{tag}>"


def done_of(sections: Sequence[DraftSection]) -> dict[str, dict[str, int]]:
    """How much of each stage is done, and of how much that is known of so far."""
    slots = [slot for section in sections for slot in section.slots]
    count = len(sections)
    return {
        Stage.PLAN: {"done": int(count > 0), "of": 1},
        Stage.SECTIONS: {"done": sum(section.content is not None for section in sections), "of": count},
        Stage.LAYOUTS: {"done": sum(section.boxes is not None for section in sections), "of": count},
        Stage.PICTURES: {"done": sum(slot.png is not None for slot in slots), "of": sum(bool(slot.prompt) for slot in slots)},
    }

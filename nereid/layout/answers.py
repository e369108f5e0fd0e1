"""Of drawn candidates, the best one, repaired and checked; and what is answered: plain Python for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from nereid.layout.checks import Finding, check_layout, score
from nereid.layout.elements import Box, Section
from nereid.layout.flow import flow_layout
from nereid.layout.formats import css, figma, height_of
from nereid.layout.picture import picture
from nereid.layout.repair import Move, repair


class DrawnBy(StrEnum):
    TRANSFORMER = "transformer"
    RULES = "rules"


class Reason(StrEnum):
    """Why an answer is worse than was asked for."""

    DEADLINE = "deadline"
    ENGINE = "engine"


@dataclass(frozen=True, slots=True)
class Degraded:
    """That an answer is worse than was asked for, in one sentence."""

    reason: Reason
    said: str


@dataclass(frozen=True, slots=True)
class Layout:
    """Boxes in the section's order, what repair has moved, and what the checks find after that."""

    boxes: list[Box]
    moves: tuple[Move, ...]
    findings: list[Finding]
    score: float
    seed: int
    drawn_by: DrawnBy


def best_of(section: Section, candidates: Sequence[tuple[int, list[Box]]]) -> Layout:
    """Of candidates, each a seed with its boxes as drawn, the one of the best score after repair; of equal ones the first."""
    return max((_finished(section, seed, boxes) for seed, boxes in candidates), key=lambda layout: layout.score)


def by_rules(section: Section, seed: int) -> Layout:
    """The rule-based layout, the same for every seed."""
    boxes = flow_layout(section)
    findings = check_layout(section, boxes)
    return Layout(boxes, (), findings, score(section, findings), seed, DrawnBy.RULES)


def _finished(section: Section, seed: int, drawn: list[Box]) -> Layout:
    repaired = repair(section, drawn)
    findings = check_layout(section, repaired.boxes)
    return Layout(repaired.boxes, repaired.moves, findings, score(section, findings), seed, DrawnBy.TRANSFORMER)


def placed(section: Section, boxes: Sequence[Box]) -> dict[str, Any]:
    """Canvas and elements of an answer, places and sizes in CSS pixels from the canvas' top left corner."""
    canvas = section.canvas
    return {
        "canvas": {
            "width": canvas.width,
            "height": height_of(boxes),
            "density": str(canvas.density),
            "columns": canvas.columns,
            "style": str(canvas.style),
        },
        "elements": [
            {
                "id": element.id,
                "parent": element.parent,
                "class": str(element.kind),
                "order": order,
                **box._asdict(),
                "fixed": [name for name, value in element.fixed._asdict().items() if value is not None],
            }
            for order, (element, box) in enumerate(zip(section.elements, boxes, strict=True))
        ],
    }


def answered(
    section: Section, layout: Layout, *, steps: int, width: str | None, degraded: Sequence[Degraded], form: str
) -> dict[str, Any]:
    """A whole answer; `width` is the transformer's, None where that has drawn nothing; `form` adds a member of that name where it
    is not json."""
    answer = {
        **placed(section, layout.boxes),
        "checks": [finding.as_json() for finding in layout.findings],
        "score": round(layout.score, 4),
        "repaired": [_rounded(move) for move in layout.moves],
        "seed": layout.seed,
        "drawn_by": str(layout.drawn_by),
        "steps": steps,
        "transformer_width": width,
        "degraded": [{"reason": str(one.reason), "said": one.said} for one in degraded],
    }
    match form:
        case "css":
            answer["css"] = css(section, layout.boxes)
        case "figma":
            answer["figma"] = figma(section, layout.boxes)
        case "svg":
            answer["svg"] = picture(section, layout.boxes, layout.findings)
    return answer


def _rounded(move: Move) -> dict[str, Any]:
    return {name: value if isinstance(value, str) else round(value, 2) for name, value in asdict(move).items()}

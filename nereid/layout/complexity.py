"""How much there is to lay out in a section, and how many steps that deserves: pure policy, calibrated by export."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nereid.diffusion.solvers import SchedulerName
from nereid.layout.elements import Section

NESTING = 2.0
"""Elements that a level of nesting counts as."""
CHARACTERS = 200.0
"""Characters of text that count as one element."""


def complexity(section: Section) -> float:
    """Elements, nesting and text as one number."""
    characters = sum(element.characters for element in section.elements)
    return len(section) + NESTING * max(section.depths) + characters / CHARACTERS


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveSteps:
    """Steps of one scheduler by complexity: `classes` are (complexity up to, steps), rising; the last has no bound."""

    scheduler: str
    classes: tuple[tuple[float, int], ...]

    def steps(self, section: Section) -> int:
        found = complexity(section)
        return next(steps for most, steps in self.classes if found <= most)

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> AdaptiveSteps:
        """What export's file has of it; raises ValueError where it is not what `nereid calibrate-layout` writes."""
        try:
            scheduler = str(SchedulerName(raw["scheduler"]))
            classes = [(math.inf if its["up_to"] is None else float(its["up_to"]), int(its["steps"])) for its in raw["classes"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"adaptive steps: they are none of nereid calibrate-layout's ({error!r}); calibrate again") from None
        bounds = [most for most, _ in classes]
        if not classes or bounds != sorted(set(bounds)) or bounds[-1] != math.inf or any(steps < 1 for _, steps in classes):
            raise ValueError(f"adaptive steps: classes {classes} are not allowed; calibrate again")
        return cls(scheduler=scheduler, classes=tuple(classes))


def classes_of(sections: Sequence[Section], count: int) -> list[float]:
    """Bounds of so many classes of about equal size, rising; the last is infinite. Fewer where sections are alike."""
    found = sorted(map(complexity, sections))
    inner = {found[round(len(found) * number / count) - 1] for number in range(1, count) if round(len(found) * number / count)}
    return [*sorted(inner - {found[-1]}), math.inf]

"""How much there is to lay out in a section, which steps and width that deserves: pure policy, calibrated by export."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nereid.diffusion.solvers import SchedulerName
from nereid.layout.elements import Section
from nereid_protocol.layout_fields import WIDTHS

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
    """Steps of one scheduler by complexity: `classes` are (complexity up to, steps), rising; the last has no bound.

    `dynamic` has for each class the steps with dynamic width, None where it has none that are good enough, and whether these take
    less time than the whole transformer's; it is empty where there are no slices.
    """

    scheduler: str
    classes: tuple[tuple[float, int], ...]
    dynamic: tuple[tuple[int | None, bool], ...] = ()

    def steps(self, section: Section, *, dynamic: bool = False) -> int:
        """With dynamic width, or without; those of the whole transformer where none were found for dynamic width."""
        place = self._class(section)
        own = self.dynamic[place][0] if dynamic and self.dynamic else None
        return self.classes[place][1] if own is None else own

    def prefers_dynamic(self, section: Section) -> bool:
        """Whether dynamic width is the quicker way for this section."""
        return bool(self.dynamic) and self.dynamic[self._class(section)][1]

    def _class(self, section: Section) -> int:
        found = complexity(section)
        return next(place for place, (most, _) in enumerate(self.classes) if found <= most)

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> AdaptiveSteps:
        """What export's file has of it; raises ValueError where it is not what `nereid calibrate-layout` writes."""
        try:
            scheduler = str(SchedulerName(raw["scheduler"]))
            classes = [(math.inf if its["up_to"] is None else float(its["up_to"]), int(its["steps"])) for its in raw["classes"]]
            dynamic = [_dynamic(its) for its in raw["classes"] if "dynamic_steps" in its]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"adaptive steps: they are none of nereid calibrate-layout's ({error!r}); calibrate again") from None
        bounds = [most for most, _ in classes]
        if not classes or bounds != sorted(set(bounds)) or bounds[-1] != math.inf or any(steps < 1 for _, steps in classes):
            raise ValueError(f"adaptive steps: classes {classes} are not allowed; calibrate again")
        wrong = any(prefers if steps is None else steps < 1 for steps, prefers in dynamic)
        if len(dynamic) not in (0, len(classes)) or wrong:
            raise ValueError(f"adaptive steps: dynamic width of classes {dynamic} is not allowed; calibrate again")
        return cls(scheduler=scheduler, classes=tuple(classes), dynamic=tuple(dynamic))


def _dynamic(raw: Mapping[str, Any]) -> tuple[int | None, bool]:
    """Of a class: its steps with dynamic width, and whether that is what it takes."""
    steps = raw["dynamic_steps"]
    return None if steps is None else int(steps), bool(WIDTHS.index(raw["width"]))


def classes_of(sections: Sequence[Section], count: int) -> list[float]:
    """Bounds of so many classes of about equal size, rising; the last is infinite. Fewer where sections are alike."""
    found = sorted(map(complexity, sections))
    inner = {found[round(len(found) * number / count) - 1] for number in range(1, count) if round(len(found) * number / count)}
    return [*sorted(inner - {found[-1]}), math.inf]

"""Pages from a brief, one after the other: when the first section can be seen, when all is there, what each stage takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nereid.serving.errors import ServingError
from nereid_bench.servers import serving
from nereid_client import PageProgress, PageResult
from nereid_export.configs import prefixed

Say = Callable[[str], None]

BRIEF = "landing page for a bakery with a gallery and prices"
FIRST = "s1"
"""The first section's id."""
STAGES = ("plan", "sections", "layouts", "pictures")
AIMS = {"first section": 1.0, "page": 10.0}
"""Seconds until a caller sees the first section, and has a page of as many sections and pictures as were asked for."""


class Pages(Protocol):
    """What streams pages: the SDK's client, or a test's."""

    def stream_page(self, brief: str, **options: Any) -> Iterator[PageProgress | PageResult]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PagesPlan:
    """So many pages of one brief, each with a seed of its own; `sections` and `pictures` are the most of each."""

    repository: Path
    name: str = ""
    brief: str = BRIEF
    count: int = 10
    sections: int = 4
    pictures: int = 3
    width: int = 1280


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """One page: seconds as its caller has waited them, and what the server says of it."""

    first: float
    whole: float
    made: PageResult

    @property
    def pictures(self) -> int:
        return sum(its["drawn"] for section in self.made.answer["sections"] for its in section["pictures"])

    def is_full(self, plan: PagesPlan) -> bool:
        """Whether it has as many sections and pictures as the aim is about, and nothing that was made by rules."""
        many = len(self.made.answer["sections"]) >= plan.sections and self.pictures >= plan.pictures
        return many and not self.made.degraded


def pages(plan: PagesPlan, say: Say) -> list[Taken]:
    """Of a server of its own, after a page that does not count; raises ServingError, NereidError."""
    if not (plan.repository / prefixed("page", plan.name)).is_dir():
        raise ServingError(f"--repository: {plan.repository} has no page; write one with `nereid export page`")
    with serving(plan.repository, plan.name) as (client, _):
        return measured(client, plan, say)


def measured(client: Pages, plan: PagesPlan, say: Say) -> list[Taken]:
    """The same of a client."""
    taken = []
    for number in range(-1, plan.count):
        say("a page that does not count" if number < 0 else f"page {number + 1} of {plan.count}")
        one = _taken(client, plan, seed=number + 1)
        if number >= 0:
            taken.append(one)
    return taken


def _taken(client: Pages, plan: PagesPlan, seed: int) -> Taken:
    asked = {"seed": seed, "sections": plan.sections, "pictures": plan.pictures, "width": plan.width}
    begun, first = time.perf_counter(), None
    for answer in client.stream_page(plan.brief, **asked):
        now = time.perf_counter() - begun
        if isinstance(answer, PageResult):
            return Taken(first=now if first is None else first, whole=now, made=answer)
        if first is None and FIRST in answer.visible:
            first = now
    raise ServingError("a stream has ended without a page")


def table(plan: PagesPlan, taken: Sequence[Taken]) -> list[dict[str, Any]]:
    """Seconds of callers, then those of stages as the server has them; `within` is the percent of pages that meet the aim."""
    full = [one for one in taken if one.is_full(plan)]
    rows = [
        _row("first section", [one.first for one in taken]),
        _row("page", [one.whole for one in full]),
    ]
    return rows + [_row(stage, [one.made.seconds[stage] for one in taken if stage in one.made.seconds]) for stage in STAGES]


def _row(what: str, seconds: Sequence[float]) -> dict[str, Any]:
    aim = AIMS.get(what)
    middle, late, worst = (float(np.percentile(seconds, share)) if seconds else None for share in (50, 95, 100))
    within = None if aim is None or not seconds else 100 * sum(its <= aim for its in seconds) / len(seconds)
    return {"what": what, "pages": len(seconds), "p50_s": middle, "p95_s": late, "worst_s": worst, "aim_s": aim, "within": within}


def verdict(plan: PagesPlan, taken: Sequence[Taken]) -> str:
    """What the pages are, in a sentence: seconds alone do not tell."""
    full, passed = sum(one.is_full(plan) for one in taken), sum(one.made.passed for one in taken)
    worse = sum(bool(one.made.degraded) for one in taken)
    return (
        f"of {len(taken)} pages {full} have {plan.sections} sections and {plan.pictures} pictures, {passed} pass all error "
        f"checks, {worse} have something that rules made"
    )

"""Scores plans of held-out briefs for fit and completeness, and pictures that pages ask for, by the shapes' own analyser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from nereid.page.pictures import PictureLanguage
from nereid.page.plan import asked_of_planner, plan_by_rules, written_plan
from nereid_zoo.page.plans import MOST_SECTIONS, PageBrief, mistakes, sample_page_brief
from nereid_zoo.sections.topics import TOPICS
from nereid_zoo.shapes.captions import Caption, Demand, ObjectDemand
from nereid_zoo.shapes.scenes import Layout, Shape, Size
from nereid_zoo.shapes.score import CHECKPOINT as SHAPES

CHECKPOINT = Path(__file__).resolve().parents[2] / "planner" / "checkpoint"
"""The trained planner, an ordinary transformers folder."""
PROMPTS = SHAPES.parent / "page-prompts.json"
"""The language that the painter of shapes is asked in."""

Write = Callable[[list[str]], Iterator[str]]
"""Answers to messages, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanScore:
    """How many plans were right; `wrong` holds a brief and its mistakes each."""

    planned: int
    right: int
    wrong: tuple[tuple[str, list[str]], ...]

    @property
    def percent(self) -> float:
        return 100 * self.right / self.planned


def held_out_pages(count: int, seed: int = 0) -> list[PageBrief]:
    """Briefs whose pair of intent and topic training has never seen."""
    rng = Random(seed)
    return [sample_page_brief(rng, held_out=True) for _ in range(count)]


def score_plans(write: Write, briefs: list[PageBrief], progress: Callable[[int], None] = lambda done: None) -> PlanScore:
    """Plan a page for every brief and compare; `write` is asked as a planner is."""
    wrong = []
    asked = [asked_of_planner(brief.text) for brief in briefs]
    for done, (text, brief) in enumerate(zip(write(asked), briefs, strict=True), 1):
        if found := mistakes(text, brief):
            wrong.append((brief.text, found))
        progress(done)
    return PlanScore(planned=len(briefs), right=len(briefs) - len(wrong), wrong=tuple(wrong))


def rules_planner(asked: list[str]) -> Iterator[str]:
    """What plans without a model, for comparison."""
    lead = asked_of_planner("")
    for message in asked:
        yield written_plan(plan_by_rules(message.removeprefix(lead), MOST_SECTIONS))


def page_language() -> PictureLanguage:
    return PictureLanguage.read(json.loads(PROMPTS.read_text(encoding="utf-8")))


def page_captions(count: int, seed: int = 0) -> list[Caption]:
    """What pages about random topics would ask pictures with, and what the analyser is to find in them."""
    rng, language = Random(seed), page_language()
    made = []
    for number in range(count):
        topic = rng.choice(TOPICS)
        text = language.prompt(rng.choice(topic.offers), f"a {topic.name}", number)
        made.append(Caption(text=text, demand=demand_of(text)))
    return made


def demand_of(prompt: str) -> Demand:
    """Of `a large red circle on a beige background`."""
    found = re.fullmatch(r"a (\w+) (\w+) (\w+) on a (\w+) background", prompt)
    if found is None:
        raise ValueError(f"{prompt!r} is not what {PROMPTS.name} asks for")
    size, color, shape, background = found.groups()
    wanted = ObjectDemand(color=color, shape=Shape(shape), size=Size(size), position=None)
    return Demand(objects=(wanted,), layout=Layout.SINGLE, background=background)

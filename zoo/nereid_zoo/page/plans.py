"""Briefs for whole pages in varied English, the plans that answer them, and the check of any other planner's plan; no model.

A page has an intent (to sell, to show work, to tell who one is, to help, to bring people to an event), from which follow the
sections that it usually has; a brief may ask for others, or for fewer. What a section is asked for with is a brief as the writer
of `sections` has learned them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from nereid.flow.errors import RequestError
from nereid.page.plan import MOST_SECTION_BRIEF, Plan, PlannedSection, read_plan, written_plan
from nereid_zoo.sections.briefs import COUNTS, ITEM_WORDS, KIND_WORDS, NUMBER_WORDS, Kind, invent_name
from nereid_zoo.sections.topics import BUTTON_LABELS, NAME_FIRST, NAME_SECOND, TOPICS, Topic

MOST_SECTIONS = 8


class Intent(StrEnum):
    """What a page is for."""

    SELL = "sell"
    SHOW = "show"
    TELL = "tell"
    HELP = "help"
    GATHER = "gather"


USUAL: dict[Intent, tuple[Kind, ...]] = {
    Intent.SELL: (Kind.FEATURES, Kind.PRICING, Kind.TESTIMONIALS, Kind.FAQ),
    Intent.SHOW: (Kind.GALLERY, Kind.STATS, Kind.TESTIMONIALS, Kind.CONTACT),
    Intent.TELL: (Kind.STATS, Kind.TEAM, Kind.GALLERY, Kind.CONTACT),
    Intent.HELP: (Kind.STEPS, Kind.FAQ, Kind.CONTACT),
    Intent.GATHER: (Kind.FEATURES, Kind.STEPS, Kind.GALLERY, Kind.NEWSLETTER),
}
"""Between hero and footer, in their order; a page has two to all of them."""

OPENINGS: dict[Intent, tuple[str, ...]] = {
    Intent.SELL: ("landing page", "sales page", "product page", "page that sells what we offer"),
    Intent.SHOW: ("portfolio page", "showcase page", "page that shows our work", "gallery page"),
    Intent.TELL: ("about page", "company page", "page about who we are", "team page"),
    Intent.HELP: ("help page", "support page", "page that answers questions", "guide page"),
    Intent.GATHER: ("event page", "launch page", "opening page", "page for our open day"),
}
ASKED: dict[Kind, tuple[str, ...]] = {
    Kind.FEATURES: ("what we offer", "our services", "features"),
    Kind.PRICING: ("prices", "a price table", "three tiers of prices"),
    Kind.TESTIMONIALS: ("reviews", "testimonials", "what customers say"),
    Kind.GALLERY: ("pictures", "a gallery", "photos"),
    Kind.FAQ: ("an FAQ", "questions and answers", "frequent questions"),
    Kind.CONTACT: ("a contact form", "a way to reach us", "contact"),
    Kind.TEAM: ("our team", "the people behind it", "the staff"),
    Kind.STATS: ("some numbers", "key figures", "statistics"),
    Kind.STEPS: ("how it works", "the steps", "a how-to"),
    Kind.NEWSLETTER: ("a newsletter", "a sign-up for news", "news by mail"),
}
"""How briefs ask for a section."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageDemand:
    """What a page's brief asks for. `asked` are sections it names, `without` those it does not want; `name` may be None."""

    intent: Intent
    topic: Topic
    name: str | None
    asked: tuple[Kind, ...]
    without: tuple[Kind, ...]
    short: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PageBrief:
    text: str
    demand: PageDemand


def is_held_out(intent: Intent, topic: Topic) -> bool:
    """A fixed eighth of all pairs of intent and topic, never trained on."""
    return hashlib.sha256(f"page/{intent}/{topic.name}".encode()).digest()[0] % 8 == 0


def sample_page_brief(rng: Random, *, held_out: bool = False, invented: float = 0.0) -> PageBrief:
    """A random brief whose pair of intent and topic is held out, or is not; `invented` names are of made-up words."""
    while True:
        intent, topic = rng.choice(tuple(Intent)), rng.choice(TOPICS)
        if is_held_out(intent, topic) is held_out:
            break
    others = [kind for kind in ASKED if kind not in USUAL[intent]]
    asked = tuple(rng.sample(list(ASKED), rng.choice((0, 0, 1, 1, 2, 3))))
    without = tuple(kind for kind in rng.sample(USUAL[intent], 1) if kind not in asked and rng.random() < 0.15)
    if not asked and rng.random() < 0.2:
        asked = (rng.choice(others),)
    name = None
    if rng.random() < 0.5:
        name = invent_name(rng) if rng.random() < invented else f"{rng.choice(NAME_FIRST)} {rng.choice(NAME_SECOND)}"
    demand = PageDemand(intent=intent, topic=topic, name=name, asked=asked, without=without, short=rng.random() < 0.15)
    return PageBrief(text=_write(demand, rng), demand=demand)


def _write(demand: PageDemand, rng: Random) -> str:
    opening = ("short " if demand.short else "") + rng.choice(OPENINGS[demand.intent])
    called = "" if demand.name is None else rng.choice((" called {}", " named {}", ' "{}"', ", {}")).format(demand.name)
    whose = f"{_article(demand.topic.name)} {demand.topic.name}{called}"
    text = rng.choice(
        (
            f"{opening} for {whose}",
            f"{opening} for {whose}",
            f"Make {_article(opening)} {opening} for {whose}",
            f"I need {_article(opening)} {opening} for my {demand.topic.name}{called}",
            f"{demand.topic.name}{called}: {opening}",
        )
    )
    clauses = []
    if demand.asked:
        wanted = [rng.choice(ASKED[kind]) for kind in demand.asked]
        clauses.append(rng.choice(("with {}", "and please add {}", "it should have {}")).format(_listed(wanted)))
    if demand.without:
        clauses.append(f"no {rng.choice(ASKED[demand.without[0]]).removeprefix('a ').removeprefix('an ').removeprefix('our ')}")
    return rng.choice((" ", ", ", ". ")).join([text, *clauses]) if clauses else text


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _article(words: str) -> str:
    return "an" if words[0] in "aeiouAEIO" else "a"


# --- the plan ---


def write_plan(demand: PageDemand, rng: Random) -> Plan:
    """A plan that meets the demand: an opening, what is usual or asked for in the order that pages have it, a footer."""
    usual = [kind for kind in USUAL[demand.intent] if kind not in demand.without]
    count = 1 if demand.short else rng.randint(2, len(usual))
    more = rng.sample(usual, min(count, len(usual)))
    chosen = list(dict.fromkeys([*demand.asked, *(() if demand.short else usual[:1]), *more]))[: MOST_SECTIONS - 2]
    order = [*USUAL[demand.intent], *(kind for kind in ASKED if kind not in USUAL[demand.intent])]
    last = (Kind.FAQ, Kind.NEWSLETTER, Kind.CONTACT)
    middle = sorted(chosen, key=lambda kind: (last.index(kind) + 1 if kind in last else 0, order.index(kind)))
    kinds = [Kind.HERO, *middle, Kind.FOOTER]
    label = rng.choice(BUTTON_LABELS)
    return Plan(tuple(PlannedSection(str(kind), _section_brief(kind, demand, label, rng)) for kind in kinds), demand.topic.name)


def _section_brief(kind: Kind, demand: PageDemand, label: str, rng: Random) -> str:
    called = "" if demand.name is None else f" called {demand.name}"
    text = f"{KIND_WORDS[kind][0]} for {_article(demand.topic.name)} {demand.topic.name}{called}"
    if kind in COUNTS:
        text += f", {NUMBER_WORDS[rng.choice(COUNTS[kind][:3])]} {ITEM_WORDS[kind][0]}"
    if kind in (Kind.HERO, Kind.CONTACT, Kind.NEWSLETTER):
        text += f', a "{label}" button'
    return text[:MOST_SECTION_BRIEF]


def plan_text(demand: PageDemand, rng: Random) -> str:
    """As a planner answers."""
    return written_plan(write_plan(demand, rng))


# --- the check ---


def mistakes(text: str, brief: PageBrief) -> list[str]:
    """What is wrong with a planner's answer, measured by its brief; empty where it fits and is complete."""
    demand = brief.demand
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        plan = read_plan(text, brief.text, len(lines) or 1)
    except RequestError as error:
        return [str(error)]
    kinds = [section.kind for section in plan.sections]
    found = [] if len(plan.sections) == len(lines) else ["a line that is no section, or stands there twice"]
    found += [f"{kind} is no kind of section" for kind in kinds if kind not in set(Kind)]
    found += [f"{kind} twice" for kind in dict.fromkeys(kinds) if kinds.count(kind) > 1]
    if kinds[0] != Kind.HERO or kinds[-1] != Kind.FOOTER:
        found.append(f"it begins with {kinds[0]} and ends with {kinds[-1]}")
    found += [f"no {kind}, which is asked for" for kind in demand.asked if kind not in kinds]
    found += [f"{kind}, which is not wanted" for kind in demand.without if kind in kinds]
    if not set(kinds) & {*USUAL[demand.intent], *demand.asked}:
        found.append(f"nothing that a page to {demand.intent} has")
    if not 3 <= len(kinds) <= (4 + len(demand.asked) if demand.short else MOST_SECTIONS):
        found.append(f"{len(kinds)} sections")
    for section in plan.sections:
        if section.kind in set(Kind) and not any(words in section.brief for words in KIND_WORDS[Kind(section.kind)]):
            found.append(f"the brief of {section.kind} does not ask for one")
        if demand.topic.name not in section.brief:
            found.append(f"the brief of {section.kind} does not name the {demand.topic.name}")
        if demand.name and demand.name not in section.brief:
            found.append(f"the brief of {section.kind} does not name {demand.name}")
    return found

"""What a page consists of: sections in order, each with a kind and a brief of its own; asked for, read, and made by rules.

A planner answers a line for each section, `kind: brief`. Kinds are words, for people and for the check; what is written follows
from the brief.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nereid.flow.errors import EngineError
from nereid.layout.canvas import Style
from nereid.page.text import clean

MOST_BRIEF = 2000
"""Characters of a page's brief."""
MOST_SECTION_BRIEF = 200
MOST_TOPIC = 80
PLAN_GRAMMAR = r"""
start: line{2,12}
line: KIND ": " BRIEF "\n"
KIND: /[a-z][a-z-]{2,19}/
BRIEF: /[^\n\r\t<>&|]{8,200}/
"""
"""Lark: what a planner may answer."""
_ASKED = "Plan a page: {brief}"
_FOR = re.compile(r"[^,\"]{0,60}?\bfor ([^,\"]+)")
_LINE = re.compile(r"([a-z][a-z-]{2,19}): (\S.{7,199})")


@dataclass(frozen=True, slots=True)
class PlannedSection:
    kind: str
    brief: str


@dataclass(frozen=True, slots=True)
class Plan:
    """`topic` is what the page is about, for pictures and for what is made by rules."""

    sections: tuple[PlannedSection, ...]
    topic: str


def asked_of_planner(brief: str) -> str:
    """A page's brief as the planner was taught to read it."""
    return _ASKED.format(brief=brief)


def read_plan(text: str, brief: str, most: int) -> Plan:
    """A planner's answer, at most `most` sections of it; raises EngineError where it has not two that can be read."""
    topic = topic_of(brief)
    matches = filter(None, (_LINE.fullmatch(line.strip()) for line in text.splitlines()))
    found = [PlannedSection(match[1], _about(clean(match[2]), brief, topic)) for match in matches]
    once = list(dict.fromkeys(found))[:most]
    if len(once) < min(2, most):
        raise EngineError(f"the planner has answered {len(once)} sections that can be read; there must be 2 at least")
    return Plan(tuple(once), topic)


def _about(said: str, brief: str, topic: str) -> str:
    """A section's brief about the page's topic, where a planner has it be for what the page's brief does not name."""
    found = _FOR.match(said)
    if found is None or _words(found[1]) <= _words(brief) | _words(topic):
        return said
    return f"{said[: found.start(1)]}{topic}{said[found.end(1) :]}"[:MOST_SECTION_BRIEF].rstrip()


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower())) - {"a", "an", "some", "called"}


def written_plan(plan: Plan) -> str:
    """As a planner answers it."""
    return "".join(f"{section.kind}: {section.brief}\n" for section in plan.sections)


# --- by rules ---

_BEGINNING = re.compile(
    r"^(?:please\s+)?(?:(?:make|build|create|write|design|plan|i need|i want|we need)\s+)?(?:me\s+)?(?:an?\s+|the\s+|my\s+)?"
    r"(?:[\w-]+\s+){0,3}?(?:website|web site|site|homepage|home page|webpage|web page|page)\s+(?:for|about|of)\s+",
    re.IGNORECASE,
)
_ENDING = re.compile(r"\s+with\s+|\s*[,;:.!?(]\s*|\s+and\s+(?:an?|the|some)\s+|\s+that\s+", re.IGNORECASE)
_NAMED = re.compile(
    r"(?:,?\s+(?:called|named)\s+)?[\"“]([^\"”]{1,40})[\"”]|,?\s+(?:called|named)\s+([A-Z]\w*(?:[ '-][A-Z]\w*){0,3})"
)
_WORDS: dict[str, str] = {
    "features": r"features?|offers?|services?|products?",
    "gallery": r"galler(?:y|ies)|photos?|pictures?|images?",
    "pricing": r"pric(?:e|es|ing)|tiers?|plans?|cost",
    "testimonials": r"testimonials?|reviews?|quotes?|voices",
    "team": r"team|people|staff|members",
    "stats": r"stats|statistics|numbers|figures",
    "steps": r"steps|how it works|process",
    "faq": r"faq|questions",
    "newsletter": r"newsletter|news",
    "contact": r"contact|form|write to us",
}
"""Kinds in the order that pages have them, and the words that ask for one."""
_BRIEFS: dict[str, str] = {
    "hero": "hero section for {topic}, a call to action",
    "features": "features section for {topic}, three cards",
    "gallery": "gallery section for {topic}, three pictures",
    "pricing": "pricing section for {topic}, three tiers",
    "testimonials": "testimonials section for {topic}, three quotes",
    "team": "team section for {topic}, three people",
    "stats": "stats section for {topic}, three numbers",
    "steps": "how-it-works section for {topic}, three steps",
    "faq": "FAQ section for {topic}, three questions",
    "newsletter": "newsletter section for {topic}, a button",
    "contact": "contact section for {topic}, three fields",
    "footer": "footer for {topic}, four links",
}


def plan_by_rules(brief: str, most: int) -> Plan:
    """What a brief names, between an opening and a footer; features and a gallery where it names nothing. At most `most`."""
    topic = topic_of(brief)
    rest = brief.lower()
    named = [kind for kind, words in _WORDS.items() if re.search(rf"\b(?:{words})\b", rest)]
    middle = named or ["features", "gallery"]
    kinds = ["hero", *middle[: max(0, most - 2)], "footer"][:most]
    return Plan(tuple(PlannedSection(kind, _BRIEFS[kind].format(topic=topic)) for kind in kinds), topic)


def topic_of(brief: str) -> str:
    """`a bakery called Golden Lane` of `landing page for a bakery called Golden Lane, with prices`."""
    rest = _BEGINNING.sub("", brief)
    name = _NAMED.search(rest)
    if name is not None:
        rest = rest[: name.start()] + rest[name.end() :]
    said = _ENDING.split(rest, maxsplit=1)[0].strip(" \"“”'")[:MOST_TOPIC].strip() or brief[:MOST_TOPIC]
    said = re.sub(r"^(?:my|our|your|the)\s+", lambda _: "", said, flags=re.IGNORECASE)
    if not re.match(r"(?:an?|some)\s", said, re.IGNORECASE):
        said = f"{'an' if said[:1].lower() in 'aeio' else 'a'} {said}"
    return f"{said} called {name[1] or name[2]}" if name is not None else said


# --- how a section is arranged ---

_STYLES = {
    "hero": Style.CENTERED,
    "newsletter": Style.CENTERED,
    "contact": Style.SPLIT,
    "faq": Style.SIDEBAR,
    "stats": Style.GRID,
    "team": Style.GRID,
    "footer": Style.STACKED,
}


def style_for(kind: str) -> Style:
    """The canvas' style of a kind; cards where it has none of its own."""
    return _STYLES.get(kind, Style.CARDS)

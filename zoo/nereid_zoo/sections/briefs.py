"""One-line design briefs in varied English, and what each demands of a section; knows nothing of HTML or models."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from nereid_zoo.sections.topics import BUTTON_LABELS, NAME_FIRST, NAME_SECOND, TOPICS, Topic


class Kind(StrEnum):
    """The sections there are; also the class of the section's root element."""

    HERO = "hero"
    FEATURES = "features"
    PRICING = "pricing"
    TESTIMONIALS = "testimonials"
    GALLERY = "gallery"
    FAQ = "faq"
    FOOTER = "footer"
    CONTACT = "contact"
    TEAM = "team"
    STATS = "stats"
    STEPS = "steps"
    NEWSLETTER = "newsletter"


KIND_WORDS: dict[Kind, tuple[str, ...]] = {
    Kind.HERO: ("hero section", "hero", "landing header"),
    Kind.FEATURES: ("features section", "feature list", "features"),
    Kind.PRICING: ("pricing section", "price table", "pricing"),
    Kind.TESTIMONIALS: ("testimonials section", "testimonials", "customer voices"),
    Kind.GALLERY: ("gallery section", "image gallery", "gallery"),
    Kind.FAQ: ("FAQ section", "FAQ", "questions and answers"),
    Kind.FOOTER: ("footer", "page footer", "site footer"),
    Kind.CONTACT: ("contact section", "contact form", "contact"),
    Kind.TEAM: ("team section", "team page", "people section"),
    Kind.STATS: ("stats section", "numbers section", "key figures"),
    Kind.STEPS: ("how-it-works section", "steps section", "process section"),
    Kind.NEWSLETTER: ("newsletter section", "newsletter sign-up", "newsletter box"),
}

ITEM_WORDS: dict[Kind, tuple[str, ...]] = {
    Kind.FEATURES: ("features", "cards", "points"),
    Kind.PRICING: ("tiers", "plans", "prices"),
    Kind.TESTIMONIALS: ("quotes", "testimonials", "voices"),
    Kind.GALLERY: ("pictures", "images", "photos"),
    Kind.FAQ: ("questions", "entries"),
    Kind.FOOTER: ("links",),
    Kind.CONTACT: ("fields", "inputs"),
    Kind.TEAM: ("people", "members"),
    Kind.STATS: ("numbers", "figures"),
    Kind.STEPS: ("steps",),
}
"""Kinds that hold countable items, and what briefs call them."""

COUNTS: dict[Kind, tuple[int, ...]] = {
    Kind.FEATURES: (2, 3, 4, 5, 6),
    Kind.PRICING: (2, 3, 4),
    Kind.TESTIMONIALS: (2, 3, 4),
    Kind.GALLERY: (3, 4, 5, 6),
    Kind.FAQ: (2, 3, 4, 5),
    Kind.FOOTER: (3, 4, 5, 6),
    Kind.CONTACT: (2, 3, 4),
    Kind.TEAM: (2, 3, 4, 5),
    Kind.STATS: (2, 3, 4),
    Kind.STEPS: (3, 4, 5),
}

MOST_BUTTONS: dict[Kind, int] = {Kind.HERO: 2, Kind.FOOTER: 0, Kind.GALLERY: 1}
"""How many buttons a brief may ask for; 1 where nothing is said here."""

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a brief asks for. `count` and `name` are None where it does not say; `any_button` wants one with any label."""

    kind: Kind
    topic: Topic
    count: int | None
    buttons: tuple[str, ...]
    any_button: bool
    name: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Brief:
    text: str
    demand: Demand


def is_held_out(kind: Kind, topic: Topic) -> bool:
    """A fixed eighth of all pairs of kind and topic, never trained on."""
    return hashlib.sha256(f"{kind}/{topic.name}".encode()).digest()[0] % 8 == 0


def sample_brief(
    rng: Random,
    *,
    held_out: bool = False,
    kinds: tuple[Kind, ...] = tuple(Kind),
    name_chance: float = 0.4,
    invented: float = 0.0,
) -> Brief:
    """A random brief for one of `kinds` whose pair of kind and topic is held out, or is not.

    `name_chance` is how often it gives a business name, `invented` how often that name, or a button's label, is of made-up
    words instead of the usual ones: whoever has seen those must copy, for there is nothing to guess.
    """
    while True:
        kind, topic = rng.choice(kinds), rng.choice(TOPICS)
        if is_held_out(kind, topic) is held_out:
            break
    most = MOST_BUTTONS.get(kind, 1)
    wanted = rng.choice((0, 1, 1, most)) if most else 0
    named = wanted > 0 and rng.random() < 0.7
    count = rng.choice(COUNTS[kind]) if kind in COUNTS and rng.random() < 0.85 else None
    buttons = tuple(rng.sample(BUTTON_LABELS, wanted)) if named else ()
    name = f"{rng.choice(NAME_FIRST)} {rng.choice(NAME_SECOND)}" if rng.random() < name_chance else None
    if invented and name and rng.random() < invented:
        name = invent_name(rng)
    if invented and buttons and rng.random() < invented:
        buttons = tuple(invent_name(rng).capitalize() for _ in buttons)
    demand = Demand(
        kind=kind,
        topic=topic,
        count=count,
        buttons=buttons,
        any_button=wanted == 1 and not named,
        name=name,
    )
    return Brief(text=write_brief(demand, rng), demand=demand)


def invent_name(rng: Random) -> str:
    """One to three capitalised words of two syllables that mean nothing."""

    def syllable() -> str:
        return rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") + rng.choice(("", "", "n", "r", "l", "s"))

    return " ".join((syllable() + syllable()).capitalize() for _ in range(rng.randint(1, 3)))


def write_brief(demand: Demand, rng: Random) -> str:
    """Say the demand in one line."""
    kind = rng.choice(KIND_WORDS[demand.kind])
    name = "" if demand.name is None else rng.choice((" called {}", " named {}", ' "{}"', ", {}")).format(demand.name)
    clauses = [clause for clause in (_count_clause(demand, rng), _button_clause(demand, rng)) if clause]
    rng.shuffle(clauses)
    topic = f"{_article(demand.topic.name)} {demand.topic.name}"
    opening = rng.choice(
        (
            f"{kind} for {topic}{name}",
            f"{kind} for {topic}{name}",
            f"Make {_article(kind)} {kind} for {topic}{name}",
            f"I need {_article(kind)} {kind} for {topic}{name}",
            f"Write {_article(kind)} {kind} for my {demand.topic.name}{name}",
            f"{demand.topic.name}{name}: {kind}",
        )
    )
    joint = rng.choice((", ", ", ", " with ", ". Please add "))
    text = opening if not clauses else opening + joint + rng.choice((", ", " and ")).join(clauses)
    return text if rng.random() < 0.5 else text[0].upper() + text[1:]


def _article(words: str) -> str:
    return "an" if words[0] in "aeiouAEIOUF" and not words.startswith(("u",)) else "a"


def _count_clause(demand: Demand, rng: Random) -> str:
    if demand.count is None:
        return ""
    number = NUMBER_WORDS[demand.count] if rng.random() < 0.7 else str(demand.count)
    return f"{number} {rng.choice(ITEM_WORDS[demand.kind])}"


def _button_clause(demand: Demand, rng: Random) -> str:
    if demand.any_button:
        return rng.choice(("a call to action", "a button", "one button"))
    quoted = [f'"{label}"' for label in demand.buttons]
    match quoted:
        case [one]:
            return rng.choice((f"a {one} button", f"a button {one}", f"a call to action saying {one}"))
        case [one, other]:
            return rng.choice((f"buttons {one} and {other}", f"two buttons {one} and {other}"))
    return ""

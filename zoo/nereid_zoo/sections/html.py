"""The HTML of a section: what a brief's author would have written, and the check of any other author's work."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from random import Random

from nereid_zoo.sections.briefs import COUNTS, Demand, Kind
from nereid_zoo.sections.topics import ADJECTIVES, BUTTON_LABELS, FIELDS, FIRST_NAMES, PLACES, ROLES, TIERS, Topic

VOID_TAGS = frozenset({"img", "input", "br"})
ALLOWED_TAGS = VOID_TAGS | frozenset(
    "section footer h1 h2 h3 p ul ol li a div blockquote cite figure figcaption".split()
    + "details summary nav form label button span".split()
)
ITEM_TAGS: dict[Kind, str] = {
    Kind.FEATURES: "div.feature",
    Kind.PRICING: "div.tier",
    Kind.TESTIMONIALS: "blockquote",
    Kind.GALLERY: "figure",
    Kind.FAQ: "details",
    Kind.FOOTER: "a.link",
    Kind.CONTACT: "label",
    Kind.TEAM: "div.member",
    Kind.STATS: "div.stat",
    Kind.STEPS: "li",
}
"""What counts as one item of each kind: a tag, with its class where a tag alone does not tell."""


def write_section(demand: Demand, rng: Random) -> str:
    """A section that meets the demand, indented by two spaces."""
    count = demand.count or rng.choice(COUNTS.get(demand.kind, (0,)))
    labels = list(demand.buttons) or ([rng.choice(BUTTON_LABELS)] if demand.any_button else [])
    lines = _BODIES[demand.kind](demand.topic, count, labels, rng)
    tag = "footer" if demand.kind is Kind.FOOTER else "section"
    inner = [*_heading(demand, rng), *lines]
    return "\n".join([f'<{tag} class="{demand.kind}">', *(f"  {line}" for line in inner), f"</{tag}>"])


def _heading(demand: Demand, rng: Random) -> list[str]:
    topic = demand.topic
    title = {
        Kind.HERO: f"{topic.offers[rng.randrange(3)]} and more".capitalize(),
        Kind.FEATURES: f"Why {topic.people} choose us",
        Kind.PRICING: "Prices",
        Kind.TESTIMONIALS: f"What our {topic.people} say",
        Kind.GALLERY: "A look inside",
        Kind.FAQ: "Questions and answers",
        Kind.FOOTER: "Find us",
        Kind.CONTACT: "Write to us",
        Kind.TEAM: "Meet the team",
        Kind.STATS: "In numbers",
        Kind.STEPS: "How it works",
        Kind.NEWSLETTER: "News by mail",
    }[demand.kind]
    tag = "h1" if demand.kind is Kind.HERO else "h2"
    whose = f"Welcome to {demand.name}, your" if demand.name else "Your"
    return [f"<{tag}>{title}</{tag}>", f"<p>{whose} {rng.choice(ADJECTIVES)} {topic.name}</p>"]


def _button(label: str) -> str:
    return f'<a class="button" href="#">{label}</a>'


def _offers(topic: Topic, count: int, rng: Random) -> list[str]:
    return rng.sample(topic.offers, count)


def _hero(topic: Topic, count: int, labels: list[str], rng: Random) -> list[str]:
    one, other = _offers(topic, 2, rng)
    return [f"<p>{one.capitalize()} and {other} for all our {topic.people}.</p>", *map(_button, labels)]


def _features(topic: Topic, count: int, labels: list[str], rng: Random) -> list[str]:
    lines = []
    for offer in _offers(topic, count, rng):
        lines += [
            '<div class="feature">',
            f"  <h3>{offer.capitalize()}</h3>",
            f"  <p>{rng.choice(ADJECTIVES).capitalize()} {offer} for {topic.people}.</p>",
            "</div>",
        ]
    return lines + [_button(label) for label in labels]


def _pricing(topic: Topic, count: int, labels: list[str], rng: Random) -> list[str]:
    lines = []
    price = rng.randrange(5, 20)
    for tier in TIERS[:count]:
        lines += ['<div class="tier">', f"  <h3>{tier}</h3>", f"  <p>${price} a month</p>", "  <ul>"]
        lines += [f"    <li>{offer.capitalize()}</li>" for offer in _offers(topic, 2, rng)]
        lines += ["  </ul>", *(f"  {_button(label)}" for label in labels), "</div>"]
        price *= 2
    return lines


def _testimonials(topic: Topic, count: int, labels: list[str], rng: Random) -> list[str]:
    lines = []
    for name, offer in zip(rng.sample(FIRST_NAMES, count), _offers(topic, count, rng), strict=True):
        lines += [
            "<blockquote>",
            f"  <p>{rng.choice(ADJECTIVES).capitalize()} {offer}!</p>",
            f"  <cite>{name}</cite>",
            "</blockquote>",
        ]
    return lines + [_button(label) for label in labels]


def _gallery(topic: Topic, count: int, labels: list[str], rng: Random) -> list[str]:
    lines = []
    for number, offer in enumerate(_offers(topic, count, rng), 1):
        lines += [
            "<figure>",
            f'  <img src="image-{number}.jpg" alt="{offer}">',
            f"  <figcaption>{offer.capitalize()}</figcaption>",
            "</figure>",
        ]
    return lines + [_button(label) for label in labels]


def _faq(topic: Topic, count: int, labels: list[str], rng: Random) -> list[str]:
    lines = []
    asked = ("Do you offer {}?", "How do I book {}?", "What do {} cost?", "When can I get {}?")
    for offer in _offers(topic, count, rng):
        lines += [
            "<details>",
            f"  <summary>{rng.choice(asked).format(offer)}</summary>",
            f"  <p>Ask our {rng.choice(ADJECTIVES)} team about {offer}.</p>",
            "</details>",
        ]
    return lines + [_button(label) for label in labels]


def _footer(topic: Topic, count: int, labels: list[str], rng: Random) -> list[str]:
    links = [f'  <a class="link" href="#">{place}</a>' for place in rng.sample(PLACES, count)]
    return ["<nav>", *links, "</nav>", f"<p>{' and '.join(_offers(topic, 2, rng)).capitalize()}.</p>"]


def _contact(topic: Topic, count: int, labels: list[str], rng: Random) -> list[str]:
    lines = [f"<p>Ask us about {rng.choice(topic.offers)}.</p>", "<form>"]
    for name in rng.sample(FIELDS, count):
        lines.append(f'  <label>{name} <input name="{name.lower()}"></label>')
    return [*lines, *(f'  <button class="button">{label}</button>' for label in labels), "</form>"]


def _team(topic: Topic, count: int, labels: list[str], rng: Random) -> list[str]:
    lines = []
    for name, offer in zip(rng.sample(FIRST_NAMES, count), _offers(topic, count, rng), strict=True):
        lines += ['<div class="member">', f"  <h3>{name}</h3>", f"  <p>{rng.choice(ROLES)}, {offer}</p>", "</div>"]
    return lines + [_button(label) for label in labels]


def _stats(topic: Topic, count: int, labels: list[str], rng: Random) -> list[str]:
    lines = []
    for what in (topic.people, *_offers(topic, count - 1, rng)):
        lines += ['<div class="stat">', f"  <span>{rng.randrange(2, 90) * 10}</span>", f"  <p>{what.capitalize()}</p>", "</div>"]
    return lines + [_button(label) for label in labels]


def _steps(topic: Topic, count: int, labels: list[str], rng: Random) -> list[str]:
    actions = ("Choose {}", "Ask about {}", "Book {}", "Enjoy {}", "Tell friends about {}")
    chosen = _offers(topic, count, rng)
    items = [f"  <li>{action.format(offer)}</li>" for action, offer in zip(actions, chosen, strict=False)]
    return ["<ol>", *items, "</ol>", *map(_button, labels)]


def _newsletter(topic: Topic, count: int, labels: list[str], rng: Random) -> list[str]:
    one, other = _offers(topic, 2, rng)
    lines = [f"<p>News about {one} and {other}.</p>", "<form>", '  <label>Email <input name="email"></label>']
    return [*lines, *(f'  <button class="button">{label}</button>' for label in labels), "</form>"]


_BODIES = {
    Kind.HERO: _hero,
    Kind.FEATURES: _features,
    Kind.PRICING: _pricing,
    Kind.TESTIMONIALS: _testimonials,
    Kind.GALLERY: _gallery,
    Kind.FAQ: _faq,
    Kind.FOOTER: _footer,
    Kind.CONTACT: _contact,
    Kind.TEAM: _team,
    Kind.STATS: _stats,
    Kind.STEPS: _steps,
    Kind.NEWSLETTER: _newsletter,
}


# --- the check ---


@dataclass(slots=True)
class _Element:
    tag: str
    classes: tuple[str, ...]
    text: str = ""


@dataclass(slots=True)
class _Page:
    elements: list[_Element] = field(default_factory=list)
    text: str = ""
    faults: list[str] = field(default_factory=list)
    roots: list[_Element] = field(default_factory=list)


class _Reader(HTMLParser):
    """Every tag must be allowed, and closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.page = _Page()
        self._open: list[_Element] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ALLOWED_TAGS:
            self.page.faults.append(f"<{tag}> is not allowed")
        element = _Element(tag, tuple((dict(attrs).get("class") or "").split()))
        self.page.elements.append(element)
        if not self._open:
            self.page.roots.append(element)
        if tag not in VOID_TAGS:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1].tag != tag:
            self.page.faults.append(f"</{tag}> closes nothing")
        else:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        self.page.text += data
        if not self._open and data.strip():
            self.page.faults.append("text outside the section")
        for element in self._open:
            element.text += data

    def finish(self) -> _Page:
        self.close()
        self.page.faults += [f"<{element.tag}> is not closed" for element in self._open]
        return self.page


def mistakes(html: str, demand: Demand) -> list[str]:
    """What is wrong with a section, measured by its brief; empty when it is right."""
    reader = _Reader()
    reader.feed(html)
    page = reader.finish()
    found = list(page.faults)
    roots = [(root.tag, root.classes) for root in page.roots]
    wanted = ("footer" if demand.kind is Kind.FOOTER else "section", (str(demand.kind),))
    if roots != [wanted]:
        found.append(f"the root is {roots}, not {wanted}")
    if demand.kind in ITEM_TAGS:
        items = _count(page, ITEM_TAGS[demand.kind])
        if (items != demand.count) if demand.count else items == 0:
            found.append(f"{items} items, not {demand.count or 'some'}")
    buttons = [element.text.strip() for element in page.elements if "button" in element.classes]
    found += [f'no button "{label}"' for label in demand.buttons if label not in buttons]
    if demand.any_button and not any(buttons):
        found.append("no button")
    text = page.text.lower()
    if demand.topic.name not in text:
        found.append(f"the {demand.topic.name} is not named")
    if not any(offer in text for offer in (*demand.topic.offers, demand.topic.people)):
        found.append("nothing of what it offers")
    if demand.name and demand.name not in page.text:
        found.append(f"{demand.name} is not named")
    return found


def _count(page: _Page, selector: str) -> int:
    tag, _, name = selector.partition(".")
    return sum(element.tag == tag and (not name or name in element.classes) for element in page.elements)

"""Answers that documents show have the members of real ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drawing import Straight, ask, serving

from nereid.layout.elements import Box

from page_forms import make
from sections import two_cards

DOCS = Path(__file__).parents[1] / "docs"
CARDS, BOXES = two_cards()
FREE = ("grown",)
"""Objects whose members are names that callers, or models, have chosen."""


def shown(document: str) -> list[Any]:
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", (DOCS / document).read_text(), re.DOTALL)]


def members(value: Any, path: str = "") -> Iterator[str]:
    """Names of members, with those that they lie in; items of a list are of one kind."""
    if isinstance(value, dict) and not path.endswith(FREE):
        for name, inner in value.items():
            yield f"{path}.{name}"
            yield from members(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for item in value:
            yield from members(item, f"{path}[]")


def test_a_pages_answer_and_its_progress() -> None:
    answered, progress = shown("page.md")
    assert {*members(answered)} == {*members(make().facts)}
    assert {*members(progress)} == {*members(make(stream_interval=1).shown[-1].facts)}


def test_a_layouts_answer() -> None:
    moved: list[Box] = [box._replace(x=box.x + 3) if place == 1 else box for place, box in enumerate(BOXES)]
    small = [{"id": "a", "class": "heading", "text": "Bread", "fixed": {"x": 0, "y": 0, "width": 8, "height": 8}}]
    elements = [
        {"id": item.id, "class": str(item.kind), "parent": item.parent, "characters": item.characters} for item in CARDS.elements
    ]
    with serving(Straight(lambda tokens: moved)) as service:
        found = {*members(ask(service, elements, 1280).layout), *members(ask(service, small, 1280).layout)}
    (answered,) = shown("layout.md")
    assert {*members(answered)} == found

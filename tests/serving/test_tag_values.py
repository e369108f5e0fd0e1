"""Values in tags by schemas that lead back to themselves, or nowhere: they are read at once, whatever their references."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from nereid.serving.gateway.nested_values import nested_value
from nereid.serving.gateway.tag_values import json_of, resolved

from own_time import own_seconds


class Definitions(dict[str, Any]):
    """Counts how often something of them is looked at."""

    looks = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.looks += 1
        return super().get(key, default)


@pytest.mark.parametrize("word", ["anyOf", "oneOf", "allOf"])
@pytest.mark.parametrize("read", [json_of, lambda text, schema, root: nested_value(text, "|", schema, root)])
def test_references_that_lead_back_are_followed_once(read: Callable[..., str], word: str) -> None:
    """Each way would be gone twice at each level."""
    back = {"$ref": "#/$defs/a"}
    root = {"$defs": Definitions(a={"type": ["integer", "null"], word: [back] * 2})}
    assert read("1", back, root) == "1"
    assert root["$defs"].looks < 20


def test_a_reference_allows_what_it_leads_to() -> None:
    root = {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}, {"$ref": "#/$defs/a"}]}, "b": {"type": "string"}}}
    assert json_of("1", {"$ref": "#/$defs/a"}, root) == '"1"'
    assert json_of("1", {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "integer"}]}, root) == "1"


@pytest.mark.parametrize("place", ["2", "9" * 5000, "-1", "01", "\u0661", "x", ""])
def test_a_reference_to_no_place_of_a_list_leads_nowhere(place: str) -> None:
    root = {"prefixItems": [{"type": "null"}, {"type": "string"}]}
    assert resolved(f"#/prefixItems/{place}/a", root) is True
    assert resolved("#/prefixItems/1", root) == {"type": "string"}


@pytest.mark.parametrize(("text", "written"), [("007", "7"), (" -007 ", "-7"), ("000", "0"), ("1.5.2", '"1.5.2"')])
def test_a_number_may_have_zeros_before_it(text: str, written: str) -> None:
    assert json_of(text, {"type": "number"}, {}) == written


def test_zeros_before_what_is_no_number_are_looked_at_once() -> None:
    zeros, made = "0" * 20_000 + "x", list[str]()
    assert own_seconds(lambda: made.append(json_of(zeros, {"type": "number"}, {}))) < 3
    assert made == [json.dumps(zeros)]

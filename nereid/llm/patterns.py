"""Regular expressions as answers are bound by them, before a grammar is made of them; knows no request and no tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher

from nereid.llm.json_schemas import parts

_REASON = "error: "
_LONGEST_REASON = 300
_DEFINITIONS = ("$defs", "definitions")
_SHORT = 1000
"""Characters of an expression that is kept: agents send the same ones with every turn, and few are longer."""


def fault_of_pattern(pattern: str) -> str | None:
    """Why no text can be bound to it; None where one can. It is read, and nothing is made of it: that is quick for any."""
    return _fault_kept(pattern) if len(pattern) <= _SHORT else _fault(pattern)


@lru_cache(maxsize=4096)
def _fault_kept(pattern: str) -> str | None:
    return _fault(pattern)


def _fault(pattern: str) -> str | None:
    grammar = LLMatcher.grammar_from_json_schema(json.dumps({"type": "string", "pattern": pattern}))
    fault: str = LLMatcher.validate_grammar(grammar, None)
    if not fault:
        return None
    first, *rest = fault.splitlines()
    reason = next((line.removeprefix(_REASON) for line in rest if line.startswith(_REASON)), first)
    return reason[:_LONGEST_REASON]


def patterns(schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Those that bind texts or names in a schema, with the paths to them; in definitions, where something refers to them."""
    yield from _patterns(schema, frozenset(_referred(schema)))


def _patterns(schema: Any, referred: frozenset[str]) -> Iterator[tuple[str, str]]:
    if not isinstance(schema, Mapping):
        return
    kinds = schema.get("type", "string")
    if isinstance(schema.get("pattern"), str) and (kinds == "string" or "string" in kinds):
        yield "pattern", schema["pattern"]
    if isinstance(schema.get("patternProperties"), Mapping):
        yield from (("patternProperties", pattern) for pattern in schema["patternProperties"])
    for path, part in parts(schema):
        word, _, name = path.partition(".")
        if word not in _DEFINITIONS or name in referred:
            yield from ((f"{path}.{inner}", pattern) for inner, pattern in _patterns(part, referred))


def _referred(schema: Any) -> Iterator[str]:
    """The last names of all references."""
    if isinstance(schema, Mapping):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"].rpartition("/")[2]
        for _, part in parts(schema):
            yield from _referred(part)

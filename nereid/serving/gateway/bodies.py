"""A request's body: read, decoded, checked for text that is none, and made a schema's object; knows no route and no model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request

from nereid.serving.gateway.errors import ApiError, caller_gone
from nereid.serving.gateway.nesting import levels
from nereid.serving.gateway.problems import refusal, unknown_fields

B = TypeVar("B", bound=BaseModel)

MOST_LEVELS = 128
"""Of a body's objects and arrays in each other: what reads them further on goes down by recursion, each to a depth of its own."""
MOST_MEMBERS = 50_000
"""Of all of a body's objects together, and the objects themselves: each may be wrong, and take time to be told so."""
MOST_PROBLEMS = 1000
"""That are looked at; a lenient gateway leaves out no more."""
_MAY_OVERFLOW = re.compile(r"[0-9][eE]|(?<![0-9])[0-9]{309}")
"""Where a number may be larger than any that a float holds."""
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a pair: no character, which can be sent and kept nowhere."""


_MOST_LOOKS = 20
"""At a body for what nobody knows: of some objects one member is found at a time."""
IGNORED = "ignored_fields"
"""In a request's state: fields of its body that nobody knows, where they are ignored."""


def is_json(request: Request) -> bool:
    """Whether the body says of itself that it is JSON."""
    kind = _kind(request)
    return kind == "application/json" or kind.endswith("+json")


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, schema: type[B], lenient: bool = False, *, untyped: bool = False) -> B:
    """The body as `schema`; raises ApiError with one sentence that names the field.

    `lenient`: fields that nobody knows are ignored, and named in the request's state. `untyped`: a body of no content-type is
    JSON, too, unless a browser's page sends it: without a type a browser asks no server whether it may.
    """
    kind = _kind(request)
    if not is_json(request) and not (untyped and "content-type" not in request.headers and "origin" not in request.headers):
        sent = f"{kind[:80]!r} is not allowed" if kind else "it is missing"
        raise ApiError(415, f"content-type: {sent}; it must be application/json")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise ApiError(415, f"content-encoding: {coding[:80]!r} is not allowed; the body must be sent as it is")
    try:
        raw = await request.body()
    except ClientDisconnect:
        raise caller_gone() from None
    return made_of(parse_json(raw), request, schema, lenient)


def made_of(value: dict[str, Any], request: Request, schema: type[B], lenient: bool) -> B:
    """What was sent as `schema`; raises ApiError with one sentence that names the field."""
    ignored: list[str] = []
    problems: list[ErrorDetails] = []
    for _ in range(_MOST_LOOKS):
        try:
            return schema.model_validate(value)
        except ValidationError as error:
            count, problems = error.error_count(), error.errors(include_url=False)[:MOST_PROBLEMS]
        unknown = unknown_fields(schema, problems) if lenient and count <= MOST_PROBLEMS else []
        # Of a list the last first: the others keep their places.
        dropped = [path for path in reversed(unknown) if _drop(value, path)]
        if not dropped:
            break
        ignored += [".".join(path) for path in reversed(dropped)]
        request.scope["state"][IGNORED] = ignored
    raise refusal(schema, problems) from None


def _drop(value: Any, path: Sequence[str]) -> bool:
    """Take a member out of an object or a list, some levels down; whether it was there.

    An object that came as text stays as it is.
    """
    for part in path[:-1]:
        value = value[int(part)] if isinstance(value, list) else value.get(part) if isinstance(value, dict) else None
    if isinstance(value, list):
        del value[int(path[-1])]
        return True
    return isinstance(value, dict) and value.pop(path[-1], None) is not None


def parse_json(raw: bytes) -> dict[str, Any]:
    """The object that these bytes hold, all of its texts whole: a lone surrogate is no character and can be sent nowhere."""
    try:
        text = raw.decode("utf-8-sig")  # some tools write a mark of bytes' order before it (RFC 8259, 8.1)
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not valid JSON: it is not UTF-8 text") from None
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_number if _MAY_OVERFLOW.search(text) else None)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ApiError(400, f"the body is not valid JSON: {error.msg.lower()} ({where})") from None
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition(":")[0].lower()
        raise ApiError(400, f"the body is not valid JSON: {why}") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object")
    if text.count("{") + text.count("[") > MOST_LEVELS:  # what follows takes time
        _check_levels(value)
    if text.count("{") + text.count(":") > MOST_MEMBERS:
        _check_members(value)
    if _SURROGATE_ESCAPE.search(text):
        for field, part in _texts(value):
            if SURROGATE.search(part):
                name = field or "body"
                raise ApiError(
                    400, f"{name}: a text with half of a surrogate pair is not allowed; it must be Unicode", param=name
                )
    return value


def _check_levels(value: dict[str, Any]) -> None:
    for name, inner in value.items():
        if levels(inner) >= MOST_LEVELS:
            sentence = f"{name[:80]}: it is nested too deeply; it must have at most {MOST_LEVELS - 1} levels"
            raise ApiError(400, sentence, param=name[:80])


def _check_members(value: dict[str, Any]) -> None:
    found = 1 + len(value)
    if found > MOST_MEMBERS:
        raise ApiError(400, f"a body of {len(value)} fields is not allowed; it must have fewer than {MOST_MEMBERS}")
    for name, inner in value.items():
        waiting = [inner]
        while waiting and found <= MOST_MEMBERS:
            item = waiting.pop()
            if isinstance(item, dict):
                found += 1 + len(item)
                waiting += item.values()
            elif isinstance(item, list):
                waiting += [part for part in item if isinstance(part, (dict, list))]
        if found > MOST_MEMBERS:
            sentence = f"{name[:80]}: a body with so many objects and members is not allowed; it must have at most {MOST_MEMBERS}"
            raise ApiError(400, sentence, param=name[:80])


def _number(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        raise ValueError(f"{word[:40]} is larger than any number that can be read")
    return number


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON number")


def _texts(value: Any) -> Iterator[tuple[str, str]]:
    """Every text inside, and every name of a member, with the path to it; breadth does not matter, depth is the parser's."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        path, item = waiting.pop()
        lead = f"{path}." if path else ""
        if isinstance(item, str):
            yield path, item
        elif isinstance(item, dict):
            for name, inner in item.items():
                yield path, name
                waiting.append((f"{lead}{name}", inner))
        elif isinstance(item, list):
            waiting += [(f"{lead}{place}", inner) for place, inner in enumerate(item)]

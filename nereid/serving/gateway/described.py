"""What a route's handler says of itself for `/openapi.json`, beside the handler; builds no document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel

H = TypeVar("H", bound=Callable[..., Any])
JSON, EVENTS = "application/json", "text/event-stream"
_ATTRIBUTE = "described"


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """One handler.

    Attributes:
        summary: what it does, in a sentence.
        body: the model that reads its JSON body; None: it reads none.
        form: the JSON schema of its multipart form; None: it reads none.
        form_body: the model that reads its multipart form's fields beside the file `image`; None: it reads none.
        files: the names of further files that the form may have.
        query: the JSON schemas of what may stand behind the `?`, by name.
        streams: whether the answer may be server-sent events.
        answers: the media type of its other answers.
    """

    summary: str = ""
    body: type[BaseModel] | None = None
    form: Mapping[str, Any] | None = None
    form_body: type[BaseModel] | None = None
    files: tuple[str, ...] = ()
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    streams: bool = False
    answers: str = JSON


def described(summary: str, **facts: Any) -> Callable[[H], H]:
    """Say of a handler what `Described` has."""

    def mark(handler: H) -> H:
        setattr(handler, _ATTRIBUTE, Described(summary=summary, **facts))
        return handler

    return mark


def description_of(handler: Any) -> Described:
    """What a handler says of itself; nothing, where it says nothing."""
    found = getattr(handler, _ATTRIBUTE, None)
    return found if isinstance(found, Described) else Described()

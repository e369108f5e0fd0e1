"""A page request and its results as types, and their translation to and from the model's tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nereid_client.images import Tensors, TypedRequest, encoded, request_model, tensor_of
from nereid_client.texts import fingerprint
from nereid_protocol.page_fields import PAGE_FIELDS

_SAID_ELSEWHERE = ("brief", "stream_interval", "timeout_seconds", "run_id", "watch", "cancel")
"""Fields that a call has arguments of their own for, or that the SDK sends itself."""

PAGE_OPTIONS = tuple(field for field in PAGE_FIELDS if field.name not in _SAID_ELSEWHERE)
"""The fields that `options` of a page request may name."""


class _PageRequest(TypedRequest):
    brief: str


PageRequest = request_model(
    "PageRequest", "A page's brief and its options, which may be left to the server; docs/page.md.", PAGE_OPTIONS, _PageRequest
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageProgress:
    """A page on its way, after `step` pieces of work.

    `html` is what is there of it, a whole file, empty where nothing can be seen yet; `progress` has for each stage (plan,
    sections, layouts, pictures) how much is `done` `of` what is known of so far. `done` is what was done last: its `stage`, and
    the number of its `section`, None where it is the page's. `visible` are the ids of the sections that can be seen.
    """

    step: int
    html: str
    progress: Mapping[str, Mapping[str, int]]
    done: Mapping[str, Any]
    visible: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PageResult:
    """A finished page.

    `html` is one file that needs nothing else. `answer` is all that the server said beside it, as docs/page.md has it; the other
    attributes are its parts. `degraded` says in sentences what is not as it was asked for, and is empty where all is.
    """

    html: str
    title: str
    width: int
    height: float
    passed: bool
    checks: tuple[Mapping[str, Any], ...]
    degraded: tuple[str, ...]
    seconds: Mapping[str, float]
    seed: int
    answer: Mapping[str, Any]
    run_id: str = ""
    system_fingerprint: str | None = None


def from_page_tensors(tensors: Tensors) -> PageProgress | PageResult:
    """One answer as a type: the last one says whether checks were passed."""
    answer, html = json.loads(tensors["page"].reshape(-1)[0]), tensors["html"].reshape(-1)[0].decode()
    if "passed" not in tensors:
        return PageProgress(
            step=answer["step"],
            html=html,
            progress=answer["progress"],
            done=answer["done"],
            visible=tuple(answer["visible"]),
            seconds=answer["seconds"],
        )
    return PageResult(
        html=html,
        title=answer["title"],
        width=answer["width"],
        height=answer["height"],
        passed=answer["passed"],
        checks=tuple(answer["checks"]),
        degraded=tuple(_sentence(one) for one in answer["degraded"]),
        seconds=answer["seconds"],
        seed=answer["seed"],
        answer=answer,
        system_fingerprint=fingerprint(tensors),
    )


def _sentence(one: Mapping[str, Any]) -> str:
    return str(one["said"]) if one["section"] is None else f"section {one['section']}: {one['said']}"


def page_tensors(brief: str, options: Mapping[str, Any], *, interval: int | None) -> Tensors:
    """Inputs of `page`; raises InvalidRequestError for what cannot be sent, the server refuses the rest."""
    request = PageRequest.of(brief=brief, **options)
    tensors: Tensors = {"brief": np.array([encoded("brief", brief)], np.object_)}
    for field in PAGE_OPTIONS:
        if (value := getattr(request, field.name)) is not None:
            tensors[field.name] = tensor_of(field, value)
    if interval is not None:
        tensors["stream_interval"] = np.array([interval], np.int32)
    return tensors

"""A layout request and its results as types, and their translation to and from the model's tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nereid_client.errors import InvalidRequestError
from nereid_client.images import Tensors, TypedRequest, encoded, request_model, tensor_of
from nereid_client.texts import fingerprint
from nereid_protocol.layout_fields import LAYOUT_FIELDS

_SAID_ELSEWHERE = ("canvas", "html", "elements", "stream_interval", "timeout_seconds", "run_id", "watch", "cancel")
"""Fields that a call has arguments of their own for, or that the SDK sends itself."""

LAYOUT_OPTIONS = tuple(field for field in LAYOUT_FIELDS if field.name not in _SAID_ELSEWHERE)
"""The fields that `options` of a layout request may name."""

Section = str | Sequence[Mapping[str, Any]]
"""HTML, or a list of elements."""
Canvas = int | Mapping[str, Any]
"""The width in CSS pixels, or width, density, columns and style."""

LayoutRequest = request_model(
    "LayoutRequest", "Options of a layout; all may be left to the server. docs/layout.md has them.", LAYOUT_OPTIONS, TypedRequest
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedElement:
    """One element and its box, in CSS pixels from the canvas' top left corner; `fixed` names what of the box was given."""

    id: str
    parent: str | None
    kind: str
    order: int
    x: float
    y: float
    width: float
    height: float
    fixed: tuple[str, ...]

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> PlacedElement:
        own = {name: value for name, value in raw.items() if name not in ("class", "fixed")}
        return cls(kind=raw["class"], fixed=tuple(raw["fixed"]), **own)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutProgress:
    """A request on its way: after `step` of `num_inference_steps`, what its boxes are predicted to be.

    `answer` is all that the server said.
    """

    step: int
    num_inference_steps: int
    elements: tuple[PlacedElement, ...]
    answer: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutResult:
    """A finished layout.

    `answer` is all that the server said, as docs/layout.md has it; the other attributes are its parts. `score` is above 0.5
    where no check of severity error is broken. `drawn_by` is transformer or rules; `degraded` says in sentences why the
    layout is not what was asked for, and is empty where it is.
    """

    elements: tuple[PlacedElement, ...]
    checks: tuple[Mapping[str, Any], ...]
    score: float
    seed: int
    steps: int
    drawn_by: str
    degraded: tuple[str, ...]
    answer: Mapping[str, Any]
    run_id: str = ""
    system_fingerprint: str | None = None

    @property
    def passed(self) -> bool:
        """Whether no check of severity error is broken."""
        return all(check["severity"] != "error" for check in self.checks)


def from_layout_tensors(tensors: Tensors) -> LayoutProgress | LayoutResult:
    """One answer as a type: the last one has a score."""
    answer = json.loads(tensors["layout"].reshape(-1)[0])
    elements = tuple(PlacedElement.of(element) for element in answer["elements"])
    if "score" not in tensors:
        step, steps = answer["step"], answer["num_inference_steps"]
        return LayoutProgress(step=step, num_inference_steps=steps, elements=elements, answer=answer)
    return LayoutResult(
        elements=elements,
        checks=tuple(answer["checks"]),
        score=answer["score"],
        seed=answer["seed"],
        steps=answer["steps"],
        drawn_by=answer["drawn_by"],
        degraded=tuple(one["said"] for one in answer["degraded"]),
        answer=answer,
        system_fingerprint=fingerprint(tensors),
    )


def layout_tensors(section: Section, canvas: Canvas, options: Mapping[str, Any], *, interval: int | None) -> Tensors:
    """Inputs of `layout`; raises InvalidRequestError for what cannot be sent, the server refuses the rest."""
    request = LayoutRequest.of(**options)
    tensors: Tensors = {"canvas": _text("canvas", _json("canvas", canvas))}
    if isinstance(section, str):
        tensors["html"] = _text("html", section)
    else:
        elements = [*section] if isinstance(section, Iterable) else section
        tensors["elements"] = _text("elements", _json("elements", elements))
    for field in LAYOUT_OPTIONS:
        if (value := getattr(request, field.name)) is not None:
            tensors[field.name] = tensor_of(field, value)
    if interval is not None:
        tensors["stream_interval"] = np.array([interval], np.int32)
    return tensors


def _json(field: str, value: object) -> str:
    try:
        return json.dumps(value, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{field}: {error}", field) from None


def _plain(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not allowed; it must be what JSON has")


def _text(field: str, value: str) -> np.ndarray:
    return np.array([encoded(field, value)], np.object_)

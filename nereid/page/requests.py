"""The one place that validates page requests: from raw arrays to a concrete, frozen request; knows nothing of Triton."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from nereid.flow.errors import InvalidRequestError
from nereid.flow.fields import FieldReader, Inputs
from nereid.flow.request_parameters import refuse_parameters
from nereid.flow.runs import read_id
from nereid.flow.tickets import USUAL_PRIORITY
from nereid.layout.canvas import Canvas, Density
from nereid.page.plan import MOST_BRIEF
from nereid.page.settings import PageLimits
from nereid.page.text import clean
from nereid_protocol.page_fields import PAGE_BY_NAME

USUAL_WIDTH = 1280


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """One request, every option concrete. `stream_interval` is None where there is to be one answer."""

    brief: str
    canvas: Canvas
    sections: int
    pictures: int
    seed: int
    stream_interval: int | None
    timeout_seconds: float
    deadline_seconds: float | None
    priority: int
    run_id: str


def parse_page_request(inputs: Inputs, limits: PageLimits) -> PageRequest:
    """Inputs of `page`, without a batch dimension; raises InvalidRequestError naming field, value and what is allowed."""
    refuse_parameters(inputs, tuple(PAGE_BY_NAME))
    fields = FieldReader({name: value[None] for name, value in inputs.items()}, 1, limits, PAGE_BY_NAME)
    seed, density = fields.value("seed", None), fields.value("density", Density.NORMAL)
    if density not in tuple(Density):
        raise InvalidRequestError.of("density", density, f"one of {', '.join(Density)}")
    return PageRequest(
        brief=_brief(fields),
        canvas=Canvas.of(int(fields.value("width", USUAL_WIDTH)), density),
        sections=int(fields.value("sections", limits.default_sections)),
        pictures=int(fields.value("pictures", limits.max_pictures)),
        seed=secrets.randbits(53) if seed is None else int(seed),
        stream_interval=fields.value("stream_interval", None),
        timeout_seconds=fields.value("timeout_seconds", limits.default_timeout_seconds),
        deadline_seconds=fields.value("deadline_seconds", None),
        priority=fields.value("priority", USUAL_PRIORITY),
        run_id=read_id(inputs, "run_id") or secrets.token_urlsafe(18),
    )


def _brief(fields: FieldReader) -> str:
    given = fields.value("brief", None)
    if given is None:
        raise InvalidRequestError("brief: nothing is not allowed; it must be a text of 1 to 2000 characters", "brief")
    if len(given) > MOST_BRIEF:
        raise InvalidRequestError.of("characters in brief", len(given), f"1 to {MOST_BRIEF}")
    brief = clean(given)
    if not any(character.isalnum() for character in brief):
        raise InvalidRequestError.of("brief", given, f"a text of 1 to {MOST_BRIEF} characters, some of them letters or digits")
    return brief

"""The one place that validates layout requests: from raw arrays to a concrete, frozen request; knows nothing of Triton."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any

from nereid.diffusion.branch_cache import Plans
from nereid.diffusion.cache_options import OFF, branch_plans
from nereid.diffusion.dynamic_width import WHOLE_WITH_TOKENS, WidthTable
from nereid.diffusion.options import scheduler_named, solver_table
from nereid.diffusion.solvers import SolverTable
from nereid.flow.errors import InvalidRequestError
from nereid.flow.fields import FieldReader, Inputs
from nereid.flow.noise import derived_seed
from nereid.flow.request_parameters import refuse_parameters
from nereid.flow.runs import read_id
from nereid.flow.tickets import USUAL_PRIORITY
from nereid.layout.canvas import Canvas
from nereid.layout.complexity import AdaptiveSteps
from nereid.layout.element_list import read_canvas, read_elements
from nereid.layout.elements import Box, Section
from nereid.layout.html import read_html
from nereid.layout.settings import LayoutFacts, LayoutLimits
from nereid_protocol.layout_fields import EFFORTS, FORMATS, LAYOUT_BY_NAME, TOKENS, WIDTHS

MOST_JSON = 200_000
"""Characters of `elements`, and of `canvas`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayoutRequest:
    """One request, every option concrete; `seeds` has one for each candidate.

    `drawn` is the section to draw: the same, or on a canvas whose width the transformer knows. `drafts` are the boxes to refine
    on it, in the section's order. `cache` says which steps compute the transformer's branches, None
    where all do; `widths` which slices of it do, or engines that pass over tokens, None where the whole transformer does.
    `stream_interval` is None where there is to be one answer.
    """

    section: Section
    drawn: Section
    drafts: list[Box] | None
    seeds: tuple[int, ...]
    table: SolverTable
    cache: Plans | None
    widths: WidthTable | None
    format: str
    stream_interval: int | None
    timeout_seconds: float
    deadline_seconds: float | None
    priority: int
    run_id: str


def parse_layout_request(inputs: Inputs, facts: LayoutFacts, limits: LayoutLimits) -> LayoutRequest:
    """Inputs of `layout`, without a batch dimension; raises InvalidRequestError naming field, value and what is allowed."""
    refuse_parameters(inputs, tuple(LAYOUT_BY_NAME))
    fields = FieldReader({name: value[None] for name, value in inputs.items()}, 1, limits, LAYOUT_BY_NAME)
    section = _section(fields)
    scheduler = scheduler_named(fields.value("scheduler", facts.scheduler))
    adaptive = _adaptive(fields, str(scheduler), facts)
    widths = _widths(fields, section, facts, adaptive)
    steps = _steps(fields, section, limits, adaptive, widths)
    count, seed = int(fields.value("n", 1)), fields.value("seed", None)
    first = secrets.randbits(63) if seed is None else int(seed)
    form = fields.value("format", FORMATS[0])
    if form not in FORMATS:
        raise InvalidRequestError.of("format", form, f"one of {', '.join(FORMATS)}")
    table = solver_table(scheduler, facts.schedule, steps, 0)
    drawn = section if facts.canvas_widths is None else facts.canvas_widths.section(section)
    calibrations = None if facts.branches is None else facts.branches.calibrations
    return LayoutRequest(
        section=section,
        drawn=drawn,
        drafts=drawn.drafts,
        seeds=tuple(derived_seed(first, index) for index in range(count)),
        table=table,
        cache=branch_plans(fields, calibrations, scheduler=str(scheduler), steps=steps),
        widths=widths,
        format=form,
        stream_interval=fields.value("stream_interval", None),
        timeout_seconds=fields.value("timeout_seconds", limits.default_timeout_seconds),
        deadline_seconds=fields.value("deadline_seconds", None),
        priority=fields.value("priority", USUAL_PRIORITY),
        run_id=read_id(inputs, "run_id") or "",
    )


def _adaptive(fields: FieldReader, scheduler: str, facts: LayoutFacts) -> AdaptiveSteps | None:
    """Where steps, and the width, are to go by how complex a section is."""
    effort, asked = fields.value("effort", EFFORTS[0]), fields.value("num_inference_steps", None)
    if effort not in EFFORTS:
        raise InvalidRequestError.of("effort", effort, f"one of {', '.join(EFFORTS)}")
    if effort == EFFORTS[0]:
        return None
    if asked is not None:
        raise InvalidRequestError.of("effort", effort, f"{EFFORTS[0]} beside num_inference_steps ({asked})")
    known = facts.adaptive
    if known is None or known.scheduler != scheduler:
        where = "nothing is (nereid calibrate-layout --adaptive does it)" if known is None else f"it is for {known.scheduler}"
        raise InvalidRequestError(f"effort: {effort!r} is not calibrated for {scheduler}; {where}", "effort")
    return known


def _steps(
    fields: FieldReader, section: Section, limits: LayoutLimits, adaptive: AdaptiveSteps | None, widths: WidthTable | None
) -> int:
    """As many as are asked for, or as a section so complex needs."""
    if adaptive is None:
        return int(fields.value("num_inference_steps", limits.default_steps))
    return min(adaptive.steps(section, dynamic=widths is not None and widths.is_dynamic), limits.max_steps)


def _widths(fields: FieldReader, section: Section, facts: LayoutFacts, adaptive: AdaptiveSteps | None) -> WidthTable | None:
    """Which engines compute steps of what width and tokens; None where the whole transformer computes every step."""
    whole = None if facts.widths is not None else "was exported without --widths, so that it has one width"
    every = None if facts.tokens else "was exported without --tokens, so that its MLPs have all tokens"
    dynamic = _dynamic(fields, "transformer_width", WIDTHS, whole)
    routed = _dynamic(fields, "transformer_tokens", TOKENS, every)
    if adaptive is not None and fields.value("transformer_width", None) is None and not routed and _cache(fields) == OFF:
        dynamic = adaptive.prefers_dynamic(section)
    table = facts.widths if dynamic else None
    if not routed:
        return table
    return WHOLE_WITH_TOKENS if table is None else table.passing_over_tokens()


def _cache(fields: FieldReader) -> str:
    return str(fields.value("cache", OFF)).strip()


def _dynamic(fields: FieldReader, name: str, allowed: tuple[str, str], lacking: str | None) -> bool:
    """Whether the second of what is allowed is asked for; `lacking` says why this transformer has only the first."""
    asked, cache = fields.value(name, allowed[0]), _cache(fields)
    if asked not in allowed:
        raise InvalidRequestError.of(name, asked, f"one of {', '.join(allowed)}")
    if asked == allowed[0]:
        return False
    if lacking is not None:
        raise InvalidRequestError(f"{name}: {asked} is not allowed; this model's transformer {lacking}", name)
    if cache != OFF:
        raise InvalidRequestError.of(name, asked, f"{allowed[0]} beside cache ({cache})")
    return True


def _section(fields: FieldReader) -> Section:
    html, elements = fields.value("html", None), fields.value("elements", None)
    if (html is None) == (elements is None):
        given = "nothing" if html is None else "html and elements"
        raise InvalidRequestError(f"html: {given} is not allowed; it must be one of html and elements", "html")
    canvas = _canvas(fields.value("canvas", None))
    return read_html(html, canvas) if html is not None else read_elements(_json("elements", elements), canvas)


def _canvas(text: str | None) -> Canvas:
    if text is None:
        raise InvalidRequestError('canvas: nothing is not allowed; it must be a JSON object like {"width": 1280}', "canvas")
    given = _json("canvas", text)
    return read_canvas({"width": given} if isinstance(given, int | float) else given)


def _json(field: str, text: str) -> Any:
    if len(text) > MOST_JSON:
        raise InvalidRequestError.of(f"characters of {field}", len(text), f"at most {MOST_JSON}")
    try:
        return json.loads(text)
    except RecursionError:
        raise InvalidRequestError.of(field, text, "JSON that is nested less deeply") from None
    except ValueError as error:
        raise InvalidRequestError.of(field, text, f"JSON ({error})") from None

"""What a served repository does now, as plain data; reads and draws nothing.

Numbers are None where nobody tells them, so that a missing one is never taken for zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field

TRITON, GATEWAY, SUPERVISOR = "triton", "gateway", "supervisor"
SOURCES = (TRITON, GATEWAY, SUPERVISOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One of Triton's models. Latency is the mean of what ended meanwhile, in seconds."""

    name: str
    ready: bool | None
    requests_per_second: float | None
    failures_per_second: float | None
    calls_per_second: float | None
    pending: float | None
    latency_seconds: float | None
    deaths: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """Images of one size. A call of the engine takes about `call_seconds` and `row_seconds` for each row."""

    size: str
    running: float
    waiting: float
    call_seconds: float | None
    row_seconds: float | None
    shallow_call_seconds: float | None = None
    """Of the UNet's outer part, which goes on from cached features; None where it is not there."""
    shallow_row_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePipeline:
    """One `denoise`."""

    model: str
    running: float | None
    waiting: float | None
    images_per_second: float | None
    calls_per_second: float | None
    rows_per_call: float | None
    step_seconds: float | None
    reused_steps: float | None
    """The share of steps that went on from cached features."""
    memory_used_bytes: float | None
    memory_budget_bytes: float | None
    engine_deaths: float | None
    lanes: tuple[Lane, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel:
    """One `llm`."""

    model: str
    running: float | None
    waiting: float | None
    tokens_per_second: float | None
    prompt_tokens_per_second: float | None
    rows_per_call: float | None
    first_token_seconds: float | None
    kv_cache_usage: float | None
    preemptions: float | None
    worker_deaths: float | None
    replays: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutModel:
    """One `layout`. `passed` is the share of answers without an error, `degraded_per_second` are those worse than asked for."""

    model: str
    running: float | None
    waiting: float | None
    layouts_per_second: float | None
    rows_per_call: float | None
    step_seconds: float | None
    request_seconds: float | None
    passed: float | None
    degraded_per_second: float | None
    worker_deaths: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PageMaker:
    """One `page`. `stage_seconds` has by stage what a call takes, `degraded` is pieces worse than asked for, of one page."""

    model: str
    running: float | None
    pages_per_second: float | None
    page_seconds: float | None
    first_section_seconds: float | None
    stage_seconds: dict[str, float | None]
    passed: float | None
    degraded: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route of the gateway."""

    route: str
    in_flight: float | None
    requests_per_second: float | None
    errors_per_second: float | None
    latency_seconds: float | None
    first_token_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    routes: tuple[Route, ...]
    retries: float | None
    replays: float | None
    lost: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervisor:
    ready: bool
    triton_restarts: float | None
    service_deaths: dict[str, float]
    memory_bytes: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All of it; `answering` says whose pages were there."""

    answering: dict[str, bool]
    models: tuple[Model, ...]
    images: tuple[ImagePipeline, ...]
    texts: tuple[LanguageModel, ...]
    layouts: tuple[LayoutModel, ...]
    pages: tuple[PageMaker, ...]
    gateway: Gateway | None
    supervisor: Supervisor | None

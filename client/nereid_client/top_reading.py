"""What a served repository does now, from the pages of metrics of Triton, gateway and supervisor; fetches nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nereid_client.scraping import Change, Page
from nereid_client.top_state import (
    GATEWAY,
    SOURCES,
    SUPERVISOR,
    TRITON,
    Gateway,
    ImagePipeline,
    Lane,
    LanguageModel,
    LayoutModel,
    Model,
    PageMaker,
    Route,
    State,
    Supervisor,
)
from nereid_protocol import metrics as names
from nereid_protocol.metric import Metric

_WHOLE, _SHALLOW = "unet", "unet_shallow"
_SUCCESS, _FAILURE = "nv_inference_request_success", "nv_inference_request_failure"
_PENDING, _DURATION, _EXECUTIONS = (
    "nv_inference_pending_request_count",
    "nv_inference_request_duration_us",
    "nv_inference_exec_count",
)


def state_between(before: dict[str, Page | None], after: dict[str, Page | None]) -> State:
    """From each source's page then and now; the rate of a source that was not there before is not known."""
    changes = {source: Change(before.get(source) or Page(), after.get(source) or Page()) for source in SOURCES}
    known = {source: before.get(source) is not None and after.get(source) is not None for source in SOURCES}
    triton = _Reading(changes[TRITON], known[TRITON])
    gateway = _Reading(changes[GATEWAY], known[GATEWAY])
    served = _Reading(changes[SUPERVISOR], known[SUPERVISOR])
    return State(
        answering={source: after.get(source) is not None for source in SOURCES},
        models=tuple(_model(name, triton, served) for name in _models(triton, served)),
        images=tuple(_image(name, triton) for name in triton.labels(names.IMAGE_ACTIVE_REQUESTS, "model")),
        texts=tuple(_text(name, triton) for name in triton.labels(names.LLM_RUNNING, "model")),
        layouts=tuple(_layout(name, triton) for name in triton.labels(names.LAYOUT_LOOP.active_requests, "model")),
        pages=tuple(_page(name, triton) for name in triton.labels(names.PAGE_ACTIVE_REQUESTS, "model")),
        gateway=_gateway(gateway) if after.get(GATEWAY) is not None else None,
        supervisor=_supervisor(served) if after.get(SUPERVISOR) is not None else None,
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    """One source's change; rates and means are None where there is nothing to compare with."""

    change: Change
    known: bool

    def labels(self, metric: Metric | str, label: str) -> list[str]:
        return self.change.after.values_of(_name(metric), label)

    def now(self, metric: Metric | str, **labels: str) -> float | None:
        return self.change.after.total(_name(metric), **labels)

    def rate(self, metric: Metric | str, **labels: str) -> float | None:
        return self.change.rate(_name(metric), **labels) if self.known else None

    def mean(self, metric: Metric, **labels: str) -> float | None:
        """Of a histogram."""
        return self.ratio(f"{metric.name}_sum", f"{metric.name}_count", **labels)

    def ratio(self, total: str, count: str, **labels: str) -> float | None:
        return self.change.mean(total, count, **labels) if self.known else None


def _name(metric: Metric | str) -> str:
    return metric if isinstance(metric, str) else metric.name


def _models(triton: _Reading, served: _Reading) -> list[str]:
    """Those that the supervisor serves (Triton has one more, which controls it), or Triton's where there is no supervisor."""
    return served.labels(names.SERVE_MODEL_READY, "model") or triton.labels(_SUCCESS, "model")


def _model(name: str, triton: _Reading, served: _Reading) -> Model:
    ready = served.now(names.SERVE_MODEL_READY, model=name)
    micros = triton.ratio(_DURATION, _SUCCESS, model=name)
    return Model(
        name=name,
        ready=None if ready is None else ready > 0,
        requests_per_second=_sum(triton.rate(_SUCCESS, model=name), triton.rate(_FAILURE, model=name)),
        failures_per_second=triton.rate(_FAILURE, model=name),
        calls_per_second=triton.rate(_EXECUTIONS, model=name),
        pending=triton.now(_PENDING, model=name),
        latency_seconds=None if micros is None else micros / 1e6,
        deaths=served.now(names.SERVE_MODEL_DEATHS, model=name),
    )


def _image(model: str, triton: _Reading) -> ImagePipeline:
    sizes = triton.labels(names.IMAGE_LANE_IMAGES, "size")
    steps = triton.rate(names.IMAGE_STEPS, model=model)
    reused = triton.rate(names.IMAGE_STEPS, model=model, engine=_SHALLOW) if steps else None
    lanes = (
        _lane(size, model, triton) for size in sizes if triton.now(names.IMAGE_LANE_IMAGES, model=model, size=size) is not None
    )
    return ImagePipeline(
        model=model,
        running=triton.now(names.IMAGE_ACTIVE_REQUESTS, model=model),
        waiting=triton.now(names.IMAGE_QUEUED_REQUESTS, model=model),
        images_per_second=triton.rate(names.IMAGES, model=model),
        calls_per_second=triton.rate(f"{names.IMAGE_STEP_SECONDS.name}_count", model=model),
        rows_per_call=triton.mean(names.IMAGE_ROWS_PER_TICK, model=model),
        step_seconds=triton.mean(names.IMAGE_STEP_SECONDS, model=model),
        reused_steps=(reused or 0.0) / steps if steps else None,
        memory_used_bytes=triton.now(names.IMAGE_MEMORY_USED, model=model),
        memory_budget_bytes=triton.now(names.IMAGE_MEMORY_BUDGET, model=model),
        engine_deaths=triton.now(names.IMAGE_ENGINE_DEATHS, model=model),
        lanes=tuple(lanes),
    )


def _lane(size: str, model: str, triton: _Reading) -> Lane:
    def cost(engine: str, per: str) -> float | None:
        return triton.now(names.IMAGE_STEP_COST, model=model, size=size, engine=engine, per=per)

    return Lane(
        size=size,
        running=triton.now(names.IMAGE_LANE_IMAGES, model=model, size=size, state="running") or 0.0,
        waiting=triton.now(names.IMAGE_LANE_IMAGES, model=model, size=size, state="waiting") or 0.0,
        call_seconds=cost(_WHOLE, "call"),
        row_seconds=cost(_WHOLE, "row"),
        shallow_call_seconds=cost(_SHALLOW, "call"),
        shallow_row_seconds=cost(_SHALLOW, "row"),
    )


def _text(model: str, triton: _Reading) -> LanguageModel:
    return LanguageModel(
        model=model,
        running=triton.now(names.LLM_RUNNING, model=model),
        waiting=triton.now(names.LLM_WAITING, model=model),
        tokens_per_second=triton.rate(names.LLM_GENERATION_TOKENS, model=model),
        prompt_tokens_per_second=triton.rate(names.LLM_PROMPT_TOKENS, model=model),
        rows_per_call=triton.mean(names.LLM_BATCH_SIZE, model=model),
        first_token_seconds=triton.mean(names.LLM_TIME_TO_FIRST_TOKEN, model=model),
        kv_cache_usage=triton.now(names.LLM_KV_USAGE, model=model),
        preemptions=triton.now(names.LLM_PREEMPTIONS, model=model),
        worker_deaths=triton.now(names.LLM_WORKER_DEATHS, model=model),
        replays=triton.now(names.LLM_REPLAYS, model=model),
    )


def _layout(model: str, triton: _Reading) -> LayoutModel:
    loop = names.LAYOUT_LOOP
    return LayoutModel(
        model=model,
        running=triton.now(loop.active_requests, model=model),
        waiting=triton.now(loop.queued_requests, model=model),
        layouts_per_second=triton.rate(loop.made, model=model),
        rows_per_call=triton.mean(loop.rows_per_tick, model=model),
        step_seconds=triton.mean(loop.step_seconds, model=model),
        request_seconds=triton.mean(loop.request_seconds, model=model),
        passed=_passed(names.LAYOUT_CHECKS, model, triton),
        degraded_per_second=triton.rate(names.LAYOUT_DEGRADED, model=model),
        worker_deaths=triton.now(names.LAYOUT_WORKER_DEATHS, model=model),
    )


def _page(model: str, triton: _Reading) -> PageMaker:
    stages = triton.labels(f"{names.PAGE_STAGE_SECONDS.name}_count", "stage")
    made = triton.rate(names.PAGE_CHECKS, model=model)
    degraded = triton.rate(names.PAGE_DEGRADED, model=model) or 0.0
    return PageMaker(
        model=model,
        running=triton.now(names.PAGE_ACTIVE_REQUESTS, model=model),
        pages_per_second=made,
        page_seconds=triton.mean(names.PAGE_REQUEST_SECONDS, model=model),
        first_section_seconds=triton.mean(names.PAGE_FIRST_SECTION_SECONDS, model=model),
        stage_seconds={stage: triton.mean(names.PAGE_STAGE_SECONDS, model=model, stage=stage) for stage in stages},
        passed=_passed(names.PAGE_CHECKS, model, triton),
        degraded=degraded / made if made else None,
    )


def _passed(checks: Metric, model: str, triton: _Reading) -> float | None:
    """The share of answers without an error; None where there was no answer."""
    answers = triton.rate(checks, model=model)
    return (triton.rate(checks, model=model, passed="true") or 0.0) / answers if answers else None


def _gateway(gateway: _Reading) -> Gateway:
    return Gateway(
        routes=tuple(_route(route, gateway) for route in gateway.labels(names.GATEWAY_IN_FLIGHT, "route")),
        retries=gateway.now(names.GATEWAY_RETRIES),
        replays=gateway.now(names.GATEWAY_REPLAYS),
        lost=gateway.now(names.GATEWAY_LOST),
    )


def _route(route: str, gateway: _Reading) -> Route:
    statuses = {labels["status"] for labels, _ in gateway.change.after.matching(names.GATEWAY_REQUESTS.name, route=route)}
    failed = (gateway.rate(names.GATEWAY_REQUESTS, route=route, status=status) for status in statuses if status >= "400")
    return Route(
        route=route,
        in_flight=gateway.now(names.GATEWAY_IN_FLIGHT, route=route),
        requests_per_second=gateway.rate(names.GATEWAY_REQUESTS, route=route),
        errors_per_second=_total(failed),
        latency_seconds=gateway.mean(names.GATEWAY_REQUEST_SECONDS, route=route),
        first_token_seconds=gateway.mean(names.GATEWAY_FIRST_TOKEN_SECONDS, route=route),
    )


def _supervisor(served: _Reading) -> Supervisor:
    processes = served.labels(names.SERVE_MEMORY, "process")
    services = served.labels(names.SERVE_SERVICE_DEATHS, "service")
    return Supervisor(
        ready=bool(served.now(names.SERVE_READY)),
        service_deaths={name: served.now(names.SERVE_SERVICE_DEATHS, service=name) or 0.0 for name in services},
        triton_restarts=served.now(names.SERVE_TRITON_RESTARTS),
        memory_bytes={process: served.now(names.SERVE_MEMORY, process=process) or 0.0 for process in processes},
    )


def _sum(*values: float | None) -> float | None:
    return _total(values)


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None

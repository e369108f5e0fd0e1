"""`nereid top`: a state page in the terminal, from the metrics of Triton, gateway and supervisor."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nereid_client.scraping import Page
from nereid_client.terminal import fail
from nereid_client.top_reading import state_between
from nereid_client.top_state import (
    GATEWAY,
    SOURCES,
    SUPERVISOR,
    TRITON,
    Gateway,
    ImagePipeline,
    LanguageModel,
    LayoutModel,
    Model,
    PageMaker,
    State,
)
from nereid_client.top_state import Supervisor as SupervisorState

FETCH_SECONDS = 5.0
WIDTH = 140
"""Characters that a page takes where it goes to no terminal."""
UNKNOWN = "-"

Addresses = dict[str, str]


def top(
    metrics: Annotated[str, typer.Option(help="host:port of Triton's metrics (`--metrics-port`).")] = "127.0.0.1:8002",
    gateway: Annotated[str, typer.Option(help="host:port of the gateway (`--openai-port`).")] = "127.0.0.1:8080",
    health: Annotated[str, typer.Option(help="host:port of the supervisor (`--health-port`).")] = "127.0.0.1:8003",
    interval: Annotated[
        float, typer.Option(help="Seconds between two looks; rates are over this time.", min=0.1, max=3600)
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="One page, after one interval, and no more.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON a page, in place of tables.")] = False,
) -> None:
    """Show what a running server does: models, requests, queues, lanes, rates, memory, deaths. Ctrl-C ends it."""
    addresses = {TRITON: metrics, GATEWAY: gateway, SUPERVISOR: health}
    before = fetch(addresses)
    if not any(before.values()):
        fail(f"nothing answers at {metrics}, {gateway} or {health}; is `nereid serve` running? (--metrics, --gateway, --health)")
    try:
        if as_json:
            _print_json(addresses, before, interval, once=once)
        elif once:
            time.sleep(interval)
            known = sys.stdout.isatty() or "COLUMNS" in os.environ  # else rich takes 80
            Console(width=None if known else WIDTH).print(render(state_between(before, fetch(addresses)), addresses))
        else:
            _live(addresses, before, interval)
    except KeyboardInterrupt:
        return


def fetch(addresses: Addresses) -> dict[str, Page | None]:
    """All pages, at once; None for each that is not there."""
    with ThreadPoolExecutor(len(SOURCES)) as threads:
        pages = threads.map(lambda source: Page.fetch(addresses[source], FETCH_SECONDS), SOURCES)
        return dict(zip(SOURCES, pages, strict=True))


def _print_json(addresses: Addresses, before: dict[str, Page | None], interval: float, *, once: bool) -> None:
    while True:
        time.sleep(interval)
        now = fetch(addresses)
        print(json.dumps(asdict(state_between(before, now))), flush=True)
        if once:
            return
        before = now


def _live(addresses: Addresses, before: dict[str, Page | None], interval: float) -> None:
    page = render(state_between(before, before), addresses)
    with Live(page, console=Console(), screen=True, auto_refresh=False) as live:
        while True:
            live.update(page, refresh=True)
            time.sleep(interval)
            now = fetch(addresses)
            page = render(state_between(before, now), addresses)
            before = now


def render(state: State, addresses: Addresses) -> RenderableType:
    """The page as tables."""
    parts: list[RenderableType] = [_head(state, addresses)]
    if state.models:
        parts.append(_models(state.models))
    for pipeline in state.images:
        parts.append(_image(pipeline))
    if state.texts:
        parts.append(_texts(state.texts))
    if state.layouts:
        parts.append(_layouts(state.layouts))
    if state.pages:
        parts.append(_pages(state.pages))
    if state.gateway is not None:
        parts.append(_gateway(state.gateway))
    if state.supervisor is not None and state.supervisor.memory_bytes:
        parts.append(_memory(state.supervisor))
    return Group(*parts)


def _head(state: State, addresses: Addresses) -> Text:
    line = Text()
    for source in SOURCES:
        there = state.answering[source]
        line.append(f"{source} ", "bold")
        line.append(addresses[source] if there else f"{addresses[source]} does not answer", "" if there else "yellow")
        line.append("  ")
    if state.supervisor is not None:
        line.append("ready" if state.supervisor.ready else "not ready", "green" if state.supervisor.ready else "red")
        line.append(f"  Triton restarts {_count(state.supervisor.triton_restarts)}")
        for name, deaths in state.supervisor.service_deaths.items():
            line.append(f"  {name} deaths {_count(deaths)}")
    return line


def _table(title: str, first: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim", title_style="bold")
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")  # headings that are cut cannot be told apart
    return table


def _models(models: Iterable[Model]) -> Table:
    table = _table("models", "model", ("ready", "requests/s", "failures/s", "calls/s", "pending", "latency", "deaths"))
    for model in models:
        ready = Text(UNKNOWN if model.ready is None else "yes" if model.ready else "no", "red" if model.ready is False else "")
        table.add_row(
            Text(model.name),
            ready,
            _rate(model.requests_per_second),
            _rate(model.failures_per_second),
            _rate(model.calls_per_second),
            _count(model.pending),
            _seconds(model.latency_seconds),
            _count(model.deaths),
        )
    return table


def _image(pipeline: ImagePipeline) -> Group:
    used, budget = pipeline.memory_used_bytes, pipeline.memory_budget_bytes
    head = Text.assemble(
        (pipeline.model, "bold"),
        f"  running {_count(pipeline.running)}  waiting {_count(pipeline.waiting)}  images/s {_rate(pipeline.images_per_second)}",
        f"  calls/s {_rate(pipeline.calls_per_second)}  rows/call {_rate(pipeline.rows_per_call)}",
        f"  step {_seconds(pipeline.step_seconds)}  reused {_share(pipeline.reused_steps)}",
        f"  memory {_bytes(used)} of {_bytes(budget)}",
        f"  engine deaths {_count(pipeline.engine_deaths)}",
    )
    if not pipeline.lanes:
        return Group(head)
    cached = any(lane.shallow_call_seconds is not None for lane in pipeline.lanes)
    table = _table("", "lane", ("running", "waiting", "a call", "a row", *(("shallow call", "shallow row") if cached else ())))
    for lane in pipeline.lanes:
        cost = [_seconds(lane.call_seconds), _seconds(lane.row_seconds)]
        if cached:
            cost += [_seconds(lane.shallow_call_seconds), _seconds(lane.shallow_row_seconds)]
        table.add_row(Text(lane.size), _count(lane.running), _count(lane.waiting), *cost)
    return Group(head, table)


def _texts(models: Iterable[LanguageModel]) -> Table:
    columns = ("running", "waiting", "tokens/s", "prompt tokens/s", "rows/call", "first token", "KV cache", "preempted")
    table = _table("language models", "model", (*columns, "deaths", "replays"))
    for model in models:
        usage = _share(model.kv_cache_usage)
        table.add_row(
            Text(model.model),
            _count(model.running),
            _count(model.waiting),
            _rate(model.tokens_per_second),
            _rate(model.prompt_tokens_per_second),
            _rate(model.rows_per_call),
            _seconds(model.first_token_seconds),
            usage,
            _count(model.preemptions),
            _count(model.worker_deaths),
            _count(model.replays),
        )
    return table


def _layouts(models: Iterable[LayoutModel]) -> Table:
    columns = ("running", "waiting", "layouts/s", "rows/call", "step", "request", "passed", "degraded/s", "deaths")
    table = _table("layouts", "model", columns)
    for model in models:
        table.add_row(
            Text(model.model),
            _count(model.running),
            _count(model.waiting),
            _rate(model.layouts_per_second),
            _rate(model.rows_per_call),
            _seconds(model.step_seconds),
            _seconds(model.request_seconds),
            _share(model.passed),
            _rate(model.degraded_per_second),
            _count(model.worker_deaths),
        )
    return table


def _pages(models: Sequence[PageMaker]) -> Table:
    stages = list(dict.fromkeys(stage for model in models for stage in model.stage_seconds))
    columns = (
        "running",
        "pages/s",
        "page",
        "first section",
        *(f"a call: {stage}" for stage in stages),
        "passed",
        "degraded/page",
    )
    table = _table("pages", "model", columns)
    for model in models:
        table.add_row(
            Text(model.model),
            _count(model.running),
            _rate(model.pages_per_second),
            _seconds(model.page_seconds),
            _seconds(model.first_section_seconds),
            *(_seconds(model.stage_seconds.get(stage)) for stage in stages),
            _share(model.passed),
            _rate(model.degraded),
        )
    return table


def _gateway(gateway: Gateway) -> Group:
    table = _table("gateway", "route", ("in flight", "requests/s", "errors/s", "latency", "first token"))
    for route in gateway.routes:
        table.add_row(
            Text(route.route),
            _count(route.in_flight),
            _rate(route.requests_per_second),
            _rate(route.errors_per_second),
            _seconds(route.latency_seconds),
            _seconds(route.first_token_seconds),
        )
    counts = f"retries {_count(gateway.retries)}  replays {_count(gateway.replays)}  lost {_count(gateway.lost)}"
    return Group(table, Text(counts))


def _memory(supervisor: SupervisorState) -> Text:
    largest = sorted(supervisor.memory_bytes.items(), key=lambda item: -item[1])
    return Text.assemble(("memory  ", "bold"), "  ".join(f"{name} {_bytes(size)}" for name, size in largest))


def _rate(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _count(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f}"


def _share(value: float | None) -> str:
    return UNKNOWN if value is None else f"{100 * value:.0f}%"


def _seconds(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def _bytes(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"

"""The state page, from pages of metrics as servers give them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console
from typer.testing import CliRunner

from nereid_client.main import app
from nereid_client.scraping import Page
from nereid_client.top import render
from nereid_client.top_reading import state_between
from nereid_client.top_state import GATEWAY, SUPERVISOR, TRITON, State

ADDRESSES = {TRITON: "127.0.0.1:8002", GATEWAY: "127.0.0.1:8080", SUPERVISOR: "127.0.0.1:8003"}
TRITON_PAGE = """\
# TYPE nv_inference_request_success counter
nv_inference_request_success{{model="denoise",version="1"}} {requests}
nv_inference_request_success{{model="unet[x]",version="1"}} 3
nv_inference_request_success{{model="nereid_control",version="1"}} 1
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{{model="denoise",reason="REJECTED",version="1"}} {failures}
nv_inference_request_failure{{model="denoise",reason="OTHER",version="1"}} 0
# TYPE nv_inference_request_duration_us counter
nv_inference_request_duration_us{{model="denoise",version="1"}} {micros}
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{{model="denoise",version="1"}} {requests}
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{{model="denoise",version="1"}} 2
# TYPE nereid_image_active_requests gauge
nereid_image_active_requests{{model="denoise"}} 3
# TYPE nereid_image_queued_requests gauge
nereid_image_queued_requests{{model="denoise"}} 4
# TYPE nereid_images_total counter
nereid_images_total{{model="denoise"}} {images}
# TYPE nereid_image_rows_per_tick histogram
nereid_image_rows_per_tick_count{{model="denoise"}} {calls}
nereid_image_rows_per_tick_sum{{model="denoise"}} {rows}
nereid_image_rows_per_tick_bucket{{model="denoise",le="+Inf"}} {calls}
# TYPE nereid_image_step_seconds histogram
nereid_image_step_seconds_count{{model="denoise"}} {calls}
nereid_image_step_seconds_sum{{model="denoise"}} {rows}
nereid_image_step_seconds_bucket{{model="denoise",le="+Inf"}} {calls}
# TYPE nereid_image_lane_images gauge
nereid_image_lane_images{{model="denoise",size="512x512",state="running"}} 3
nereid_image_lane_images{{model="denoise",size="512x512",state="waiting"}} 1
# TYPE nereid_image_step_cost_seconds gauge
nereid_image_step_cost_seconds{{model="denoise",size="512x512",engine="unet",per="call"}} 0.25
nereid_image_step_cost_seconds{{model="denoise",size="512x512",engine="unet",per="row"}} 0.5
nereid_image_step_cost_seconds{{model="denoise",size="512x512",engine="unet_shallow",per="call"}} 0.125
# TYPE nereid_image_steps_total counter
nereid_image_steps_total{{model="denoise",engine="unet"}} {calls}
nereid_image_steps_total{{model="denoise",engine="unet_shallow"}} {rows}
# TYPE nereid_llm_requests_running gauge
nereid_llm_requests_running{{model="llm"}} 2
# TYPE nereid_llm_generation_tokens_total counter
nereid_llm_generation_tokens_total{{model="llm"}} {tokens}
# TYPE nereid_llm_kv_cache_usage_ratio gauge
nereid_llm_kv_cache_usage_ratio{{model="llm"}} 0.42
# TYPE nereid_layout_active_requests gauge
nereid_layout_active_requests{{model="layout"}} 6
# TYPE nereid_layouts_total counter
nereid_layouts_total{{model="layout"}} {rows}
# TYPE nereid_layout_answers_total counter
nereid_layout_answers_total{{model="layout",passed="true"}} {images}
nereid_layout_answers_total{{model="layout",passed="false"}} {failures}
# TYPE nereid_layout_degraded_total counter
nereid_layout_degraded_total{{model="layout",reason="deadline"}} {failures}
# TYPE nereid_layout_worker_deaths_total counter
nereid_layout_worker_deaths_total{{model="layout"}} 1
# TYPE nereid_page_active_requests gauge
nereid_page_active_requests{{model="page"}} 3
# TYPE nereid_page_answers_total counter
nereid_page_answers_total{{model="page",passed="true"}} {images}
# TYPE nereid_page_degraded_total counter
nereid_page_degraded_total{{model="page",stage="plan"}} {images}
nereid_page_degraded_total{{model="page",stage="pictures"}} {failures}
# TYPE nereid_page_stage_seconds histogram
nereid_page_stage_seconds_count{{model="page",stage="pictures"}} {calls}
nereid_page_stage_seconds_sum{{model="page",stage="pictures"}} {rows}
nereid_page_stage_seconds_bucket{{model="page",stage="pictures",le="+Inf"}} {calls}
"""
GATEWAY_PAGE = """\
# TYPE nereid_gateway_requests_total counter
nereid_gateway_requests_total{{route="POST /v1/completions",status="200"}} {good}
nereid_gateway_requests_total{{route="POST /v1/completions",status="503"}} {bad}
# TYPE nereid_gateway_requests_in_flight gauge
nereid_gateway_requests_in_flight{{route="POST /v1/completions"}} 5
# TYPE nereid_gateway_replays_total counter
nereid_gateway_replays_total{{pipeline=""}} 1
nereid_gateway_replays_total{{pipeline="xl"}} 2
"""
SUPERVISOR_PAGE = """\
# TYPE nereid_serve_ready gauge
nereid_serve_ready 0
# TYPE nereid_serve_model_ready gauge
nereid_serve_model_ready{{model="denoise"}} 0
nereid_serve_model_ready{{model="llm"}} 1
nereid_serve_model_ready{{model="unet[x]"}} 1
# TYPE nereid_serve_model_deaths_total counter
nereid_serve_model_deaths_total{{model="denoise"}} 7
# TYPE nereid_serve_service_deaths_total counter
nereid_serve_service_deaths_total{{service="gateway"}} 3
# TYPE nereid_serve_resident_memory_bytes gauge
nereid_serve_resident_memory_bytes{{process="denoise"}} 2500000000
"""
BEFORE = {"requests": 10, "failures": 0, "micros": 1e6, "images": 5, "calls": 10, "rows": 40, "tokens": 100}
AFTER = {"requests": 14, "failures": 2, "micros": 3e6, "images": 9, "calls": 20, "rows": 80, "tokens": 300}


def pages(seconds: float, triton: dict[str, float], **gateway: float) -> dict[str, Page | None]:
    made = {
        TRITON: Page.parse(TRITON_PAGE.format(**triton)),
        GATEWAY: Page.parse(GATEWAY_PAGE.format(**{"good": 0, "bad": 0, **gateway})),
        SUPERVISOR: Page.parse(SUPERVISOR_PAGE.format()),
    }
    return {name: Page(page.samples, seconds) for name, page in made.items()}


@pytest.fixture
def state() -> State:
    return state_between(pages(100.0, BEFORE), pages(102.0, AFTER, good=6, bad=4))


def test_rates_are_over_the_time_between_two_pages(state: State) -> None:
    denoise, llm, unet = state.models
    assert (denoise.name, llm.name, unet.name) == ("denoise", "llm", "unet[x]")
    assert denoise.requests_per_second == 3  # four that went well and two that did not, in two seconds
    assert denoise.failures_per_second == 1
    assert denoise.latency_seconds == 0.5
    assert (denoise.pending, denoise.ready, denoise.deaths) == (2, False, 7)
    assert (llm.ready, llm.requests_per_second) == (True, None)
    (image,) = state.images
    assert (image.images_per_second, image.calls_per_second, image.rows_per_call) == (2, 5, 4)
    assert (image.running, image.waiting) == (3, 4)
    (lane,) = image.lanes
    assert (lane.size, lane.running, lane.waiting, lane.call_seconds, lane.row_seconds) == ("512x512", 3, 1, 0.25, 0.5)
    assert (lane.shallow_call_seconds, lane.shallow_row_seconds) == (0.125, None)
    assert image.reused_steps == 0.8  # 40 of 50 steps
    (text,) = state.texts
    assert (text.tokens_per_second, text.kv_cache_usage, text.waiting) == (100, 0.42, None)
    (layout,) = state.layouts
    assert (layout.running, layout.waiting, layout.layouts_per_second, layout.worker_deaths) == (6, None, 20, 1)
    assert (layout.passed, layout.degraded_per_second) == (4 / 6, 1)
    (page,) = state.pages
    assert (page.running, page.pages_per_second, page.page_seconds, page.passed) == (3, 2, None, 1)
    assert (page.stage_seconds, page.degraded) == ({"pictures": 4}, 1.5)  # 6 pieces of 4 pages
    assert state.gateway is not None
    (route,) = state.gateway.routes
    assert (route.in_flight, route.requests_per_second, route.errors_per_second) == (5, 5, 2)
    assert (state.gateway.replays, state.gateway.lost) == (3, None)
    assert state.supervisor is not None
    assert not state.supervisor.ready


def test_a_server_that_was_started_again_counts_from_zero() -> None:
    state = state_between(pages(100.0, AFTER), pages(101.0, BEFORE))
    assert state.texts[0].tokens_per_second == 100


def test_what_no_page_tells_is_not_taken_for_zero() -> None:
    after = pages(102.0, AFTER)
    state = state_between({**pages(100.0, BEFORE), TRITON: None}, {**after, SUPERVISOR: None, GATEWAY: None})
    assert state.answering == {TRITON: True, GATEWAY: False, SUPERVISOR: False}
    assert state.gateway is None
    assert state.supervisor is None
    assert state.models[0].ready is None
    assert state.models[0].requests_per_second is None  # there is nothing to compare with


def test_on_a_narrow_terminal_nothing_is_cut(state: State) -> None:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(render(state, ADDRESSES))
    assert "…" not in console.export_text()


def test_the_page_shows_all_of_it_and_reads_no_name_as_markup(state: State) -> None:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(render(state, ADDRESSES))
    shown = console.export_text()
    for words in (
        "not ready",
        "unet[x]",
        "512x512",
        "250.0 ms",
        "reused 80%",
        "shallow call",
        "125.0 ms",
        "42%",
        "67%",
        "a call: pictures",
        "POST /v1/completions",
        "replays 3",
        "denoise 2.5 GB",
        "gateway deaths 3",
    ):
        assert words in shown
    console.print(render(state_between({}, {}), ADDRESSES))
    assert "does not answer" in console.export_text()


@pytest.fixture
def served() -> Iterator[str]:
    """The address of a page of Triton's that counts on."""
    values = iter([BEFORE, *[AFTER] * 100])

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(TRITON_PAGE.format(**next(values)).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_the_command_prints_one_page_as_json_or_as_tables(served: str) -> None:
    options = ["top", "--metrics", served, "--gateway", "127.0.0.1:9", "--health", "127.0.0.1:9", "--once", "--interval", "0.1"]
    done = CliRunner().invoke(app, [*options, "--json"])
    assert done.exit_code == 0
    state = json.loads(done.stdout)
    assert state["answering"] == {"triton": True, "gateway": False, "supervisor": False}
    assert state["texts"][0]["tokens_per_second"] > 0
    done = CliRunner().invoke(app, options, env={"COLUMNS": None})
    assert "prompt tokens/s  rows/call  first token" in done.output  # a file has no width
    assert done.exit_code == 0
    assert "denoise" in done.stdout


def test_where_nothing_answers_the_command_says_so_in_one_sentence() -> None:
    nowhere = [part for option in ("--metrics", "--gateway", "--health") for part in (option, "127.0.0.1:9")]
    done = CliRunner().invoke(app, ["top", *nowhere])
    assert done.exit_code == 1
    assert done.stdout == ""

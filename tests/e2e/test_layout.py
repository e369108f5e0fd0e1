"""Layouts through Triton: the SDK, both protocols, the command line, deaths, metrics."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from nereid_client import AsyncClient, Client, InvalidRequestError, LayoutProgress, LayoutResult
from nereid_client.main import app

from conftest import Served, gateway, stub_of
from raw import metric
from waiting import until

pytestmark = pytest.mark.triton

HTML = (
    "<section><h2>Bread of the day</h2><p>Baked before you wake, sold until noon.</p>"
    "<div><h3>Rye</h3><p>Dark and long.</p></div><div><h3>Wheat</h3><p>Light and short.</p></div></section>"
)
ELEMENTS = [
    {"id": "title", "class": "heading", "text": "Bread of the day"},
    {"id": "picture", "class": "image", "ratio": 1.5, "fixed": {"width": 320}},
]


@pytest.fixture(params=["", "ov"])
def client(request: pytest.FixtureRequest, served: Served) -> Iterator[Client]:
    with Client(served.grpc_url, name=request.param, timeout=60) as client:
        yield client


def generate(served: Served, body: dict[str, Any]) -> dict[str, Any]:
    """A POST to Triton's own `generate`."""
    request = urllib.request.Request(
        f"http://{served.http_url}/v2/models/layout/generate",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def worker_of(served: Served, model: str) -> psutil.Process:
    """The process of the model's engine."""
    (found,) = (child for child in stub_of(served, model).children() if "nereid.engines.worker_main" in child.cmdline())
    return found


def test_a_layout_comes_back_checked_and_the_same_again(client: Client) -> None:
    made = client.generate_layout(HTML, 1280, seed=3)
    assert [element.kind for element in made.elements] == ["heading", "paragraph", *["card", "subheading", "paragraph"] * 2]
    assert (made.seed, made.steps, made.drawn_by, made.degraded) == (3, 8, "transformer", ())
    assert made.passed == (made.score > 0.5)
    again = client.generate_layout(HTML, {"width": 1280}, seed=3)
    assert again.answer == made.answer


def test_what_is_fixed_stays(client: Client) -> None:
    made = client.generate_layout(ELEMENTS, {"width": 1280, "style": "grid"}, n=4, scheduler="unipc")
    assert made.elements[1].width == 320
    assert made.elements[1].fixed == ("width",)


def test_the_same_bytes_in_company(client: Client) -> None:
    alone = {seed: client.generate_layout(HTML, 1280, seed=seed).answer for seed in range(4)}
    with ThreadPoolExecutor(12) as pool:
        asked = [(seed % 4, pool.submit(client.generate_layout, HTML, 1280, seed=seed % 4)) for seed in range(12)]
        others = [pool.submit(client.generate_layout, ELEMENTS, 768, num_inference_steps=5 + n) for n in range(6)]
        assert all(pending.result().answer == alone[seed] for seed, pending in asked)
        assert all(pending.result().steps == 5 + n for n, pending in enumerate(others))


def test_a_stream_shows_steps_and_then_the_layout(client: Client) -> None:
    *shown, last = client.stream_layout(HTML, 1280, interval=3, seed=1)
    assert [made.step for made in shown if isinstance(made, LayoutProgress)] == [3, 6]
    assert isinstance(last, LayoutResult)
    assert last.answer == client.generate_layout(HTML, 1280, seed=1).answer
    assert len(shown[0].elements) == len(last.elements)


def test_over_http_and_on_asyncio_it_is_the_same(served: Served) -> None:
    async def ask() -> LayoutResult:
        async with AsyncClient(served.grpc_url) as client:
            *_, last = [made async for made in client.stream_layout(HTML, 768, interval=8, seed=2)]
            assert isinstance(last, LayoutResult)
            assert (await client.generate_layout(HTML, 768, seed=2)).answer == last.answer
            return last

    made = asyncio.run(ask())
    with Client(served.http_url, protocol="http") as client:
        assert client.generate_layout(HTML, 768, seed=2).answer == made.answer
    answer = generate(served, {"html": HTML, "canvas": '{"width": 768}', "seed": 2})
    assert json.loads(answer["layout"]) == made.answer
    assert len(answer["boxes"]) == 4 * len(made.elements)


@pytest.mark.parametrize(
    ("section", "canvas", "options", "said", "field"),
    [
        ([{"id": "a"}], 1280, {}, "elements.a.class: None is not allowed", "elements.a.class"),
        (HTML, 0, {}, "canvas.width: 0 is not allowed", "canvas.width"),
        ("<p>", 1280, {}, "line 1 of html", "html"),
        (HTML, 1280, {"num_inference_steps": 0}, "num_inference_steps: 0 is not allowed", "num_inference_steps"),
    ],
)
def test_what_cannot_be_laid_out_is_refused_in_one_sentence(
    served: Served, section: Any, canvas: int, options: dict[str, Any], said: str, field: str
) -> None:
    with Client(served.grpc_url) as client, pytest.raises(InvalidRequestError, match=said) as refused:
        client.generate_layout(section, canvas, **options)
    assert refused.value.field == field


def test_a_goal_that_cannot_be_met_is_met_with_fewer_steps(served: Served) -> None:
    with Client(served.grpc_url) as client:
        client.generate_layout(HTML, 1280)
        made = client.generate_layout(HTML, 1280, num_inference_steps=200, deadline_seconds=0.02)
    assert made.steps < 200
    assert made.degraded == ("fewer than the 200 steps asked for were taken, to meet 0.02 s",)


def test_branches_are_reused_where_a_request_says_so_and_engines_can(served: Served) -> None:
    with Client(served.grpc_url, timeout=60) as client, ThreadPoolExecutor(6) as pool:
        plain = client.generate_layout(HTML, 1280, seed=5).answer
        assert client.generate_layout(HTML, 1280, seed=5, cache="off").answer == plain
        alone = client.generate_layout(HTML, 1280, seed=5, cache=0.9).answer
        asked = [pool.submit(client.generate_layout, HTML, 1280, seed=5, cache=0.9) for _ in range(6)]
        assert all(pending.result().answer == alone for pending in asked)
        with pytest.raises(InvalidRequestError, match="is not calibrated for lcm with 8 steps; nothing is"):
            client.generate_layout(HTML, 1280, cache="light")
    told = {"model": "layout", "how": "computed"}
    for branch in ("attention", "mlp"):
        until(lambda branch=branch: metric(served.metrics, "nereid_layout_branches_total", branch=branch, **told) >= 14)  # type: ignore[misc]
    with Client(served.grpc_url, name="ov") as client, pytest.raises(InvalidRequestError, match="exported without --cache"):
        client.generate_layout(HTML, 1280, cache=0.9)


def test_slices_of_the_transformer_take_their_steps_where_a_request_says_so(served: Served) -> None:
    with Client(served.grpc_url, timeout=60) as client, ThreadPoolExecutor(6) as pool:
        full = client.generate_layout(HTML, 1280, seed=7).answer
        assert client.generate_layout(HTML, 1280, seed=7, transformer_width="full").answer == full
        dynamic = client.generate_layout(HTML, 1280, seed=7, transformer_width="dynamic").answer
        assert dynamic != full
        both = [("full", full), ("dynamic", dynamic)] * 3
        asked = [pool.submit(client.generate_layout, HTML, 1280, seed=7, transformer_width=width) for width, _ in both]
        assert [pending.result().answer for pending in asked] == [answer for _, answer in both]
    with Client(served.grpc_url, name="ov") as client, pytest.raises(InvalidRequestError, match="exported without --widths"):
        client.generate_layout(HTML, 1280, transformer_width="dynamic")


def test_layouts_of_8_bit_products_are_the_same_alone_and_in_company(served: Served) -> None:
    with Client(served.grpc_url, name="w4a8", timeout=60) as client, ThreadPoolExecutor(8) as pool:
        alone = {seed: client.generate_layout(HTML, 1280, seed=seed).answer for seed in range(2)}
        asked = [(n % 2, pool.submit(client.generate_layout, HTML, 1280, seed=n % 2)) for n in range(8)]
        assert all(pending.result().answer == alone[seed] for seed, pending in asked)
    with Client(served.grpc_url, timeout=60) as client:
        assert client.generate_layout(HTML, 1280, seed=0).answer != alone[0]


def drawn_again(client: Client, seed: int) -> LayoutResult:
    """What is answered once the engine that died is back."""
    deadline = time.monotonic() + 60
    while (made := client.generate_layout(HTML, 1280, seed=seed)).drawn_by == "rules":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return made


def test_an_engine_that_dies_is_answered_for_by_rules_and_comes_back(served: Served) -> None:
    with Client(served.grpc_url, name="ov", timeout=60) as client:
        before = client.generate_layout(HTML, 1280, seed=5)
        for _ in range(5):  # on a machine that stands still meanwhile the engine may be back already
            os.kill(worker_of(served, "ov_layout").pid, signal.SIGKILL)
            during = client.generate_layout(HTML, 1280, seed=5)
            if during.drawn_by == "rules":
                break
        assert during.drawn_by == "rules"
        assert during.degraded
        assert drawn_again(client, 5).answer == before.answer
    until(lambda: metric(served.metrics, "nereid_layout_worker_deaths_total", model="ov_layout") >= 1)
    until(lambda: metric(served.metrics, "nereid_layout_degraded_total", model="ov_layout", reason="engine") >= 1)


def test_a_request_whose_patience_outlasts_a_death_is_drawn(served: Served) -> None:
    with Client(served.grpc_url, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        alone = client.generate_layout(HTML, 1280, seed=6, num_inference_steps=60).answer
        asked = [pool.submit(client.generate_layout, HTML, 1280, seed=6, num_inference_steps=60) for _ in range(8)]
        os.kill(worker_of(served, "layout").pid, signal.SIGKILL)
        for pending in asked:
            made = pending.result()
            assert made.answer == alone or made.drawn_by == "rules"
        assert drawn_again(client, 6).drawn_by == "transformer"  # as the next tests need it


def test_the_command_line_draws_a_picture_of_the_boxes(served: Served, tmp_path: Path) -> None:
    (tmp_path / "section.html").write_text(HTML)
    picture = tmp_path / "section.svg"
    run = CliRunner().invoke(
        app, ["layout", str(tmp_path / "section.html"), "--url", served.grpc_url, "-o", str(picture), "--seed", "4", "--json"]
    )
    assert run.exit_code == 0, run.output
    answer = json.loads(run.stdout)
    assert answer["seed"] == 4
    assert picture.read_text() == answer["svg"]
    assert picture.read_text().startswith("<svg")
    refused = CliRunner().invoke(app, ["layout", str(tmp_path / "section.html"), "--url", served.grpc_url, "--width", "10"])
    assert refused.exit_code == 1
    assert "canvas.width: 10 is not allowed" in refused.stderr


def test_the_gateway_lays_out_whole_and_as_events(served: Served) -> None:
    with Client(served.grpc_url) as client:
        made = client.generate_layout(ELEMENTS, 1280, seed=3).answer
    with gateway(served) as url, httpx.Client(base_url=url, timeout=60) as caller:
        asked = {"model": "layout", "elements": ELEMENTS, "canvas": 1280, "seed": 3}
        whole = caller.post("/v1/layouts", json=asked, headers={"x-request-id": "one-id"})
        assert whole.status_code == 200, whole.text
        assert whole.headers["x-request-id"] == "one-id"
        assert (whole.json()["object"], whole.json()["model"], whole.json()["layout"]) == ("layout", "layout", made)
        events = []
        with caller.stream("POST", "/v1/layouts", json={**asked, "stream": True}) as answer:
            events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line.startswith("data: ")]
        assert {event["type"] for event in events[:-1]} == {"layout.progress"}
        assert (events[-1]["type"], events[-1]["layout"]) == ("layout.completed", made)
        refused = caller.post("/v1/layouts", json={**asked, "elements": [{"id": "a"}]})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "elements.a.class")
        nobody = caller.post("/v1/layouts", json={**asked, "model": "llm"})
        assert nobody.status_code == 404

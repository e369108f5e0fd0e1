"""Pages through the gateway: bodies in, whole answers and events out, refusals by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from test_pages import page, shown

from gateway_before import gateway, small_repository
from small_servers import RefusedError, Tensors, grpc_server


class Maker:
    def __init__(self) -> None:
        self.asked: list[Tensors] = []

    def __call__(self, inputs: Tensors) -> Iterator[Tensors]:
        self.asked.append(inputs)
        brief = inputs["brief"][0].decode()
        if brief == "refuse":
            raise RefusedError("characters in brief: 10 is not allowed; it must be less [nereid: INVALID_ARG invalid brief]")
        if "stream_interval" in inputs:
            yield shown(1, "")
            yield shown(2)
        yield page()


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def caller(tmp_path: Path, maker: Maker) -> Iterator[httpx.Client]:
    repository = small_repository(tmp_path)
    (repository / "page" / "1").mkdir(parents=True)
    (repository / "page" / "1" / "page.json").write_text("{}")
    (repository / "page" / "config.pbtxt").write_text('name: "page" parameters { key: "max_pages" value: { string_value: "2" } }')
    with (
        grpc_server({"page": maker}) as (port, _),
        gateway(repository, port) as running,
        httpx.Client(base_url=running.url) as made,
    ):
        yield made


def post(caller: httpx.Client, **body: Any) -> httpx.Response:
    return caller.post("/v1/pages", json=body)


def test_a_page_is_answered_whole(caller: httpx.Client, maker: Maker) -> None:
    answer = post(caller, brief="a bakery", width=800, seed=7, priority=2, pictures=0, deadline_seconds=3.5)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["object"], body["model"], body["html"], body["page"]["title"]) == ("page", "page", "<html>", "Bakery")
    (sent,) = maker.asked
    assert (sent["width"][0], sent["seed"][0], sent["priority"][0], sent["pictures"][0]) == (800, 7, 2, 0)
    assert sent["deadline_seconds"].dtype == np.float32
    assert "page" in {model["id"] for model in caller.get("/v1/models").json()["data"]}


def test_a_stream_is_events_without_an_end_of_its_own(caller: httpx.Client) -> None:
    text = post(caller, brief="a bakery", stream=True, model="page").text
    events = [part.splitlines() for part in text.strip().split("\n\n")]
    assert [event[0] for event in events] == ["event: page.progress", "event: page.progress", "event: page.completed"]
    bodies = [json.loads(event[1].removeprefix("data: ")) for event in events]
    assert [body["type"] for body in bodies] == ["page.progress", "page.progress", "page.completed"]
    assert (bodies[1]["step"], bodies[1]["html"]) == (2, "<html>")
    assert (bodies[1]["done"], bodies[1]["visible"]) == ({"stage": "layouts", "section": 1}, ["s1"])
    assert bodies[2]["page"]["title"] == "Bakery"


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "brief"),
        ({"brief": "refuse"}, 400, "brief"),
        ({"brief": 3}, 400, "brief"),
        ({"brief": "a", "width": "wide"}, 400, "width"),
        ({"brief": "a", "heigth": 3}, 400, "heigth"),
        ({"brief": "a", "run_id": "x"}, 400, "run_id"),
        ({"brief": "a", "model": "llm"}, 404, "model"),
        ({"brief": "a", "model": "nobody"}, 404, "model"),
    ],
)
def test_what_cannot_be_made_is_refused_by_name(caller: httpx.Client, body: dict[str, Any], status: int, param: str) -> None:
    answer = post(caller, **body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param
    assert caller.get("/v1/pages").status_code == 405


def test_pages_are_counted_under_their_route(caller: httpx.Client) -> None:
    post(caller, brief="a bakery")
    assert 'nereid_gateway_requests_total{route="POST /v1/pages",status="200"} 1.0' in caller.get("/metrics").text

"""Layouts through the gateway: bodies in, whole answers and events out, refusals by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from test_layouts import layout, shown

from nereid.serving.gateway.catalogue import Catalogue
from nereid.serving.gateway.launch import Rules
from nereid.serving.gateway.places import places_of

from gateway_before import gateway, small_repository
from small_servers import RefusedError, Tensors, grpc_server

HTML = "<section><h2>Bread</h2></section>"


class Drawer:
    def __init__(self) -> None:
        self.asked: list[Tensors] = []

    def __call__(self, inputs: Tensors) -> Iterator[Tensors]:
        self.asked.append(inputs)
        if inputs["canvas"][0] == b"1":
            raise RefusedError("canvas.width: 1 is not allowed; it must be more [nereid: INVALID_ARG invalid canvas.width]")
        if "stream_interval" in inputs:
            yield shown(1)
            yield shown(2)
        yield layout()


@pytest.fixture
def drawer() -> Drawer:
    return Drawer()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    made = small_repository(tmp_path)
    (made / "layout" / "1").mkdir(parents=True)
    (made / "layout" / "1" / "layout.json").write_text("{}")
    limits = 'parameters { key: "max_inflight" value: { string_value: "40" } }'
    (made / "layout" / "config.pbtxt").write_text(f'name: "layout" {limits}')
    return made


@pytest.fixture
def caller(repository: Path, drawer: Drawer) -> Iterator[httpx.Client]:
    with (
        grpc_server({"layout": drawer}) as (port, _),
        gateway(repository, port) as running,
        httpx.Client(base_url=running.url) as made,
    ):
        yield made


def post(caller: httpx.Client, **body: Any) -> httpx.Response:
    return caller.post("/v1/layouts", json=body)


def test_a_layout_is_answered_whole(caller: httpx.Client, drawer: Drawer) -> None:
    answer = post(caller, html=HTML, canvas=1280, n=3, format="css", seed=7, priority=2, deadline_seconds=0.5, scheduler="euler")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["object"], body["model"], body["layout"]["elements"][0]["class"]) == ("layout", "layout", "heading")
    (sent,) = drawer.asked
    assert (sent["html"][0], sent["canvas"][0], sent["format"][0]) == (HTML.encode(), b"1280", b"css")
    assert (sent["n"][0], sent["seed"][0], sent["priority"][0], sent["scheduler"][0]) == (3, 7, 2, b"euler")
    assert sent["deadline_seconds"].dtype == np.float32
    listed = [model["id"] for model in caller.get("/v1/models").json()["data"]]
    assert listed == ["llm", "text_to_image", "layout"]  # there are clients that ask the first one for texts


def test_elements_and_a_canvas_are_json_and_not_texts(caller: httpx.Client, drawer: Drawer) -> None:
    elements = [{"id": "title", "class": "heading", "text": "Bröt"}]
    assert post(caller, elements=elements, canvas={"width": 768, "style": "grid"}, html=None).status_code == 200
    (sent,) = drawer.asked
    assert json.loads(sent["elements"][0]) == elements
    assert json.loads(sent["canvas"][0]) == {"width": 768, "style": "grid"}


def test_a_stream_is_events_without_an_end_of_its_own(caller: httpx.Client) -> None:
    text = post(caller, html=HTML, canvas=1280, stream=True, model="layout").text
    events = [part.splitlines() for part in text.strip().split("\n\n")]
    assert [event[0] for event in events] == ["event: layout.progress", "event: layout.progress", "event: layout.completed"]
    bodies = [json.loads(event[1].removeprefix("data: ")) for event in events]
    assert [body["type"] for body in bodies] == ["layout.progress", "layout.progress", "layout.completed"]
    assert (bodies[1]["step"], bodies[1]["num_inference_steps"], bodies[1]["elements"][0]["class"]) == (2, 16, "heading")
    assert bodies[2]["layout"]["seed"] == 5


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"html": HTML}, 400, "canvas"),
        ({"html": HTML, "canvas": 1}, 400, "canvas.width"),
        ({"html": HTML, "canvas": "1280"}, 400, "canvas"),
        ({"html": HTML, "canvas": True}, 400, "canvas"),
        ({"canvas": 1280}, 400, "html"),
        ({"html": HTML, "elements": [], "canvas": 1280}, 400, "html"),
        ({"elements": ["a"], "canvas": 1280}, 400, "elements.0"),
        ({"html": HTML, "canvas": 1280, "n": "three"}, 400, "n"),
        ({"html": HTML, "canvas": 1280, "steps": 3}, 400, "steps"),
        ({"html": HTML, "canvas": 1280, "run_id": "x"}, 400, "run_id"),
        ({"html": HTML, "canvas": 1280, "model": "llm"}, 404, "model"),
    ],
)
def test_what_cannot_be_laid_out_is_refused_by_name(caller: httpx.Client, body: dict[str, Any], status: int, param: str) -> None:
    answer = post(caller, **body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param
    assert caller.get("/v1/layouts").status_code == 405


def test_layouts_are_counted_under_their_route(caller: httpx.Client) -> None:
    post(caller, html=HTML, canvas=1280)
    assert 'nereid_gateway_requests_total{route="POST /v1/layouts",status="200"} 1.0' in caller.get("/metrics").text


def test_places_are_the_models_and_batches_which_are_not_for_layouts_keep_their_pace(repository: Path) -> None:
    assert (places_of(repository, "layout").most, places_of(repository, "layout").at_once) == (40 + 256, 40)
    assert Catalogue(repository, Rules(), "", "").at_once == 16  # the language model's

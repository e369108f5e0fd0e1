"""What the gateway says and hears, without a Triton: errors, hang-ups, refusals, request ids, numbers."""

from __future__ import annotations

import gzip
import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from nereid_protocol.metrics import ALL_METRICS, GATEWAY_METRICS

from gateway_before import Running, gateway, small_repository
from scripted import delta, image, progress, texts
from small_servers import HangError, RefusedError, Small, Tensors, grpc_server
from waiting import until

CHAT, COMPLETIONS, IMAGES = "/v1/chat/completions", "/v1/completions", "/v1/images/generations"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "llm", "messages": [{"role": "user", "content": "hello"}]},
    COMPLETIONS: {"model": "llm", "prompt": "hello"},
    IMAGES: {"model": "text_to_image", "prompt": "a box"},
}


class Models:
    """What the small server does. A prompt with a word of these in it decides what becomes of the request."""

    def __init__(self) -> None:
        self.asked: list[Tensors] = []
        self.cancelled = threading.Event()

    def all(self) -> dict[str, Any]:
        return {"llm": self.llm, "text_to_image": self.image, "text_to_image_stream": self.stream, "denoise": self.denoise}

    def _obey(self, inputs: Tensors) -> bool:
        """Whether it was a question, which is answered."""
        if "cancel" in inputs:
            self.cancelled.set()
        if "cancel" in inputs or "watch" in inputs:
            return True
        self.asked.append(inputs)
        prompt = str(inputs.get("text_input", inputs.get("prompt", texts(""))).reshape(-1)[0])
        if "FULL" in prompt:
            raise RefusedError("queue: 3 wait already [nereid: UNAVAILABLE queue_full]", grpc.StatusCode.UNAVAILABLE)
        if "LONG" in prompt:
            raise RefusedError(
                "text_input: 900 tokens is not allowed; it must be fewer [nereid: INVALID_ARG too_long text_input]"
            )
        if "WRONG" in prompt:
            raise RefusedError("text_input: 'WRONG' is not allowed [nereid: INVALID_ARG invalid text_input]")
        if "HANG" in prompt:
            raise HangError
        return False

    def llm(self, inputs: Tensors) -> Iterator[Tensors]:
        if self._obey(inputs):
            yield {"run_state": texts("running")}
            return
        if bool(inputs["stream"][0]):
            yield delta([5], "he")
            yield delta([6], "llo", "stop")
            return
        whole = delta([5, 6], "hello", "stop")
        yield {**whole, "num_output_tokens": np.array([2]), "cumulative_logprob": np.array([-1.0], np.float32)}

    def image(self, inputs: Tensors) -> Iterator[Tensors]:
        self._obey(inputs)
        yield image()

    def stream(self, inputs: Tensors) -> Iterator[Tensors]:
        self._obey(inputs)
        yield progress(1, 2)
        made = image()
        yield {name: value[0] for name, value in made.items()}

    def denoise(self, inputs: Tensors) -> Iterator[Tensors]:
        self._obey(inputs)
        yield {"run_state": np.array([[b"running"]], object)}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def small(models: Models) -> Iterator[tuple[int, Small]]:
    with grpc_server(models.all()) as server:
        yield server


@pytest.fixture
def api(repository: Path, small: tuple[int, Small]) -> Iterator[httpx.Client]:
    with gateway(repository, small[0]) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def bodies_only(repository: Path) -> Iterator[httpx.Client]:
    """For bodies that no server ever sees."""
    with gateway(repository, 9) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


def changed(route: str, change: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**BODIES[route], **change}.items() if value is not ...}


# --- errors ---


@pytest.mark.parametrize(
    ("route", "change", "param", "words"),
    [
        (CHAT, {"stream": "maybe"}, "stream", "'maybe' is not allowed; it must be true or false"),
        (CHAT, {"structured_outputs": 3}, "structured_outputs", "3 is not allowed; it must be an object of json"),
        (CHAT, {"structured_outputs": {"regex": 3}}, "structured_outputs.regex", "3 is not allowed"),
        (CHAT, {"messages": [{"role": "user", "content": 3}]}, "messages.0.content", "it must be a string or a list"),
        (CHAT, {"messages": [{"role": "user", "content": {"str": 1}}]}, "messages.0.content", "an object is not allowed"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text", "it is missing"),
        (CHAT, {"messages": [{"content": "x"}]}, "messages.0.role", "it is missing"),
        (CHAT, {"messages": ...}, "messages", "messages: it is missing"),
        (CHAT, {"stream_options": {"strict": 1}}, "stream_options.strict", "not supported"),
        (CHAT, {"stop": [3]}, "stop.0", "3 is not allowed"),
        (CHAT, {"logit_bias": {"5": "much"}}, "logit_bias.5", "'much' is not allowed"),
        (
            CHAT,
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 3}}},
            "response_format.json_schema.schema",
            "3",
        ),
        (COMPLETIONS, {"prompt": [4294967301]}, "prompt.0", "4294967301 is not allowed; it must be below 2147483648"),
        (COMPLETIONS, {"prompt": [[1, -2]]}, "prompt.0.1", "-2 is not allowed; it must be at least 0"),
        (COMPLETIONS, {"prompt": [True]}, "prompt.0", "True is not allowed"),
        (COMPLETIONS, {"prompt": {"a": 1}}, "prompt", "an object is not allowed"),
        (IMAGES, {"seed": "x"}, "seed", "'x' is not allowed; it must be an integer"),
        (IMAGES, {"size": "huge"}, "size", "must be WIDTHxHEIGHT"),
        (IMAGES, {"structure": 1}, "structure", "not supported"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_an_error_names_the_field_that_its_caller_wrote(
    bodies_only: httpx.Client, route: str, change: dict[str, Any], param: str, words: str
) -> None:
    answer = bodies_only.post(route, json=changed(route, change))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert words in error["message"]
    assert error["message"].startswith(f"{param}: ")
    assert "hello" not in error["message"]  # nothing of the rest of the body


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_is_not_called_json_is_refused_in_one_sentence(bodies_only: httpx.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    answer = bodies_only.post(CHAT, content=b'{"model": "llm"}', headers=headers)
    message = answer.json()["error"]["message"]
    assert answer.status_code == 415
    assert message.startswith("content-type: ")
    assert "b'" not in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "line 1"),
        (b"", "not valid JSON"),
        (b'{"model": "\xff"}', "UTF-8"),
        (b"[" * 100_000, "nested"),
        (b'{"temperature": NaN}', "nan"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'["model"]', "object"),
    ],
)
def test_what_is_no_json_object_is_refused(bodies_only: httpx.Client, content: bytes, words: str) -> None:
    answer = bodies_only.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"].lower() or words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("route", "change", "param"),
    [
        (COMPLETIONS, {"prompt": "\ud800"}, "prompt"),
        (COMPLETIONS, {"prompt": ["fine", "\udfff"]}, "prompt.1"),
        (COMPLETIONS, {"stop": ["\ud800"]}, "stop.0"),
        (CHAT, {"messages": [{"role": "user", "content": "a \ud800 b"}]}, "messages.0.content"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "\udc00"}]}]}, "messages.0.content.0.text"),
        (CHAT, {"metadata": {"\ud800": 1}}, "metadata"),
        (CHAT, {"model": "\ud800"}, "model"),
        (CHAT, {"structured_outputs": {"json": {"enum": ["\udeef"]}}}, "structured_outputs.json.enum.0"),
        (CHAT, {"\ud800": 1}, "body"),
        (IMAGES, {"prompt": "\ud800"}, "prompt"),
        (IMAGES, {"negative_prompt": "\ud800", "stream": True}, "negative_prompt"),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_half_a_surrogate_pair_is_refused_wherever_it_stands(
    bodies_only: httpx.Client, route: str, change: dict[str, Any], param: str
) -> None:
    content = json.dumps({**BODIES[route], **change}).encode()  # ascii: the escapes as a client sends them
    answer = bodies_only.post(route, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_whole_pairs_and_other_escapes_are_text(api: httpx.Client, models: Models) -> None:
    content = json.dumps({**BODIES[COMPLETIONS], "prompt": "\U0001f600 \u00e9"}).encode()
    assert api.post(COMPLETIONS, content=content, headers={"content-type": "application/json"}).status_code == 200
    assert models.asked[0]["text_input"][0].decode() == "\U0001f600 \u00e9"


@pytest.mark.parametrize(("route", "param"), [(CHAT, "messages"), (COMPLETIONS, "prompt")])
@pytest.mark.parametrize("stream", [False, True])
def test_a_context_too_long_has_openais_code_and_the_callers_field(
    api: httpx.Client, route: str, param: str, stream: bool
) -> None:
    change = {"messages": [{"role": "user", "content": "LONG"}]} if route == CHAT else {"prompt": "LONG"}
    answer = api.post(route, json=changed(route, {**change, "stream": stream}))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", param)
    assert error["message"].startswith(f"{param}: 900 tokens")
    assert error["message"].endswith("(context_length_exceeded)")  # openai-python's exceptions show the sentence alone


def test_what_nobody_foresaw_is_a_json_500_with_its_request_id_logged_once(
    repository: Path, small: tuple[int, Small], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*args: object) -> None:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr("nereid.serving.gateway.chats.read_chat", fails)
    with caplog.at_level(logging.INFO, "nereid"), gateway(repository, small[0]) as running:
        answer = httpx.post(f"{running.url}{CHAT}", json=BODIES[CHAT], headers={"x-request-id": "mine-1"})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "mine-1" in answer.json()["error"]["message"]
    assert answer.headers["x-request-id"] == "mine-1"
    assert len([record for record in caplog.records if record.exc_info]) == 1
    assert any("mine-1" in record.getMessage() for record in caplog.records if record.exc_info)


# --- refusals and hang-ups ---


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", [CHAT, COMPLETIONS, IMAGES])
def test_a_full_queue_is_told_at_once_and_once(api: httpx.Client, models: Models, route: str, stream: bool) -> None:
    change = {"messages": [{"role": "user", "content": "FULL"}]} if route == CHAT else {"prompt": "FULL"}
    answer = api.post(route, json=changed(route, {**change, "stream": stream}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_full")
    assert answer.headers["retry-after"] == "1"
    assert len(models.asked) == 1  # it was not tried again in here


def test_a_streamed_chat_ends_with_the_reason_in_a_chunk_without_text(api: httpx.Client) -> None:
    lines = api.post(CHAT, json=changed(CHAT, {"stream": True})).text.splitlines()
    choices = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    assert [(choice["delta"], choice["finish_reason"]) for choice in choices] == [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "he"}, None),
        ({"content": "llo"}, None),
        ({}, "stop"),
    ]


@pytest.mark.parametrize("path", [f"{CHAT}/", f"{COMPLETIONS}/", "/v1/models/", "/health/"])
def test_nobody_is_sent_elsewhere(bodies_only: httpx.Client, path: str) -> None:
    answer = bodies_only.get(path, headers={"Host": "elsewhere.example"})
    assert answer.status_code in (404, 405)
    assert "location" not in answer.headers
    assert path in answer.json()["error"]["message"] or "is not served here" in answer.json()["error"]["message"]


def test_a_packed_body_is_refused_by_its_name(bodies_only: httpx.Client) -> None:
    packed = gzip.compress(json.dumps(BODIES[CHAT]).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = bodies_only.post(CHAT, content=packed, headers=headers)
    assert answer.status_code == 415
    assert answer.json()["error"]["message"].startswith("content-encoding: 'gzip' is not allowed")


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
def test_usage_that_was_asked_for_is_null_in_every_chunk_but_the_last(api: httpx.Client, route: str) -> None:
    lines = api.post(route, json=changed(route, {"stream": True, "stream_options": {"include_usage": True}})).text.splitlines()
    *chunks, last = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert chunks
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 2


def test_when_one_of_several_prompts_is_refused_the_others_are_cancelled(api: httpx.Client, models: Models) -> None:
    answer = api.post(COMPLETIONS, json={"model": "llm", "prompt": ["HANG", "WRONG"]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
    assert models.cancelled.wait(60)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", [CHAT, COMPLETIONS, IMAGES])
def test_a_caller_that_hangs_up_before_anything_came_cancels_its_run(
    api: httpx.Client, models: Models, route: str, stream: bool
) -> None:
    change = {"messages": [{"role": "user", "content": "HANG"}]} if route == CHAT else {"prompt": "HANG"}
    body = json.dumps(changed(route, {**change, "stream": stream})).encode()
    head = f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((str(api.base_url.host), int(api.base_url.port or 0))) as connection:
        connection.sendall(head.encode() + body)
        until(lambda: len(models.asked) == 1)
        assert not models.cancelled.is_set()
    assert models.cancelled.wait(60)
    until(lambda: f'route="POST {route}",status="499"' in api.get("/metrics").text)


def test_a_caller_that_leaves_a_stream_between_two_events_cancels_its_run(repository: Path, models: Models) -> None:
    def slow(inputs: Tensors) -> Iterator[Tensors]:
        for answer in models.llm(inputs):
            yield answer
            if "run_state" not in answer:
                raise HangError

    with grpc_server({"llm": slow}) as (port, _), gateway(repository, port) as running:
        with httpx.stream("POST", f"{running.url}{CHAT}", json=changed(CHAT, {"stream": True}), timeout=60) as answer:
            next(answer.iter_lines())
        assert models.cancelled.wait(60)


# --- what answers tell besides ---


def test_an_images_warnings_reach_the_gateways_caller(api: httpx.Client) -> None:
    assert api.post(IMAGES, json=BODIES[IMAGES]).json()["warnings"] == ["one", "two"]
    with api.stream("POST", IMAGES, json=changed(IMAGES, {"stream": True, "partial_images": 1})) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    assert [event["type"] for event in events] == ["image_generation.partial_image", "image_generation.completed"]
    assert events[-1]["warnings"] == ["one", "two"]


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS, IMAGES])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_id_goes_through_to_triton_and_back(
    api: httpx.Client, small: tuple[int, Small], route: str, stream: bool
) -> None:
    answer = api.post(route, json=changed(route, {"stream": stream}), headers={"x-request-id": "mine-7"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (200, "mine-7")
    assert small[1].ids == ["mine-7"]


@pytest.mark.parametrize("sent", ["x" * 129, "two words", "caf\u00e9", ""])
def test_a_request_id_that_is_none_is_replaced(bodies_only: httpx.Client, sent: str) -> None:
    answer = bodies_only.get("/v1/models", headers={"x-request-id": sent.encode("latin-1")})
    assert re.fullmatch(r"req-[0-9a-f]{24}", answer.headers["x-request-id"])


def test_errors_of_all_kinds_have_the_request_id(bodies_only: httpx.Client) -> None:
    headers = {"x-request-id": "mine"}
    for answer in (
        bodies_only.get("/nowhere", headers=headers),
        bodies_only.post(CHAT, content=b"x" * 200_000, headers=headers),
        bodies_only.post(CHAT, json={}, headers=headers),
        bodies_only.post(CHAT, json=changed(CHAT, {"model": "nobody"}), headers=headers),
    ):
        assert answer.status_code >= 400
        assert answer.headers["x-request-id"] == "mine"


# --- numbers ---


@pytest.fixture(scope="module")
def triton_page() -> Iterator[str]:
    """The address of a page as Triton's."""
    page = (
        "# HELP nv_inference_request_success Number of successful requests\n# TYPE nv_inference_request_success counter\n"
        'nv_inference_request_success{model="llm",version="1"} 7\n'
        "# HELP nereid_llm_tick_seconds Time\n# TYPE nereid_llm_tick_seconds histogram\n"
        'nereid_llm_tick_seconds_count{model="llm"} 2\nnereid_llm_tick_seconds_sum{model="llm"} 0.5\n'
        'nereid_llm_tick_seconds_bucket{model="llm",le="1"} 2\nnereid_llm_tick_seconds_bucket{model="llm",le="+Inf"} 2\n'
    )

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page.encode())

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/metrics"
    server.shutdown()
    server.server_close()


@pytest.fixture
def watched(repository: Path, small: tuple[int, Small], triton_page: str) -> Iterator[Running]:
    with gateway(repository, small[0], triton_page) as running:
        yield running


def test_the_page_counts_requests_and_ends_with_tritons(watched: Running) -> None:
    httpx.post(f"{watched.url}{CHAT}", json=BODIES[CHAT])
    httpx.post(f"{watched.url}{CHAT}", json=changed(CHAT, {"stream": True}))
    httpx.post(f"{watched.url}{CHAT}", json={})
    httpx.get(f"{watched.url}/some/where/{'x' * 300}")
    families = {family.name: family for family in text_string_to_metric_families(httpx.get(f"{watched.url}/metrics").text)}
    counted = {
        (sample.labels["route"], sample.labels["status"]): sample.value for sample in families["nereid_gateway_requests"].samples
    }
    assert counted == {(f"POST {CHAT}", "200"): 2, (f"POST {CHAT}", "400"): 1, ("other", "404"): 1}
    first = {sample.name: sample for sample in families["nereid_gateway_time_to_first_token_seconds"].samples}
    assert first["nereid_gateway_time_to_first_token_seconds_count"].value == 1
    assert families["nereid_gateway_replays"].samples[0].labels == {"pipeline": ""}
    assert families["nv_inference_request_success"].samples[0].value == 7
    known = {metric.name.removesuffix("_total") for metric in ALL_METRICS}
    assert {name for name in families if name.startswith("nereid")} <= known
    assert {metric.name.removesuffix("_total") for metric in GATEWAY_METRICS} <= families.keys()


def test_openmetrics_has_exemplars_with_request_ids(watched: Running) -> None:
    httpx.post(f"{watched.url}{CHAT}", json=changed(CHAT, {"stream": True}), headers={"x-request-id": "mine-9"})
    page = httpx.get(f"{watched.url}/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert page.headers["content-type"].startswith("application/openmetrics-text")
    families = {family.name: family for family in parse_openmetrics(page.text)}  # a strict parser
    for name in ("nereid_gateway_requests", "nereid_gateway_request_seconds", "nereid_gateway_time_to_first_token_seconds"):
        exemplars = [sample.exemplar.labels for sample in families[name].samples if sample.exemplar]
        assert {"request_id": "mine-9"} in exemplars, name
    (success,) = families["nv_inference_request_success"].samples
    assert (success.name, success.value) == ("nv_inference_request_success", 7)  # as dashboards know it


def test_the_page_is_there_while_triton_is_not(bodies_only: httpx.Client) -> None:
    answer = bodies_only.get("/metrics")
    assert answer.status_code == 200
    assert "nereid_gateway_requests_total" in answer.text


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text; version=abc", "Application/OpenMetrics-Text;version=;q=x", "text/plain;version=x"]
)
def test_what_stands_in_accept_is_never_an_error(bodies_only: httpx.Client, accept: str) -> None:
    """Anybody may ask for this page: prometheus_client's own choice fails at a version that is none."""
    answer = bodies_only.get("/metrics", headers={"accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(
        "text/plain" if accept.startswith("text") else "application/openmetrics-text"
    )
    assert "abc" not in answer.headers["content-type"]

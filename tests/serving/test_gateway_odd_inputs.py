"""What callers send and models write that is no usual text: each is an answer or a sentence, never a 500 or a broken stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from nereid.serving.gateway.launch import Rules

from gateway_before import gateway, small_repository
from scripted import delta, texts
from small_servers import Tensors
from template_families import FAMILIES

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ASK: dict[str, Any] = {"model": "llm", "messages": [{"role": "user", "content": "How warm?"}]}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}


class Model:
    """Writes `answer`."""

    def __init__(self) -> None:
        self.answer, self.reason = "Well.", "stop"
        self.asked: list[dict[str, Any]] = []
        self.prompts: list[str] = []

    def __call__(self, inputs: Tensors) -> Iterator[Tensors]:
        if "sampling_parameters" not in inputs:
            yield {"run_state": texts("running")}
            return
        self.asked.append(json.loads(inputs["sampling_parameters"][0]))
        self.prompts.append(inputs["text_input"][0].decode())
        whole = {} if bool(inputs["stream"][0]) else {"num_output_tokens": np.array([1]), "cumulative_logprob": np.array([0.0])}
        yield delta([1], self.answer, self.reason, **whole)


@pytest.fixture
def api(tmp_path: Path, triton: int) -> Iterator[httpx.Client]:
    repository = small_repository(tmp_path, FAMILIES["hermes"])
    with gateway(repository, triton) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def bodies_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    repository = small_repository(tmp_path_factory.mktemp("repository"), FAMILIES["hermes"])
    with gateway(repository, 9) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


def send(client: httpx.Client, route: str, text: str) -> tuple[int, Any]:
    answer = client.post(route, content=text.encode(), headers={"content-type": "application/json"})
    return answer.status_code, answer.json()


# --- streams ---


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\r"])
def test_no_character_of_an_answer_ends_a_line_of_its_stream(api: httpx.Client, model: Model, end: str) -> None:
    model.answer = f"one{end}two"
    answer = api.post(CHAT, json={**ASK, "stream": True})
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]  # which knows all ends of lines
    told = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1]]
    assert "".join(told) == model.answer
    assert answer.headers["x-accel-buffering"] == "no"


# --- numbers and depths ---


@pytest.mark.parametrize("number", ["1e999", "-1E+400", "1" + "0" * 400 + ".0"])
@pytest.mark.parametrize(
    ("route", "body"),
    [
        (CHAT, '{"model": "llm", "messages": [{"role": "user", "content": "x"}], "temperature": %s}'),
        (CHAT, '{"model": "llm", "messages": [{"role": "user", "content": "x"}], "metadata": {"a": [%s]}}'),
        (
            RESPONSES,
            '{"model": "llm", "input": "x", "tools": [{"type": "function", "name": "f", "parameters": {"properties": '
            '{"a": {"maximum": %s}}}}]}',
        ),
    ],
    ids=["field", "within", "repeated"],
)
def test_a_number_that_no_float_holds_is_refused(api: httpx.Client, route: str, body: str, number: str) -> None:
    status, said = send(api, route, body % number)
    assert status == 400, said
    assert "is larger than any number that can be read" in said["error"]["message"]
    assert len(said["error"]["message"]) < 200


def test_numbers_with_exponents_are_read(api: httpx.Client, model: Model) -> None:
    status, said = send(api, COMPLETIONS, '{"model": "llm", "prompt": "x", "temperature": 5e-1, "top_p": 1E-2, "seed": 7}')
    assert status == 200, said
    assert (model.asked[-1]["temperature"], model.asked[-1]["top_p"]) == (0.5, 0.01)


def test_a_body_may_begin_with_a_mark_of_bytes_order(api: httpx.Client) -> None:
    status, said = send(api, COMPLETIONS, '\ufeff{"model": "llm", "prompt": "x"}')
    assert status == 200, said


def with_nested(field: str, levels: int) -> tuple[str, str]:
    """A route, and a body with so many objects in each other; written by hand, for Python's own writer goes only so deep."""
    route, body = BODIES[field]
    text = json.dumps({"model": "llm", **body("DEEP")})
    return route, text.replace('"DEEP"', '{"a":' * (levels - 1) + "{}" + "}" * (levels - 1))


BODIES: dict[str, Any] = {
    "structured_outputs": (COMPLETIONS, lambda deep: {"prompt": "x", "structured_outputs": {"json": deep}}),
    "chat_template_kwargs": (CHAT, lambda deep: {"messages": ASK["messages"], "chat_template_kwargs": {"deep": deep}}),
    "text": (RESPONSES, lambda deep: {"input": "x", "text": {"format": {"type": "json_schema", "name": "a", "schema": deep}}}),
    "tools": (RESPONSES, lambda deep: {"input": "x", "tools": [{"type": "function", "name": "f", "parameters": deep}]}),
    "metadata": (CHAT, lambda deep: {"messages": ASK["messages"], "metadata": deep}),
}


@pytest.mark.parametrize("field", BODIES)
def test_what_is_nested_too_deeply_is_refused_by_name_however_deep_it_is(api: httpx.Client, field: str) -> None:
    for levels in (128, 200, 500, *range(900, 1000, 3)):
        status, said = send(api, *with_nested(field, levels))
        assert status == 400, (levels, said)
        assert "nested too deeply" in said["error"]["message"]
        assert said["error"]["param"] in (field, None)


@pytest.mark.parametrize("field", ["structured_outputs", "chat_template_kwargs", "text", "metadata"])
def test_what_is_nested_deeply_is_taken(api: httpx.Client, field: str) -> None:
    status, said = send(api, *with_nested(field, 124))
    assert status == 200, said


# --- templates ---


@pytest.mark.parametrize(
    ("template", "more", "words"),
    [
        ("{{ 'on ' + date }}", {"chat_template_kwargs": {"date": 5}}, "can only concatenate str"),
        ("{{ date / 0 }}", {"chat_template_kwargs": {"date": 5}}, "division by zero"),
        ("{% for i in range(count) %}x{% endfor %}", {"chat_template_kwargs": {"count": 10**9}}, "Range too big"),
        ("{{ date.items() }}", {"chat_template_kwargs": {"date": 5}}, "has no attribute 'items'"),
        ("{{ range(3) }}", {"chat_template_kwargs": {"range": 5}}, "not callable"),
    ],
    ids=str,
)
def test_a_template_that_fails_over_what_was_sent_refuses_it(
    tmp_path: Path, triton: int, template: str, more: dict[str, Any], words: str
) -> None:
    with gateway(small_repository(tmp_path, template), triton) as running:
        answer = httpx.post(f"{running.url}{CHAT}", json={**ASK, **more}, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "messages"), error
    assert words in error["message"]


def test_a_model_without_a_usual_template_has_one_named(tmp_path: Path, triton: int, model: Model) -> None:
    repository = small_repository(tmp_path)
    folder = repository / "llm" / "1"
    (folder / "additional_chat_templates").mkdir()
    (folder / "chat_template.jinja").rename(folder / "additional_chat_templates" / "short.jinja")
    with gateway(repository, triton) as running:
        without = httpx.post(f"{running.url}{CHAT}", json=ASK, timeout=60)
        named = httpx.post(f"{running.url}{CHAT}", json={**ASK, "chat_template": "short"}, timeout=60)
    assert (without.status_code, without.json()["error"]["param"]) == (400, "chat_template")
    assert without.json()["error"]["message"] == "chat_template: it is missing; it must be the name of one of the model's, short"
    assert (named.status_code, model.prompts[-1]) == (200, "How warm?")


# --- calls of tools ---


@pytest.mark.parametrize("stream", [False, True])
def test_half_a_surrogate_pair_that_a_model_writes_stays_an_escape(api: httpx.Client, model: Model, stream: bool) -> None:
    model.answer = '<tool_call>\n{"name": "now", "arguments": "{\\"at\\": \\"\\ud83d\\"}"}\n</tool_call>'
    answer = api.post(CHAT, json={**ASK, "tools": [NOW], "stream": stream})
    assert answer.status_code == 200, answer.text
    lines = answer.text.replace("data: ", "").split("\n")
    bodies = [json.loads(line) for line in lines if line.startswith("{")]
    parts = [body["choices"][0]["delta" if stream else "message"] for body in bodies]
    arguments = "".join(call["function"]["arguments"] for part in parts for call in part.get("tool_calls", ()))
    assert arguments == '{"at": "\\ud83d"}'


# --- fields ---


def test_hints_for_a_cache_are_taken_wherever_they_stand(api: httpx.Client, model: Model) -> None:
    hint = {"cache_control": {"type": "ephemeral"}}
    message = {"role": "user", "content": [{"type": "text", "text": "How warm?", **hint}], **hint}
    answer = api.post(CHAT, json={"model": "llm", "messages": [message], "tools": [{**NOW, **hint}], **hint})
    assert answer.status_code == 200, answer.text
    assert "How warm?" in model.prompts[-1]
    assert "ephemeral" not in model.prompts[-1]


def test_chunks_are_not_padded_whatever_is_asked_for(api: httpx.Client) -> None:
    for wanted in (True, False, None):
        answer = api.post(CHAT, json={**ASK, "stream": True, "stream_options": {"include_obfuscation": wanted}})
        assert answer.status_code == 200, answer.text
        assert "obfuscation" not in answer.text


def test_a_models_long_name_is_told_in_part(bodies_only: httpx.Client) -> None:
    asked = bodies_only.post(CHAT, json={**ASK, "model": "m" * 5000})
    shown = bodies_only.get(f"/v1/models/{'m' * 5000}")
    for answer in (asked, shown):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert len(answer.json()["error"]["message"]) < 300


# --- methods, origins ---


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("OPTIONS", CHAT, "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("PUT", "/v1/responses/x", "DELETE, GET, HEAD"),
    ],
)
def test_a_method_that_is_not_allowed_is_told_those_that_are(
    bodies_only: httpx.Client, method: str, path: str, allowed: str
) -> None:
    answer = bodies_only.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.json()["error"]["message"] == f"{method} {path}: method not allowed"


def test_a_page_of_another_origin_reads_that_the_gateway_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*args: object) -> None:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr("nereid.serving.gateway.chats.read_chat", fails)
    with gateway(small_repository(tmp_path), 9, rules=Rules(cors_origins=("https://app.example",))) as running:
        answer = httpx.post(f"{running.url}{CHAT}", json=ASK, headers={"Origin": "https://app.example"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, "https://app.example")
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]

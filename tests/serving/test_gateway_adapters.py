"""Several models behind one gateway: adapters and aliases by name, models that come and go, what is not there any more."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from nereid.serving.errors import ServingError
from nereid.serving.gateway.catalogue import LOOK_SECONDS
from nereid.serving.gateway.launch import Launch, Rules, aliases_of
from nereid.serving.gateway.repository import offered_models
from nereid.serving.gateway.service import gateway_service
from nereid.serving.health import HealthServer
from nereid.serving.options import ServeOptions, free_ports

from gateway_before import TEMPLATE, gateway, small_repository
from scripted import delta, texts
from small_gateway import run_serve
from small_servers import RefusedError, Tensors, grpc_server
from waiting import until

RULES = Rules(aliases={"gpt-4o": "sql", "default": "llm", "dall-e": "text_to_image"})
ADAPTERS = ["sql", "poems"]


def add_model(repository: Path, name: str, **facts: Any) -> Path:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "llm.json").write_text(json.dumps(facts))
    (repository / name / "1" / "chat_template.jinja").write_text(TEMPLATE)
    return repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    made = small_repository(tmp_path / "repository")
    (made / "llm" / "1" / "llm.json").write_text(json.dumps({"adapters": ADAPTERS}))
    return add_model(made, "b_llm")


class Models:
    """Says by which model and adapter it was asked; `hold` keeps answers back."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.hold = threading.Event()
        self.hold.set()

    def all(self) -> dict[str, Any]:
        return {name: self._model(name) for name in ("llm", "b_llm", "c_llm")}

    def _model(self, name: str) -> Callable[[Tensors], Iterator[Tensors]]:
        def answer(inputs: Tensors) -> Iterator[Tensors]:
            if "watch" in inputs or "cancel" in inputs:
                yield {"run_state": texts("running")}
                return
            adapter = json.loads(inputs["sampling_parameters"][0]).get("lora_name")
            if adapter not in (None, *ADAPTERS):
                allowed = f"it must be absent, or one of this model's adapters: {', '.join(ADAPTERS)}"
                raise RefusedError(f"lora_name: {adapter!r} is not allowed; {allowed} [nereid: INVALID_ARG invalid lora_name]")
            self.asked.append((name, adapter))
            self.hold.wait(60)
            whole = {} if inputs["stream"][0] else {"num_output_tokens": np.array([1]), "cumulative_logprob": np.array([0.0])}
            yield delta([5], f"by {adapter} of {name}", "stop", **whole)

        return answer


@pytest.fixture
def models() -> Iterator[Models]:
    made = Models()
    yield made
    made.hold.set()


@pytest.fixture
def api(repository: Path, models: Models) -> Iterator[httpx.Client]:
    with (
        grpc_server(models.all()) as (port, _),
        gateway(repository, port, rules=RULES) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield client


BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"prompt": "hello"},
    "/v1/responses": {"input": "hello"},
}


def said(answer: httpx.Response) -> tuple[str, str]:
    """The model that an answer names, and its text, of any of the three endpoints; streamed ones by their pieces."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        models = {event["model"] if "model" in event else event["response"]["model"] for event in events if _names(event)}
        assert len(models) == 1
        choices = [event["choices"][0] for event in events if event.get("choices")]
        parts = [choice.get("text") or (choice.get("delta") or {}).get("content") or "" for choice in choices]
        parts += [event["delta"] for event in events if event.get("type") == "response.output_text.delta"]
        return models.pop(), "".join(parts)
    body = answer.json()
    if "output" in body:
        return body["model"], body["output"][0]["content"][0]["text"]
    choice = body["choices"][0]
    return body["model"], choice["text"] if "text" in choice else choice["message"]["content"]


def _names(event: dict[str, Any]) -> bool:
    return "model" in event or "response" in event


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("llm", "by None of llm"),
        ("b_llm", "by None of b_llm"),
        ("sql", "by sql of llm"),
        ("poems", "by poems of llm"),
        ("gpt-4o", "by sql of llm"),
        ("default", "by None of llm"),
    ],
)
def test_a_model_an_adapter_and_an_alias_answer_under_the_name_that_was_asked_for(
    api: httpx.Client, path: str, model: str, text: str, stream: bool
) -> None:
    answer = api.post(path, json={"model": model, "stream": stream, **BODIES[path]})
    assert answer.status_code == 200, answer.text
    assert said(answer) == (model, text)


def test_vllms_field_chooses_an_adapter_too(api: httpx.Client) -> None:
    for path in list(BODIES)[:2]:
        answer = api.post(path, json={"model": "llm", "lora_name": "poems", **BODIES[path]})
        assert said(answer) == ("llm", "by poems of llm")
        answer = api.post(path, json={"model": "sql", "lora_name": "sql", **BODIES[path]})
        assert said(answer) == ("sql", "by sql of llm")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"model": "sql", "lora_name": "poems"}, "lora_name: 'poems' is not allowed with model 'sql'; it must be absent, or sql"),
        ({"model": "llm", "lora_name": "prose"}, "lora_name: 'prose' is not allowed; it must be absent, or one of this model's"),
    ],
)
@pytest.mark.parametrize("path", list(BODIES)[:2])
def test_an_adapter_that_is_not_meant_or_not_there_is_refused_by_name(
    api: httpx.Client, path: str, body: dict[str, Any], words: str
) -> None:
    error = api.post(path, json={**body, **BODIES[path]}).json()["error"]
    assert (error["param"], error["type"]) == ("lora_name", "invalid_request_error")
    assert error["message"].startswith(words)


@pytest.mark.parametrize("path", BODIES)
def test_a_name_of_nobody_is_model_not_found_with_those_there_are(api: httpx.Client, path: str) -> None:
    answer = api.post(path, json={"model": "prose", **BODIES[path]})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "'prose' is not one of those served here: b_llm, llm, gpt-4o, default, sql, poems" in error["message"]


@pytest.mark.parametrize("path", [*BODIES, "/v1/embeddings", "/tokenize"])
def test_a_model_must_be_named_only_where_there_are_several(api: httpx.Client, tmp_path: Path, models: Models, path: str) -> None:
    body = BODIES.get(path, {"input": "hello"} if path == "/v1/embeddings" else {"prompt": "hello"})
    error = api.post(path, json=body).json()["error"]
    assert (error["param"], error["code"]) == ("model", "missing_required_parameter")
    assert error["message"] == "model: it is missing; it must be one of those served here: b_llm, llm"
    alone = small_repository(tmp_path)
    with grpc_server(models.all()) as (port, _), gateway(alone, port) as running:
        answer = httpx.post(f"{running.url}{path}", json={"model": None, **body}, timeout=60)
    if path in BODIES:
        assert said(answer) == ("llm", "by None of llm")
    else:
        assert "'llm'" in answer.json()["error"]["message"]  # which has neither embeddings nor a tokenizer here


def test_all_are_listed_with_what_they_belong_to(api: httpx.Client) -> None:
    listed = {item["id"]: (item["root"], item["parent"]) for item in api.get("/v1/models").json()["data"]}
    assert listed == {
        "b_llm": ("b_llm", None),
        "llm": ("llm", None),
        "text_to_image": ("text_to_image", None),
        "sql": ("sql", "llm"),
        "poems": ("poems", "llm"),
        "gpt-4o": ("sql", "llm"),
        "default": ("llm", None),
        "dall-e": ("text_to_image", None),
    }
    assert api.get("/v1/models/gpt-4o").json()["id"] == "gpt-4o"
    assert api.get("/v1/models/prose").json()["error"]["code"] == "model_not_found"


def test_an_alias_may_be_a_models_name_on_the_hub(repository: Path, models: Models) -> None:
    """What callers of other servers send as it is, and openai's package within an address with its slash escaped."""
    name = "meta-llama/Llama-3.1-8B"
    rules = Rules(aliases=aliases_of([f"{name}=llm"]))
    with (
        grpc_server(models.all()) as (port, _),
        gateway(repository, port, rules=rules) as running,
        httpx.Client(base_url=running.url, timeout=60) as api,
    ):
        assert said(api.post("/v1/completions", json={"model": name, "prompt": "x"})) == (name, "by None of llm")
        for path in (f"/v1/models/{name}", f"/v1/models/{name.replace('/', '%2F')}"):
            assert api.get(path).json()["root"] == "llm"
        assert openai.OpenAI(api_key="-", base_url=f"{running.url}/v1").models.retrieve(name).id == name


def test_adapters_wait_in_the_places_of_their_model(repository: Path, models: Models) -> None:
    """Its queue is one: they cannot fill it twice."""
    config = "".join(f'parameters {{ key: "{key}" value: {{ string_value: "1" }} }}' for key in ("max_rows", "max_queue"))
    (repository / "llm" / "config.pbtxt").write_text(f'name: "llm" backend: "python" {config}')
    models.hold.clear()
    with grpc_server(models.all()) as (port, _), gateway(repository, port, rules=RULES) as running:
        statuses: list[int] = []
        names = ["llm", "sql", "poems", "gpt-4o", "llm", "sql", "poems"]

        def ask(name: str) -> None:
            answer = httpx.post(f"{running.url}/v1/completions", json={"model": name, "prompt": "a"}, timeout=60)
            statuses.append(answer.status_code)

        threads = [threading.Thread(target=ask, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
            time.sleep(0.05)
        until(lambda: 503 in statuses)
        models.hold.set()
        for thread in threads:
            thread.join()
    assert sorted(statuses) == [200] * 6 + [503]


# --- at the start ---


@pytest.mark.parametrize(
    ("change", "rules", "words"),
    [
        ({"b_llm": ["sql"]}, Rules(), "'sql' is an adapter of llm, and an adapter of b_llm; each must have a name of its own"),
        ({"b_llm": ["llm"]}, Rules(), "'llm' is an adapter of b_llm, and a model; each must have a name of its own"),
        ({}, Rules(aliases={"sql": "llm"}), "'sql' is an adapter of llm, and an alias of llm; each must have a name of its own"),
        ({}, Rules(aliases={"x": "prose"}), "--alias: 'prose', which 'x' is to stand for, is not served here; there are b_llm"),
        ({}, Rules(aliases={"x": "llm", "y": "x"}), "--alias: 'x', which 'y' is to stand for, is not served here"),
        ({}, Rules(tool_formats={"sql": "hermes"}), "--openai-tools: 'sql' is not a language model of this repository"),
    ],
)
def test_names_that_are_not_plain_are_refused_at_the_start(
    repository: Path, change: dict[str, list[str]], rules: Rules, words: str
) -> None:
    for name, adapters in change.items():
        (repository / name / "1" / "llm.json").write_text(json.dumps({"adapters": adapters}))
    with pytest.raises(ServingError, match=words):
        offered_models(repository, rules)


NO_ALIASES = ("gpt", "=llm", "a b=llm", "/b=llm", "a/=llm", "a//b=llm", f"a/{'b' * 127}=llm", "a=")


@pytest.mark.parametrize("words", [*([word] for word in NO_ALIASES), ["a=llm", "a=sql"]], ids=lambda words: words[-1][:20])
def test_words_that_are_no_alias_are_refused(words: list[str]) -> None:
    with pytest.raises(ServingError, match=r"--alias: '.*' is not allowed; (it must be NAME=MODEL|the name stands for llm)"):
        aliases_of(words)


def test_an_alias_needs_a_gateway(repository: Path) -> None:
    said = run_serve(ServeOptions.on_free_ports(repository, repository / "log"), "--alias", "x=llm")
    assert said.returncode == 1
    assert "--alias: 'x=llm' is not allowed without a gateway; give it a port by --openai-port" in said.stderr


def test_aliases_reach_the_gateways_process() -> None:
    rules = Rules(aliases=aliases_of(["gpt-4o=sql", "org/x=llm"]))
    launch = Launch(
        repository="r", grpc_url="g", metrics_url="m", ready_url="r", drain_seconds=1.0, listener=3, heart=4, rules=rules
    )
    assert Launch.from_argument(launch.to_argument()).rules.aliases == {"gpt-4o": "sql", "org/x": "llm"}


# --- what comes and goes ---


class Supervisor:
    """As much of one as the gateway asks: /ready with the models that are served; away where they are None."""

    def __init__(self) -> None:
        (self.port,) = free_ports(1)
        self.models: list[str] | None = ["llm", "b_llm", "denoise", "text_to_image", "text_to_image_stream"]
        self.server = HealthServer("127.0.0.1", self.port, self.readiness)

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        return True, {"ready": True, **({} if self.models is None else {"models": self.models})}


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    made = Supervisor()
    made.server.start()
    yield made
    made.server.stop()


@pytest.fixture
def live(repository: Path, models: Models, supervisor: Supervisor) -> Iterator[httpx.Client]:
    ready = f"http://127.0.0.1:{supervisor.port}/ready"
    with (
        grpc_server(models.all()) as (port, _),
        gateway(repository, port, ready_url=ready, rules=RULES) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield client


def listed(api: httpx.Client) -> set[str]:
    return {item["id"] for item in api.get("/v1/models").json()["data"]}


def ask(api: httpx.Client, model: str) -> httpx.Response:
    return api.post("/v1/completions", json={"model": model, "prompt": "hello"})


ALL = {"llm", "b_llm", "text_to_image", "sql", "poems", "gpt-4o", "default", "dall-e"}


def test_a_model_that_goes_takes_its_adapters_and_aliases_and_comes_back_with_them(
    live: httpx.Client, supervisor: Supervisor, repository: Path
) -> None:
    assert supervisor.models is not None
    supervisor.models.remove("llm")
    until(lambda: listed(live) == {"b_llm", "text_to_image", "dall-e"})
    for name in ("llm", "sql", "gpt-4o"):
        answer = ask(live, name)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert ask(live, "b_llm").status_code == 200
    supervisor.models.append("llm")
    until(lambda: listed(live) == ALL)
    assert said(ask(live, "gpt-4o")) == ("gpt-4o", "by sql of llm")


def test_a_model_that_comes_is_offered_with_its_adapters(live: httpx.Client, supervisor: Supervisor, repository: Path) -> None:
    assert ask(live, "c_llm").status_code == 404
    add_model(repository, "c_llm", adapters=["verse"])
    time.sleep(2 * LOOK_SECONDS)
    assert "c_llm" not in listed(live)  # not before it is served
    assert supervisor.models is not None
    supervisor.models = [*supervisor.models, "c_llm"]
    until(lambda: {"c_llm", "verse"} <= listed(live))
    assert said(ask(live, "c_llm")) == ("c_llm", "by None of c_llm")
    page = live.get("/metrics").text
    assert 'nereid_gateway_retries_total{pipeline="c"} 0' in page


def test_an_answer_under_way_is_ended_though_its_model_has_gone(
    live: httpx.Client, supervisor: Supervisor, models: Models
) -> None:
    models.hold.clear()
    answers: list[httpx.Response] = []
    caller = threading.Thread(target=lambda: answers.append(ask(live, "b_llm")))
    caller.start()
    until(lambda: ("b_llm", None) in models.asked)
    assert supervisor.models is not None
    supervisor.models.remove("b_llm")
    until(lambda: "b_llm" not in listed(live))
    models.hold.set()
    caller.join()
    assert said(answers[0]) == ("b_llm", "by None of b_llm")


def test_nothing_goes_because_the_supervisor_does_not_answer(live: httpx.Client, supervisor: Supervisor) -> None:
    until(lambda: listed(live) == ALL)
    supervisor.models = None
    time.sleep(2 * LOOK_SECONDS)
    assert listed(live) == ALL


def test_an_adapter_of_a_model_that_comes_takes_nobodys_name(
    live: httpx.Client, supervisor: Supervisor, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where its model stands before the other one."""
    until(lambda: listed(live) == ALL)
    add_model(repository, "a_llm", adapters=["sql", "gpt-4o", "verse"])
    assert supervisor.models is not None
    supervisor.models = [*supervisor.models, "a_llm"]
    until(lambda: listed(live) == {*ALL, "a_llm", "verse"})
    assert live.get("/v1/models/sql").json()["parent"] == "llm"
    assert live.get("/v1/models/gpt-4o").json()["root"] == "sql"
    assert "'sql' is an adapter of a_llm, and an adapter of llm; each must have a name of its own" in caplog.text


def test_a_gateway_that_is_started_again_does_without_what_has_gone_since(repository: Path) -> None:
    """Its options name models that were there at the first start."""
    shutil.rmtree(repository / "llm")
    rules = Rules(aliases={"default": "llm", "b": "b_llm"}, tool_formats={"llm": "hermes"})
    assert set(offered_models(repository, rules, before={})) == {"b_llm", "text_to_image", "b"}
    with pytest.raises(ServingError, match="--openai-tools: 'llm'"):
        offered_models(repository, rules)
    starts = []
    service = gateway_service(ServeOptions(repository=repository), socket.socket(), {}, rules=rules)
    for heart in (4, 5):
        starts.append(Launch.from_argument(service.make(heart).command[-1]).first)
    assert starts == [True, False]

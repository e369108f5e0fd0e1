"""/v1/embeddings as clients use it: inputs in four forms, both encodings, usage, refusals by name, batches."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from test_gateway_adapters import add_model

from nereid.serving.gateway.launch import Rules

from gateway_before import client_of, gateway, hang_up, small_repository
from scripted import texts
from small_servers import RefusedError, Tensors, grpc_server
from template_families import FAMILIES
from waiting import until

URL = "/v1/embeddings"
TEMPLATE = FAMILIES["chatml"] + "{{ topic }}"
BEGIN = "<|im_start|>assistant\n"
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "bc"}]}]
WIDTH = 3


def vector(prompt: Any) -> np.ndarray:
    """What the model says of a text or of tokens."""
    total = sum(prompt) if isinstance(prompt, list) else sum(prompt.encode())
    return np.array([total, 0.1, -1 / 3], np.float32)


class Model:
    """Embeds prompts; "wrong" is refused, and "slow" waits for `release`."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.sampling: list[dict[str, Any]] = []
        self.inputs: set[str] = set()
        self.cancelled = 0
        self.now = self.most = 0
        self.release = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, inputs: Tensors) -> Iterator[Tensors]:
        if "task" not in inputs:
            self.cancelled += "cancel" in inputs
            yield {"run_state": texts("running")}
            return
        assert inputs["task"][0] == b"embed"
        self.inputs |= inputs.keys()
        prompt = inputs["input_ids"].tolist() if "input_ids" in inputs else inputs["text_input"][0].decode()
        with self._lock:
            self.asked.append(prompt)
            self.sampling.append(json.loads(inputs["sampling_parameters"][0]))
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.01)
        with self._lock:
            self.now -= 1
        if prompt == "wrong":
            raise RefusedError("text_input: 'wrong' is not allowed [nereid: INVALID_ARG invalid text_input]")
        if prompt == "long":
            raise RefusedError("text_input: 9 tokens is not allowed [nereid: INVALID_ARG too_long text_input]")
        if prompt == "slow":
            self.release.wait(60)
        yield {
            "embedding": vector(prompt),
            "num_input_tokens": np.array([len(prompt)], np.uint32),
            "num_cached_tokens": np.array([0], np.uint32),
        }


@pytest.fixture
def model() -> Iterator[Model]:
    made = Model()
    yield made
    made.release.set()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = small_repository(tmp_path_factory.mktemp("repository"), TEMPLATE)
    facts = {"embedding_width": WIDTH, "adapters": ["sql"], "special_tokens": {}}
    (made / "llm" / "1" / "llm.json").write_text(json.dumps(facts))
    (made / "llm" / "config.pbtxt").write_text('parameters { key: "max_rows" value: { string_value: "4" } }')
    return add_model(made, "plain_llm")


@pytest.fixture
def api(repository: Path, model: Model, tmp_path: Path) -> Iterator[httpx.Client]:
    with (
        grpc_server({"llm": model}) as (port, _),
        gateway(repository, port, rules=Rules(batches=str(tmp_path / "batches")), max_file_bytes=100_000) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield client


def ask(api: httpx.Client, given: Any, **body: Any) -> dict[str, Any]:
    answer = api.post(URL, json={"model": "llm", "input": given, **body})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return dict(answer.json())


def refused(api: httpx.Client, **body: Any) -> tuple[int, dict[str, Any]]:
    answer = api.post(URL, json={"model": "llm", "input": "a", **body})
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("hello", ["hello"]),
        ([1, 2, 3], [[1, 2, 3]]),
        (["a", "bc"], ["a", "bc"]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["only"], ["only"]),
    ],
)
def test_inputs_in_four_forms(api: httpx.Client, model: Model, given: Any, prompts: list[Any]) -> None:
    made = ask(api, given)
    assert made.keys() == {"object", "data", "model", "usage"}
    assert (made["object"], made["model"]) == ("list", "llm")
    assert [(item["object"], item["index"]) for item in made["data"]] == [("embedding", i) for i in range(len(prompts))]
    for item, prompt in zip(made["data"], prompts, strict=True):
        np.testing.assert_array_equal(np.array(item["embedding"], np.float32), vector(prompt))
    tokens = sum(map(len, prompts))
    assert made["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert sorted(map(str, model.asked)) == sorted(map(str, prompts))


def test_base64_holds_the_same_numbers(api: httpx.Client) -> None:
    (item,) = ask(api, "hello", encoding_format="base64")["data"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(item["embedding"]), "<f4"), vector("hello"))


def test_openais_package_reads_both(api: httpx.Client) -> None:
    client = client_of(api)
    made = client.embeddings.create(model="llm", input=["a", "bc"], user="me", dimensions=WIDTH)
    np.testing.assert_allclose(made.data[1].embedding, vector("bc"))
    assert made.usage.prompt_tokens == 3
    plain = client.embeddings.create(model="llm", input="a", encoding_format="float")
    np.testing.assert_allclose(plain.data[0].embedding, made.data[0].embedding)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="plain_llm", input="a")


def test_options_reach_the_model_and_nothing_else_does(api: httpx.Client, model: Model) -> None:
    ask(api, "a", priority=9, add_special_tokens=False, user="me", encoding_format="float", normalize=False)
    ask(api, "a", model="sql", truncate_prompt_tokens=-1, truncation_side="left")
    cut = {"truncate_prompt_tokens": -1, "truncation_side": "left"}
    assert model.sampling == [{"priority": 9, "add_special_tokens": False}, {"lora_name": "sql", **cut}]
    assert not model.inputs & {"stream", "exclude_input_in_output", "return_token_ids"}


@pytest.mark.parametrize(
    ("more", "prompt", "special"),
    [
        ({}, "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nbc<|im_end|>\n", False),
        ({"add_generation_prompt": True}, "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nbc<|im_end|>\n" + BEGIN, False),
        ({"continue_final_message": True}, "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nbc", False),
        ({"chat_template_kwargs": {"topic": "warmth"}, "add_special_tokens": True}, None, True),
        ({"input": None, "truncate_prompt_tokens": 5, "encoding_format": "base64", "model": "sql"}, None, False),
    ],
)
def test_a_chat_is_embedded_as_its_template_renders_it(
    api: httpx.Client, model: Model, more: dict[str, Any], prompt: str | None, special: bool
) -> None:
    answer = api.post(URL, json={"model": "llm", "messages": CHAT, **more})
    assert answer.status_code == 200, answer.text
    (asked,) = model.asked
    assert asked == prompt or (prompt is None and asked.startswith("<|im_start|>user\na<|im_end|>"))
    assert asked.endswith("warmth") == ("chat_template_kwargs" in more)
    assert model.sampling[0]["add_special_tokens"] is special
    assert answer.json()["usage"]["prompt_tokens"] == len(asked)
    assert len(answer.json()["data"]) == 1


def test_what_is_of_chats_comes_with_messages(api: httpx.Client) -> None:
    for body, param, words in (
        ({"messages": CHAT, "input": "a"}, "messages", "not allowed with input"),
        ({"add_generation_prompt": True, "input": "a"}, "add_generation_prompt", "must come with messages"),
        ({"chat_template_kwargs": {"a": 1}, "input": "a"}, "chat_template_kwargs", "must come with messages"),
        ({"messages": CHAT, "chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs", "a field of its own"),
        ({"messages": CHAT, "chat_template": "long"}, "chat_template", "the name of one of the model's"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "it is missing"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]}, "messages.0.tool_call_id", "before it"),
        ({"messages": CHAT, "add_generation_prompt": True, "continue_final_message": True}, "continue_final_message", "false"),
        ({"messages": CHAT, "tools": [{}]}, "tools", "not supported"),
        ({}, "input", "it is missing"),
    ):
        answer = api.post(URL, json={"model": "llm", **body})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), error
        assert words in error["message"]
    answer = api.post(URL, json={"model": "llm", "messages": CHAT, "add_generation_prompt": False, "input": None})
    assert answer.status_code == 200
    assert api.post(URL, json={"model": "llm", "input": "a", "add_generation_prompt": False}).status_code == 200


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"dimensions": 2}, "dimensions", "2 is not allowed; it must be 3, as many as 'llm' gives, or absent"),
        ({"encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"input": []}, "input", "a list of 0 is not allowed; it must be 1 to 2048 inputs"),
        ({"input": ["a"] * 2049}, "input", "a list of 2049 is not allowed"),
        ({"input": 5}, "input", "5 is not allowed"),
        ({"input": [1, "a"]}, "input.1", "not allowed"),
        ({"input": "wrong"}, "input", "input: 'wrong' is not allowed"),
        ({"input": ["a", "b", "wrong", "c"]}, "input.2", "input.2: 'wrong' is not allowed"),
        ({"temperature": 0}, "temperature", "not supported"),
        ({"normalize": True}, "normalize", "True is not allowed"),
        ({"priority": 10}, "priority", "10 is not allowed"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "-2 is not allowed"),
        ({"truncation_side": "middle"}, "truncation_side", "it must be left or right"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(api: httpx.Client, body: dict[str, Any], param: str, words: str) -> None:
    status, error = refused(api, **body)
    assert (status, error["param"]) == (400, param)
    assert words in error["message"]


def test_an_input_that_is_too_long_has_openais_code(api: httpx.Client) -> None:
    status, error = refused(api, input=["a", "long"])
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "input.1")


def test_a_model_that_kept_no_states_is_404_by_name_and_the_list_says_which_do(api: httpx.Client) -> None:
    status, error = refused(api, model="plain_llm")
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "'plain_llm' gives no embeddings; it was exported without --embeddings" in error["message"]
    assert refused(api, model="nobody")[0] == 404
    told = {card["id"]: card.get("embedding_dimensions") for card in api.get("/v1/models").json()["data"]}
    assert told == {"llm": WIDTH, "sql": WIDTH, "plain_llm": None, "text_to_image": None}


def test_no_more_inputs_are_under_way_than_the_model_reads_together(api: httpx.Client, model: Model) -> None:
    made = ask(api, [f"{place}" for place in range(40)])
    assert [item["index"] for item in made["data"]] == list(range(40))
    assert len(model.asked) == 40
    assert model.most == 4


def test_a_caller_that_goes_away_cancels_what_is_under_way(api: httpx.Client, model: Model) -> None:
    hang_up(str(api.base_url), URL, {"model": "llm", "input": ["slow"] * 9}, lambda: len(model.asked) == 4)
    until(lambda: model.cancelled == 4)
    assert len(model.asked) == 4  # the others never begin


def test_a_batch_of_embeddings(api: httpx.Client, model: Model) -> None:
    client = client_of(api)
    bodies = [{"model": "llm", "input": "a"}, {"model": "llm", "input": ["a", "wrong"]}, {"model": "plain_llm", "input": "a"}]
    lines = [json.dumps({"custom_id": f"{i}", "method": "POST", "url": URL, "body": body}) for i, body in enumerate(bodies)]
    file = client.files.create(file=("asked.jsonl", "\n".join(lines).encode()), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
    until(lambda: client.batches.retrieve(made.id).status == "completed")
    batch = client.batches.retrieve(made.id)
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 2)
    (line,) = client.files.content(str(batch.output_file_id)).text.splitlines()
    np.testing.assert_allclose(json.loads(line)["response"]["body"]["data"][0]["embedding"], vector("a"))
    assert {sampling["priority"] for sampling in model.sampling} == {9}


def test_metrics_know_the_route(api: httpx.Client) -> None:
    ask(api, "a")
    page = api.get("/metrics").text
    assert 'nereid_gateway_requests_total{route="POST /v1/embeddings",status="200"} 1.0' in page

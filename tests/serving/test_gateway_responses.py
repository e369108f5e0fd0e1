"""/v1/responses, as OpenAI's package sends and reads it, before the gateway and a scripted model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import openai
import pydantic
import pytest

from nereid.serving.gateway.launch import Rules
from nereid.serving.gateway.response_store import ResponseStore, Stored

from gateway_before import client_of, gateway, small_repository
from scripted import delta, texts
from small_servers import RefusedError, Tensors, grpc_server
from template_families import FAMILIES

ROUTE = "/v1/responses"
ASK: dict[str, Any] = {"model": "llm", "input": "How warm?"}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
WARMTH: Any = {"type": "function", "name": "warmth", "description": "of a city", "parameters": CITY, "strict": False}
CALL = 'Well. <tool_call>\n{"name": "warmth", "arguments": {"city": "Łódź"}}\n</tool_call>'
THINKS = FAMILIES["hermes"] + "{# </think> #}"


class Model:
    """Writes `answer`, a letter at a time where it streams; `breaks` after some of them."""

    def __init__(self) -> None:
        self.answer, self.reason, self.breaks = "<think>\nHm.\n</think>\n\nWarm.", "stop", -1
        self.asked: list[dict[str, Any]] = []
        self.prompts: list[str] = []

    def __call__(self, inputs: Tensors) -> Iterator[Tensors]:
        if "sampling_parameters" not in inputs:
            yield {"run_state": texts("running")}
            return
        self.asked.append(json.loads(inputs["sampling_parameters"][0]))
        self.prompts.append(inputs["text_input"][0].decode())
        logprobs = {"token": "a", "logprob": -0.5, "top": [{"token": "b", "logprob": -1.5}]}
        if bool(inputs["stream"][0]):
            for place, letter in enumerate(self.answer):
                if place == self.breaks:
                    raise RefusedError("the engine has died [nereid: INTERNAL failed]", grpc.StatusCode.INTERNAL)
                made = delta([place], letter, self.reason if place == len(self.answer) - 1 else "", cached=1)
                yield {**made, **({"logprobs": texts(json.dumps([logprobs]))} if "logprobs" in self.asked[-1] else {})}
            return
        yield {
            "text_output": np.array([self.answer.encode()], object),
            "output_ids": np.array([1, 2], np.int32),
            "finish_reason": np.array([self.reason.encode()], object),
            "num_input_tokens": np.array([3]),
            "num_cached_tokens": np.array([1]),
            "num_output_tokens": np.array([2]),
            "cumulative_logprob": np.array([-1.0], np.float32),
            **({"logprobs": texts(json.dumps([logprobs]))} if "logprobs" in self.asked[-1] else {}),
        }


@pytest.fixture
def api(tmp_path: Path, triton: int) -> Iterator[httpx.Client]:
    repository = small_repository(tmp_path, THINKS)
    with gateway(repository, triton) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


@pytest.fixture
def client(api: httpx.Client) -> openai.OpenAI:
    return client_of(api)


def refused(api: httpx.Client, **more: Any) -> tuple[int, str, str]:
    answer = api.post(ROUTE, json={**ASK, **more})
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["message"]


def test_text_is_answered_with_its_thoughts_and_usage(client: openai.OpenAI, model: Model) -> None:
    made = client.responses.create(**ASK, instructions="Be brief.", max_output_tokens=9, temperature=0.5, metadata={"a": "b"})
    assert (made.status, made.output_text, made.error, made.incomplete_details) == ("completed", "Warm.", None, None)
    assert [item.type for item in made.output] == ["reasoning", "message"]
    assert made.output[0].content[0].text == "Hm."  # type: ignore[union-attr, index]
    assert made.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens, made.usage.total_tokens) == (3, 2, 5)
    assert made.usage.input_tokens_details.cached_tokens == 1
    assert (made.temperature, made.max_output_tokens, made.metadata) == (0.5, 9, {"a": "b"})
    assert (model.asked[-1]["temperature"], model.asked[-1]["max_tokens"]) == (0.5, 9)
    assert "system\nBe brief." in model.prompts[-1]


def test_an_answer_that_was_cut_is_incomplete(client: openai.OpenAI, model: Model) -> None:
    model.answer, model.reason = "Wa", "length"
    made = client.responses.create(**ASK)
    assert made.status == "incomplete"
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    assert made.output[-1].status == "incomplete"  # type: ignore[union-attr]


def test_every_answer_has_a_message_or_a_call(client: openai.OpenAI, model: Model) -> None:
    model.answer = "<think>Hm.</think>"
    assert [item.type for item in client.responses.create(**ASK).output] == ["reasoning", "message"]


def test_events_are_those_that_openais_package_adds_up(client: openai.OpenAI, model: Model) -> None:
    model.answer = "<think>\nHm.\n</think>\n\n" + CALL
    with client.responses.stream(**ASK, tools=[WARMTH]) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    call = final.output[2]
    assert (call.name, call.arguments, call.status) == ("warmth", '{"city": "Łódź"}', "completed")  # type: ignore[union-attr]
    assert final.output_text == "Well."
    assert [event.sequence_number for event in events if hasattr(event, "sequence_number")] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    shape = [kind for place, kind in enumerate(kinds) if place == 0 or kind != kinds[place - 1]]
    text = ["output_item.added", "content_part.added", "{}.delta", "{}.done", "content_part.done", "output_item.done"]
    expected = ["created", "in_progress"]
    for kind in ("reasoning_text", "output_text"):
        expected += [part.format(kind) for part in text]
    expected += ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    assert shape == [f"response.{kind}" for kind in (*expected, "completed")]


def test_a_stream_ends_as_openais_does_and_says_what_the_whole_says(api: httpx.Client, model: Model) -> None:
    lines = api.post(ROUTE, json={**ASK, "stream": True}).text.splitlines()
    assert "data: [DONE]" not in lines
    last = json.loads(next(line for line in reversed(lines) if line.startswith("data: "))[6:])["response"]
    whole = api.post(ROUTE, json=ASK).json()
    assert stripped(last) == stripped(whole)
    named = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert named == [json.loads(line[6:])["type"] for line in lines if line.startswith("data: ")]


def stripped(value: Any) -> Any:
    """Without what differs from answer to answer."""
    if isinstance(value, dict):
        return {name: stripped(item) for name, item in value.items() if name not in ("id", "created_at", "usage")}
    return [stripped(item) for item in value] if isinstance(value, list) else value


def test_an_agents_loop_closes_by_itself_and_by_what_is_kept(client: openai.OpenAI, model: Model) -> None:
    model.answer = CALL
    first = client.responses.create(**ASK, tools=[WARMTH], instructions="Be brief.")
    call = first.output[-1]
    assert call.type == "function_call"
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "20"}
    model.answer = "Warm."
    for sent in (
        {"input": [{"role": "user", "content": "How warm?"}, *first.output, result], "instructions": "Be brief."},
        {"input": [result], "previous_response_id": first.id, "instructions": "Be brief."},
    ):
        second = client.responses.create(model="llm", tools=[WARMTH], **sent)  # type: ignore[call-overload]
        assert second.output_text == "Warm."
        assert "How warm?" in model.prompts[-1]
        assert '{"name": "warmth", "arguments": {"city": "Łódź"}}' in model.prompts[-1]
        assert "<tool_response>\n20\n</tool_response>" in model.prompts[-1]
    assert model.prompts[-1] == model.prompts[-2]
    client.responses.create(model="llm", input="And now?", previous_response_id=second.id)
    assert model.prompts[-1].count("user\n") == 2
    assert "Be brief." not in model.prompts[-1]  # instructions are not carried over


def test_what_is_kept_can_be_seen_and_removed(client: openai.OpenAI, api: httpx.Client) -> None:
    made = client.responses.create(**ASK)
    assert client.responses.retrieve(made.id) == made
    (item,) = client.responses.input_items.list(made.id).data
    assert item.content[0].text if isinstance(item.content, list) else item.content == "How warm?"  # type: ignore[union-attr]
    client.responses.delete(made.id)
    for ask in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError, match="is not kept here"):
            ask(made.id)
    assert refused(api, previous_response_id=made.id)[:2] == (400, "previous_response_id")
    other = client.responses.create(**ASK, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(other.id)


def test_a_kept_answer_is_told_as_a_whole_and_whoever_wants_a_stream_of_it_hears_so(
    client: openai.OpenAI, api: httpx.Client
) -> None:
    made = client.responses.create(**ASK)
    assert client.responses.retrieve(made.id, stream=False, include=["message.output_text.logprobs"]) == made
    for query, name in (({"stream": True}, "stream"), ({"starting_after": 3}, "starting_after")):
        with pytest.raises(openai.BadRequestError, match=f"{name}: .* is not allowed; a kept answer is told") as caught:
            client.responses.retrieve(made.id, **query)  # type: ignore[call-overload]
        assert caught.value.param == name
    assert api.get(f"{ROUTE}/{made.id}", params={"stream": "perhaps"}).status_code == 400


def test_what_an_answer_answers_comes_in_pages_the_newest_first(client: openai.OpenAI, api: httpx.Client) -> None:
    given: Any = [{"role": "user", "content": str(place)} for place in range(25)]
    made = client.responses.create(model="llm", input=given)

    def texts_of(**query: Any) -> list[Any]:
        return [item.content for item in client.responses.input_items.list(made.id, **query)]  # type: ignore[union-attr]

    assert texts_of() == [str(place) for place in reversed(range(25))]  # the package asks for one page after the other
    assert texts_of(order="asc", limit=7) == [str(place) for place in range(25)]
    page = api.get(f"{ROUTE}/{made.id}/input_items", params={"limit": 2, "order": "asc"}).json()
    assert ([item["content"] for item in page["data"]], page["has_more"]) == (["0", "1"], True)
    wrong = api.get(f"{ROUTE}/{made.id}/input_items", params={"limit": 101})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "limit")


def test_a_reference_stands_for_an_item_that_is_kept(client: openai.OpenAI, model: Model) -> None:
    model.answer = CALL
    first = client.responses.create(**ASK, tools=[WARMTH])
    (asked,) = client.responses.input_items.list(first.id).data
    result: Any = {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "20"}  # type: ignore[union-attr]
    model.answer = "Warm."
    references: list[Any] = [{"type": "item_reference", "id": item.id} for item in (asked, *first.output)]
    references[0].pop("type")  # which OpenAI's package may leave out
    second = client.responses.create(model="llm", input=[*references, result], tools=[WARMTH])
    client.responses.create(model="llm", input=[result], previous_response_id=first.id, tools=[WARMTH])
    assert model.prompts[-1] == model.prompts[-2]
    kept = client.responses.input_items.list(second.id, order="asc").data
    assert [item.type for item in kept] == ["message", "message", "function_call", "function_call_output"]
    assert kept[0].id == asked.id
    client.responses.delete(second.id)
    client.responses.delete(first.id)
    with pytest.raises(openai.BadRequestError, match=r"input\.1\.id: 'msg_.*' is not kept here; send the item itself"):
        client.responses.create(model="llm", input=[{"role": "user", "content": "a"}, references[1]])


def test_a_stream_is_kept_once_it_is_told(client: openai.OpenAI) -> None:
    *_, last = client.responses.create(**ASK, stream=True)
    assert last.type == "response.completed"
    assert client.responses.retrieve(last.response.id).output_text == "Warm."


def test_an_answer_of_a_schema_is_parsed(client: openai.OpenAI, model: Model) -> None:
    class City(pydantic.BaseModel):
        city: str

    model.answer = '{"city":"Rome"}'
    made = client.responses.parse(**ASK, text_format=City)
    assert made.output_parsed == City(city="Rome")
    assert '"city"' in model.asked[-1]["structured_outputs"]["grammar"]


def test_one_must_be_called_where_that_is_asked_for(client: openai.OpenAI, model: Model) -> None:
    model.answer = CALL.removeprefix("Well. ")
    for choice in (
        "required",
        {"type": "function", "name": "warmth"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "warmth"}]},
    ):
        made = client.responses.create(**ASK, tools=[WARMTH], tool_choice=choice)  # type: ignore[call-overload]
        assert made.output[0].name == "warmth"
        assert "start: thinks? calls" in model.asked[-1]["structured_outputs"]["grammar"]


def test_log_probabilities_stand_with_the_text(client: openai.OpenAI, model: Model) -> None:
    model.answer = "Warm"
    whole = client.responses.create(**ASK, include=["message.output_text.logprobs"], top_logprobs=1)
    part = whole.output[0].content[0]  # type: ignore[union-attr, index]
    assert [(entry.logprob, entry.top_logprobs[0].token) for entry in part.logprobs] == [(-0.5, "b")]  # type: ignore[union-attr]
    *_, last = client.responses.create(**ASK, stream=True, top_logprobs=1)
    assert len(last.response.output[0].content[0].logprobs) == 4  # type: ignore[union-attr]


def test_a_failure_on_the_way_is_told_by_an_event(client: openai.OpenAI, model: Model) -> None:
    model.breaks = 24
    *_, last = client.responses.create(**ASK, stream=True)
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert "the engine has died" in last.response.error.message
    assert last.response.output[-1].status == "incomplete"  # type: ignore[union-attr]
    model.breaks = 0
    with pytest.raises(openai.InternalServerError):
        client.responses.create(**ASK, stream=True)


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"input": ...}, "input", ""),
        ({"input": []}, "input", "at least one item"),
        ({"input": 3}, "input", "it must be a string or a list"),
        ({"input": [{"type": "image"}]}, "input.0.type", "'message'"),
        ({"input": [{"type": "item_reference", "id": "msg_x"}]}, "input.0.id", "'msg_x' is not kept here"),
        ({"input": [{"type": "item_reference"}]}, "input.0.id", "it is missing"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role", ""),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content.0.type", ""),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input.0.call_id", "before it"),
        ({"tools": [{"type": "function", "name": "no name"}]}, "tools.0.name", "1 to 64"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {"type": 3}}]}, "tools.0.parameters.type", "object"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", ""),
        ({"tools": [WARMTH], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name", "'g'"),
        ({"tool_choice": "required"}, "tool_choice", "without tools"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema", "it is missing"),
        ({"reasoning": {"effort": "low"}}, "reasoning.effort", "not supported by the chat template"),
        ({"background": True}, "background", "false or absent"),
        ({"conversation": "c"}, "conversation", "not supported"),
        ({"truncation": "middle"}, "truncation", "'auto' or 'disabled'"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata", "at most 16 pairs, and has 17"),
        ({"metadata": {"k" * 65: "x"}}, "metadata", "keys of at most 64 characters, and one has 65"),
        ({"metadata": {"k": "x" * 513}}, "metadata", "values of at most 512 characters, and that of 'k' has 513"),
        ({"metadata": {"k": 1}}, "metadata.k", "1 is not allowed; it must be a string"),
        ({"n": 2}, "n", "1"),
        ({"model": "other"}, "model", "not one of those"),
        ({"previous_response_id": "resp_x"}, "previous_response_id", "is not kept here"),
        ({"max_output_tokens": "many"}, "max_output_tokens", "an integer"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_honoured_is_refused_by_name(api: httpx.Client, more: dict[str, Any], param: str, words: str) -> None:
    body = {name: value for name, value in {**ASK, **more}.items() if value is not ...}
    answer = api.post(ROUTE, json=body)
    error = answer.json()["error"]
    assert answer.status_code == (404 if param == "model" else 400), answer.text
    assert error["param"] == param, error
    assert words in error["message"]
    assert error["message"].startswith(f"{param}: ")


def test_what_the_server_refuses_has_the_callers_names(tmp_path: Path) -> None:
    def refuse(inputs: Tensors) -> Iterator[Tensors]:
        raise RefusedError("max_tokens: 9 is not allowed; it must be 1 to 5 [nereid: INVALID_ARG too_long max_tokens]")
        yield {}

    with (
        grpc_server({"llm": refuse}) as (port, _),
        gateway(small_repository(tmp_path, THINKS), port) as running,
        httpx.Client(base_url=running.url) as api,
    ):
        for stream in (False, True):
            status, param, message = refused(api, max_output_tokens=9, stream=stream)
            assert (status, param) == (400, "max_output_tokens")
            assert message.startswith("max_output_tokens: 9 is not allowed")


def test_responses_are_their_keys_own(tmp_path: Path, triton: int) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text('[a]\nkey = "first"\n[b]\nkey = "second"\n')
    with gateway(small_repository(tmp_path / "r", THINKS), triton, rules=Rules(keys=str(keys))) as running:
        first, second = (openai.OpenAI(base_url=f"{running.url}/v1", api_key=key) for key in ("first", "second"))
        made = first.responses.create(**ASK)
        assert first.responses.retrieve(made.id).id == made.id
        with pytest.raises(openai.NotFoundError):
            second.responses.retrieve(made.id)
        with pytest.raises(openai.BadRequestError):
            second.responses.create(**ASK, previous_response_id=made.id)
        with pytest.raises(openai.BadRequestError, match="is not kept here"):
            second.responses.create(model="llm", input=[{"type": "item_reference", "id": made.output[0].id}])


# --- the store ---


def stored(name: str, size: int = 1) -> Stored:
    return Stored({"id": name, "x": "x" * size}, [], [])


def test_a_store_is_bounded_by_number_and_bytes_for_each_key() -> None:
    store = ResponseStore(most=3, most_bytes=1000)
    for name in "abcd":
        store.keep("k", stored(name))
        store.keep("other", stored(name))
    assert [bool(store.find("k", name)) for name in "abcd"] == [False, True, True, True]
    store.keep("k", stored("e", 930))
    assert [bool(store.find("k", name)) for name in "bcde"] == [False, False, True, True]
    store.keep("k", stored("f", 2000))
    assert store.find("k", "f") is None
    assert store.find("other", "b") is not None
    assert store.remove("k", "e")
    assert not store.remove("k", "e")
    assert not store.remove("nobody", "e")
    store.keep("k", stored("g", 800))
    assert store.find("k", "d") is not None  # what was removed takes no room
    assert ResponseStore(most=0, most_bytes=1000).find("k", "a") is None
    assert store.find_item("k", "a") is None
    none = ResponseStore(most=0, most_bytes=1000)
    none.keep("k", stored("a"))
    assert none.find("k", "a") is None


def test_an_item_is_found_as_long_as_a_response_that_has_it_is_kept() -> None:
    store = ResponseStore(most=2, most_bytes=10_000)
    for name, more in (("a", []), ("b", [{"id": "item_a"}])):
        given = [{"id": f"item_{name}", "of": name}, *more]
        store.keep("k", Stored({"id": name, "output": [{"id": f"out_{name}"}]}, given, given))
    assert store.find_item("k", "item_b") == {"id": "item_b", "of": "b"}
    assert store.find_item("k", "out_a") == {"id": "out_a"}
    assert store.find_item("other", "out_a") is None
    store.remove("k", "a")
    assert store.find_item("k", "out_a") is None
    assert store.find_item("k", "item_a") == {"id": "item_a"}  # the newer response has it still
    for name in "cd":
        store.keep("k", stored(name))
    assert store.find_item("k", "item_b") is None

"""`truncation: "auto"` of /v1/responses: the oldest items go, as few as need be, and what is left is a conversation still."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from nereid.serving.gateway.launch import Rules
from nereid.serving.gateway.response_items import items_of
from nereid.serving.gateway.response_truncation import remaining, steps_of

from gateway_before import client_of, gateway, small_repository
from scripted import delta, texts
from small_servers import RefusedError, Tensors

ROUTE = "/v1/responses"
LONGEST = 100
TEMPLATE = """{% for m in messages %}{% if m.role == 'user' and loop.previtem is defined and loop.previtem.role == 'user' %}
{{- raise_exception('two in a row') }}{% endif %}{{ m.role[0] }}{{ m.content or '' }}
{%- for call in m.tool_calls or [] %}!{{ call.function.arguments }}{% endfor %};{% endfor %}{% if tools %}{% endif %}>"""
"""Refuses two users' messages in a row; a letter for each role. Each letter of a prompt is a token."""
NOW: dict[str, Any] = {"type": "function", "name": "now"}
TOO_LONG = "text_input: {} tokens is not allowed; it must be at most 99 tokens [nereid: INVALID_ARG too_long text_input]"


class Model:
    """Says "z", and refuses prompts as long as the context."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def __call__(self, inputs: Tensors) -> Iterator[Tensors]:
        if "sampling_parameters" not in inputs:
            yield {"run_state": texts("running")}
            return
        self.prompts.append(inputs["text_input"][0].decode())
        if len(self.prompts[-1]) >= LONGEST:
            raise RefusedError(TOO_LONG.format(len(self.prompts[-1])))
        whole = {} if bool(inputs["stream"][0]) else {"num_output_tokens": np.array([1]), "cumulative_logprob": np.array([0.0])}
        yield delta([5], "z", "stop", **whole)


@pytest.fixture
def api(tmp_path: Path, triton: int) -> Iterator[httpx.Client]:
    repository = small_repository(tmp_path, TEMPLATE)
    folder = repository / "llm" / "1"
    made = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.save(str(folder / "tokenizer.json"))
    facts = {"architecture": "x", "precision": "fp32", "context_length": LONGEST + 2, "vocabulary": 9, "eos_token_ids": [1]}
    numbers = dict.fromkeys(("head_size", "weight_bytes", "flops_per_token", "kv_bytes_per_token"), 1)
    (folder / "llm.json").write_text(json.dumps({**facts, **numbers}))
    with (
        gateway(repository, triton, rules=Rules(tool_formats={"": "hermes"})) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield client


def ask(api: httpx.Client, given: Any, **more: Any) -> dict[str, Any]:
    answer = api.post(ROUTE, json={"model": "llm", "input": given, "truncation": "auto", **more})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def refused(api: httpx.Client, given: Any, **more: Any) -> dict[str, Any]:
    answer = api.post(ROUTE, json={"model": "llm", "input": given, **more})
    assert answer.status_code == 400, answer.text
    return dict(answer.json()["error"])


def said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def talk(exchanges: int, length: int = 8) -> list[dict[str, Any]]:
    """Questions and answers, numbered, each of so many letters with its role's and its end, and a last question."""
    pairs = [(said("user", f"{i:0{length}}"), said("assistant", f"{i:0{length}}")) for i in range(exchanges)]
    return [*(item for pair in pairs for item in pair), said("user", "last")]


def calls(count: int) -> list[dict[str, Any]]:
    """So many turns of an agent, numbered."""
    made: list[dict[str, Any]] = []
    for i in range(count):
        made.append({"type": "function_call", "call_id": f"c{i}", "name": "now", "arguments": "{}"})
        made.append({"type": "function_call_output", "call_id": f"c{i}", "output": f"{i:06}"})
    return made


@pytest.mark.parametrize("stream", [False, True])
def test_as_few_of_the_oldest_exchanges_go_as_need_be(api: httpx.Client, model: Model, stream: bool) -> None:
    # An exchange has 20 letters, what is left at the end 7: four fit into 100 with a token of an answer, five do not.
    answer = api.post(ROUTE, json={"model": "llm", "input": talk(9), "truncation": "auto", "stream": stream})
    assert answer.status_code == 200, answer.text
    assert model.prompts == ["".join(f"u{i:08};a{i:08};" for i in range(5, 9)) + "ulast;>"]


def test_nothing_goes_where_all_fits(api: httpx.Client, model: Model) -> None:
    made = ask(api, talk(4))
    assert made["truncation"] == "auto"
    assert model.prompts[-1].startswith("u00000000;")
    assert len(model.prompts[-1]) == 87


def test_as_much_room_is_left_as_the_answer_may_take(api: httpx.Client, model: Model) -> None:
    ask(api, talk(9), max_output_tokens=13)
    assert len(model.prompts[-1]) == 87
    ask(api, talk(9), max_output_tokens=14)
    assert len(model.prompts[-1]) == 67


def test_instructions_and_what_a_system_says_stay(api: httpx.Client, model: Model) -> None:
    ask(api, [said("developer", "dd"), *talk(9)], instructions="iii")
    assert model.prompts[-1] == "siii;ddd;" + "".join(f"u{i:08};a{i:08};" for i in range(5, 9)) + "ulast;>"


def test_of_the_last_exchange_the_oldest_calls_go_with_their_outputs(api: httpx.Client, model: Model) -> None:
    ask(api, [*talk(2), *calls(9)], tools=[NOW])  # a turn has 13 letters
    assert model.prompts[-1] == "ulast;" + "".join(f"a!{{}};t{i:06};" for i in range(2, 9)) + ">"


def test_a_conversation_that_is_gone_on_with_is_kept_whole(api: httpx.Client, model: Model) -> None:
    before = ask(api, talk(4))
    after = ask(api, "n" * 20, previous_response_id=before["id"])
    assert model.prompts[-1] == "".join(f"u{i:08};a{i:08};" for i in range(1, 4)) + f"ulast;az;u{'n' * 20};>"
    client = client_of(api)
    made = client.responses.create(model="llm", input="n", previous_response_id=after["id"], truncation="auto")
    assert made.truncation == "auto"
    kept = api.get(f"{ROUTE}/{after['id']}/input_items").json()["data"]
    assert [item["content"] for item in kept] == ["n" * 20]
    assert api.post(ROUTE, json={"model": "llm", "input": "n", "previous_response_id": after["id"]}).status_code == 400


def test_more_messages_than_a_chat_may_have_are_no_hindrance(api: httpx.Client, model: Model) -> None:
    assert refused(api, talk(600, 1))["param"] == "input"
    ask(api, talk(600, 1))
    assert 90 < len(model.prompts[-1]) < LONGEST


def test_what_cannot_fit_is_refused_as_too_long(api: httpx.Client, model: Model) -> None:
    for given in ("x" * 200, [*talk(3)[:-1], said("user", "x" * 200)], [said("system", "x" * 200), *talk(3)]):
        error = refused(api, given, truncation="auto")
        assert (error["param"], error["code"]) == ("input", "context_length_exceeded")
    assert refused(api, talk(9))["code"] == "context_length_exceeded"


def test_truncation_is_one_of_two_and_stands_alone(api: httpx.Client) -> None:
    assert refused(api, "x", truncation="middle")["message"].startswith("truncation: 'middle' is not allowed")
    error = refused(api, "x", truncation="auto", truncate_prompt_tokens=5)
    assert error["message"].startswith("truncation: 'auto' is not allowed with truncate_prompt_tokens")
    assert ask(api, "x", truncation=None)["truncation"] == "disabled"


def test_the_tokens_of_an_input_are_counted_as_the_model_reads_it(api: httpx.Client, model: Model) -> None:
    count = client_of(api).responses.input_tokens.count
    given: Any = [said("user", "abc"), said("assistant", "d"), said("user", "e")]
    assert count(model="llm", input=given, instructions="fg").input_tokens == len("sfg;uabc;ad;ue;>")
    assert not model.prompts
    first = ask(api, given)
    more: dict[str, Any] = {"model": "llm", "input": "h", "previous_response_id": first["id"]}
    assert count(**more).input_tokens == len("uabc;ad;ue;az;uh;>")
    long: Any = talk(30)
    with pytest.raises(openai.BadRequestError) as caught:
        count(model="llm", input=long)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
    ask(api, long, truncation="auto")
    assert count(model="llm", input=long, truncation="auto").input_tokens == len(model.prompts[-1])
    for name, value in (("stream", True), ("truncate_prompt_tokens", 5)):
        with pytest.raises(openai.BadRequestError, match=f"{name}: .* is not allowed where tokens are counted"):
            count(model="llm", input="a", extra_body={name: value})
    assert 'route="POST /v1/responses/input_tokens",status="200"' in api.get("/metrics").text


def test_steps_are_exchanges_and_then_turns() -> None:
    thought = {"type": "reasoning", "summary": []}
    items = items_of(
        [
            said("assistant", "Hello."),
            said("system", "s"),
            said("user", "1"),
            thought,
            *calls(1),
            said("user", "2"),
            thought,
            *calls(2)[2:],
            said("developer", "d"),
            said("assistant", "on"),
            *calls(3)[4:],
            said("assistant", "end"),
        ]
    )
    assert list(steps_of(items)) == [[0], [2, 3, 4, 5], [7, 8, 9], [11, 12, 13]]
    assert list(steps_of(items_of([said("user", "1")]))) == []
    assert list(steps_of(items_of(calls(2)))) == [[0, 1]]


def test_an_output_goes_with_its_call() -> None:
    call, output = calls(1)
    items = items_of([said("user", "1"), call, said("user", "2"), output, said("assistant", "so")])
    (step,) = (step for step in steps_of(items) if 1 in step)
    assert [item.model_dump()["type"] for item in remaining(items, set(step))] == ["message", "message"]

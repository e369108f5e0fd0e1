"""Completions as evaluators use them: prompts given back with their probabilities, several in a stream, suffixes, tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from nereid.serving.gateway.infill import Infill
from nereid.serving.gateway.launch import Rules
from nereid.serving.gateway.merging import merged
from nereid.serving.gateway.model_tokenizer import ModelTokenizer

from gateway_before import TEMPLATE, gateway, small_repository
from scripted import delta, texts
from small_servers import Tensors, grpc_server

URL = "/v1/completions"
WORDS = ["[UNK]", "<s>", "w", "x", "y", "z", "?", "!"]
CONTEXT = 40


def entry(token: str, logprob: float | None, place: int, top: list[tuple[str, float]], rank: int | None = 1) -> dict[str, Any]:
    likeliest = [{"token_id": WORDS.index(word), "token": word, "logprob": value} for word, value in top]
    return {
        "token_id": WORDS.index(token),
        "token": token,
        "logprob": logprob,
        "rank": rank,
        "text_offset": place,
        "top": likeliest,
    }


PROMPT = [
    entry("w", None, 0, [], None),
    entry("x", -0.5, 1, [("x", -0.5), ("y", -1.5)]),
    entry("y", -2.0, 2, [("z", -0.25), ("x", -1.0)], 3),
]
ANSWER = [{"token_id": 5, "token": "z", "logprob": -0.125, "top": [{"token_id": 5, "token": "z", "logprob": -0.125}]}]


class Model:
    """Says "z" after any prompt, and where it is asked what PROMPT says of it; the first word of a text comes late."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.prompts: list[Any] = []

    def __call__(self, inputs: Tensors) -> Iterator[Tensors]:
        if "sampling_parameters" not in inputs:
            yield {"run_state": texts("running")}
            return
        sampling = json.loads(inputs["sampling_parameters"][0])
        self.asked.append(sampling)
        self.prompts.append(inputs["input_ids"].tolist() if "input_ids" in inputs else inputs["text_input"][0].decode())
        more: dict[str, Any] = {}
        if sampling.get("prompt_logprobs") is not None:
            more["prompt_logprobs"] = texts(json.dumps(PROMPT))
        none = sampling.get("max_tokens") == 0
        logprobs = None if "logprobs" not in sampling else json.dumps([] if none else ANSWER)
        made = delta([] if none else [5], "" if none else "z", "length", logprobs=logprobs, **more)
        if not bool(inputs["stream"][0]):
            count = np.array([0 if none else 1])
            made |= {"num_output_tokens": count, "cumulative_logprob": np.array([-1.0], np.float32)}
        yield made


def write_tokenizer(folder: Path, *more: str) -> None:
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Split(Regex("."), "isolated"), decoders.Fuse()
    made.add_special_tokens(list(more))
    made.save(str(folder / "tokenizer.json"))
    facts = {"architecture": "x", "precision": "fp32", "context_length": CONTEXT + 2, "vocabulary": 100, "eos_token_ids": [1]}
    numbers = dict.fromkeys(("head_size", "weight_bytes", "flops_per_token", "kv_bytes_per_token"), 1)
    (folder / "llm.json").write_text(json.dumps({**facts, **numbers}))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = small_repository(tmp_path_factory.mktemp("repository"))
    write_tokenizer(made / "llm" / "1")
    return made


@pytest.fixture
def api(repository: Path, triton: int) -> Iterator[httpx.Client]:
    with gateway(repository, triton) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


def ask(api: httpx.Client, url: str = URL, **body: Any) -> dict[str, Any]:
    answer = api.post(url, json={"model": "llm", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(api: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    lines = api.post(URL, json={"model": "llm", "stream": True, **body}).text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def joined(chunks: list[dict[str, Any]], index: int) -> dict[str, Any]:
    """A streamed choice as a whole one."""
    mine = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    told = [choice["logprobs"] for choice in mine if choice["logprobs"]]
    return {
        "text": "".join(choice["text"] for choice in mine),
        "logprobs": {name: [item for piece in told for item in piece[name]] for name in told[0]} if told else None,
        "finish_reason": mine[-1]["finish_reason"],
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["wxy", [2, 3, 4]])
@pytest.mark.parametrize("most", [0, 1])
def test_a_prompt_is_given_back_with_its_probabilities(
    api: httpx.Client, model: Model, stream: bool, prompt: str | list[int], most: int
) -> None:
    body = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": most}
    choice = joined(events(api, **body), 0) if stream else ask(api, **body)["choices"][0]
    assert model.asked[0]["prompt_logprobs"] == 1
    assert choice["text"] == ("wxyz" if most else "wxy")
    found = choice["logprobs"]
    assert found["tokens"] == ["w", "x", "y", "z"][: 3 + most]
    assert found["token_logprobs"] == [None, -0.5, -2.0, -0.125][: 3 + most]
    # One of the likeliest, and the token itself: evaluators look whether it was the likeliest.
    assert found["top_logprobs"] == [None, {"x": -0.5}, {"z": -0.25, "y": -2.0}, {"z": -0.125}][: 3 + most]
    assert found["text_offset"] == [0, 1, 2, 3][: 3 + most]
    assert [choice["text"][place] for place in found["text_offset"]] == found["tokens"]
    assert choice["finish_reason"] == "length"


def test_vllms_field_tells_of_a_prompt_by_ids(api: httpx.Client) -> None:
    expected = [
        None,
        {"3": {"logprob": -0.5, "rank": 1, "decoded_token": "x"}},
        {
            "4": {"logprob": -2.0, "rank": 3, "decoded_token": "y"},
            "5": {"logprob": -0.25, "rank": 1, "decoded_token": "z"},
        },
    ]
    assert ask(api, prompt="wxy", prompt_logprobs=1)["choices"][0]["prompt_logprobs"] == expected
    first = events(api, prompt="wxy", prompt_logprobs=1)[0]["choices"][0]
    assert (first["text"], first["prompt_logprobs"]) == ("", expected)
    chat = {"messages": [{"role": "user", "content": "wxy"}], "prompt_logprobs": 1}
    assert ask(api, "/v1/chat/completions", **chat)["prompt_logprobs"] == expected
    refused = api.post("/v1/chat/completions", json={"model": "llm", **chat, "stream": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt_logprobs")


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_of_a_prompt_are_told_where_those_of_its_answer_are(api: httpx.Client, model: Model, stream: bool) -> None:
    def told(url: str, **body: Any) -> list[dict[str, Any]]:
        answer = api.post(url, json={"model": "llm", "stream": stream, "return_token_ids": True, **body})
        assert answer.status_code == 200, answer.text
        lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")] if stream else [answer.text]
        return [json.loads(line) for line in lines]

    def of_prompts(**body: Any) -> dict[int, list[int]]:
        choices = [choice for part in told(URL, **body) for choice in part["choices"]]
        return {choice["index"]: choice["prompt_token_ids"] for choice in choices if "prompt_token_ids" in choice}

    assert of_prompts(prompt=["wx", "yz"]) == {0: [2, 3], 1: [4, 5]}
    assert of_prompts(prompt=[3, 2]) == {0: [3, 2]}
    assert of_prompts(prompt="wxyz", truncate_prompt_tokens=2) == {0: [4, 5]}
    assert of_prompts(prompt=[2, 3, 4], truncate_prompt_tokens=2, truncation_side="right") == {0: [2, 3]}
    assert of_prompts(prompt="w" * CONTEXT, truncate_prompt_tokens=-1, max_tokens=30) == {0: [2] * (CONTEXT - 30)}
    chat = told("/v1/chat/completions", messages=[{"role": "user", "content": "xy"}])
    assert [part["prompt_token_ids"] for part in chat if "prompt_token_ids" in part] == [[3, 4]]
    assert "prompt_token_ids" not in api.post(URL, json={"model": "llm", "prompt": "w"}).text
    long = api.post(URL, json={"model": "llm", "prompt": "w" * CONTEXT, "return_token_ids": True, "stream": stream})
    assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_name_tokens_by_their_ids_where_that_is_asked_for(api: httpx.Client, stream: bool) -> None:
    body = {"prompt": "wxy", "echo": True, "logprobs": 1, "return_tokens_as_token_ids": True}
    choice = joined(events(api, **body), 0) if stream else ask(api, **body)["choices"][0]
    assert choice["logprobs"]["tokens"] == ["token_id:2", "token_id:3", "token_id:4", "token_id:5"]
    assert choice["logprobs"]["top_logprobs"][2:] == [{"token_id:5": -0.25, "token_id:4": -2.0}, {"token_id:5": -0.125}]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3]
    chat = {"messages": [{"role": "user", "content": "wxy"}], "logprobs": True, "return_tokens_as_token_ids": True}
    answer = api.post("/v1/chat/completions", json={"model": "llm", "stream": stream, **chat})
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")] if stream else [answer.text]
    told = [choice["logprobs"] for line in lines for choice in json.loads(line)["choices"] if choice["logprobs"]]
    named = {"token": "token_id:5", "logprob": -0.125, "bytes": [122]}
    assert told == [{"content": [{**named, "top_logprobs": [named]}]}]


def test_more_is_asked_for_than_either_field_tells_and_each_gets_its_own(api: httpx.Client, model: Model) -> None:
    choice = ask(api, prompt="wxy", echo=True, logprobs=0, prompt_logprobs=2)["choices"][0]
    assert model.asked[0]["prompt_logprobs"] == 2
    assert choice["logprobs"]["top_logprobs"][1:3] == [{"x": -0.5}, {"y": -2.0}]
    assert len(choice["prompt_logprobs"][2]) == 3


def test_a_prompt_is_cut_where_nothing_of_it_is_given_back(api: httpx.Client, model: Model) -> None:
    ask(api, prompt="wxy", truncate_prompt_tokens=2, truncation_side="right")
    chat = {"messages": [{"role": "user", "content": "wxy"}], "truncate_prompt_tokens": -1}
    ask(api, "/v1/chat/completions", **chat)
    assert [asked.get("truncate_prompt_tokens") for asked in model.asked] == [2, -1]
    for change, words in (({"echo": True}, "echo true"), ({"suffix": "y"}, "a suffix")):
        body = {"model": "llm", "prompt": "w", "truncate_prompt_tokens": 2, **change}
        error = api.post(URL, json=body).json()["error"]
        assert error["param"] == "truncate_prompt_tokens"
        assert f"it is not allowed with {words}" in error["message"]


def test_several_prompts_are_streamed_together(api: httpx.Client) -> None:
    chunks = events(api, prompt=["w", "x", "y"], n=1, echo=True, stream_options={"include_usage": True})
    assert [joined(chunks, index)["text"] for index in range(3)] == ["wz", "xz", "yz"]
    assert (chunks[-1]["usage"]["prompt_tokens"], chunks[-1]["usage"]["completion_tokens"]) == (9, 3)
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_a_stream_of_several_ends_with_the_first_that_fails_and_closes_the_others() -> None:
    closed: list[int] = []

    async def numbers(place: int) -> AsyncGenerator[int, None]:
        try:
            for number in range(1000):
                await asyncio.sleep(0)
                if place == 1 and number == 3:
                    raise ValueError("no more")
                yield number
        finally:
            closed.append(place)

    found: list[tuple[int, int]] = []

    async def read() -> None:
        async for item in merged([numbers(0), numbers(1)]):
            found.append(item)

    with pytest.raises(ValueError, match="no more"):
        asyncio.run(read())
    assert [number for place, number in found if place == 1] == [0, 1, 2]
    assert [number for place, number in found if place == 0] == list(range(len(found) - 3))
    assert sorted(closed) == [0, 1]


MARKS = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|endoftext|>"]


def test_what_stands_before_a_suffix_is_asked_for_as_the_tokenizer_writes_it(tmp_path: Path, model: Model) -> None:
    repository = small_repository(tmp_path)
    write_tokenizer(repository / "llm" / "1", *MARKS)
    with (
        grpc_server({"llm": model}) as (port, _),
        gateway(repository, port) as running,
        httpx.Client(base_url=running.url, timeout=60) as api,
    ):
        ask(api, prompt=["wx", "w"], suffix="yz", stop_token_ids=[5])
        ask(api, prompt="wx", suffix="")
        ask(api, prompt="wx", suffix="y", stop_token_ids=[*range(30, 50)])  # the marks have room beside the caller's
        made = sorted(str(prompt) for prompt in model.prompts)
        assert made == ["[8, 2, 3, 9, 4, 10]", "[8, 2, 3, 9, 4, 5, 10]", "[8, 2, 9, 4, 5, 10]", "wx"]
        assert model.asked[0]["stop_token_ids"] == [5, 8, 9, 10, 11]
        for change, param in (({"echo": True}, "suffix"), ({"prompt": [2]}, "suffix"), ({"prompt": "w" * 99}, "prompt")):
            refused = api.post(URL, json={"model": "llm", "prompt": "w", "suffix": "y", **change})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text


def test_a_suffix_is_refused_by_name_where_the_tokenizer_has_no_marks_for_it(api: httpx.Client) -> None:
    refused = api.post(URL, json={"model": "llm", "prompt": "w", "suffix": "y"})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["param"], error["code"]) == ("suffix", "unsupported_parameter")
    assert "fill-in-the-middle" in error["message"]


def test_marks_of_families_stand_in_their_own_order(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "[SUFFIX]", "[PREFIX]")
    codestral = Infill.of(ModelTokenizer(tmp_path, CONTEXT))
    assert codestral is not None
    assert codestral.prompt("wx", "y", add_special_tokens=True) == [8, 4, 9, 2, 3]


def test_texts_and_chats_become_tokens_and_text_again(api: httpx.Client) -> None:
    made = ask(api, "/tokenize", prompt="wx y", return_token_strs=True)
    assert made == {"count": 4, "max_model_len": CONTEXT, "tokens": made["tokens"], "token_strs": made["token_strs"]}
    assert made["tokens"][:2] == [2, 3]
    assert made["token_strs"][:2] == ["w", "x"]
    cut = api.post("/tokenize", json={"prompt": "wx", "truncate_prompt_tokens": 1}).json()["error"]
    assert (cut["param"], cut["code"]) == ("truncate_prompt_tokens", "unsupported_parameter")
    plain = api.post("/tokenize", json={"prompt": "wx"}).json()  # one model is served, and need not be named
    assert plain == {"count": 2, "max_model_len": CONTEXT, "tokens": [2, 3], "token_strs": None}
    assert ask(api, "/tokenize", messages=[{"role": "user", "content": "xyz"}])["tokens"] == [3, 4, 5]
    assert ask(api, "/detokenize", tokens=[3, 4, 5]) == {"prompt": "xyz"}


def test_a_tokenizer_tells_its_special_tokens_and_its_template(tmp_path: Path) -> None:
    """As lm-evaluation-harness reads them with `tokenizer_backend=remote`, which names no model."""
    repository = small_repository(tmp_path)
    write_tokenizer(repository / "llm" / "1")
    file = repository / "llm" / "1" / "llm.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "special_tokens": {"eos_token": "<s>", "bos_token": ""}}))
    with gateway(repository, 9) as running, httpx.Client(base_url=running.url, timeout=60) as api:
        told = api.get("/tokenizer_info")
        assert told.status_code == 200, told.text
        named = {"eos_token": "<s>", "bos_token": None, "pad_token": None}
        assert told.json() == {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONTEXT,
            **named,
            "chat_template": TEMPLATE,
        }
        assert api.get("/tokenizer_info?model=llm").json() == told.json()
        gone = api.get("/tokenizer_info?model=gone")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")


def test_tokens_of_a_chat_are_those_of_its_tools_too(tmp_path: Path) -> None:
    tools = "{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}"
    repository = small_repository(tmp_path, tools + TEMPLATE)
    write_tokenizer(repository / "llm" / "1")
    chat = {"messages": [{"role": "user", "content": "w"}], "tools": [{"type": "function", "function": {"name": "yz"}}]}
    with (
        gateway(repository, 9, rules=Rules(tool_formats={"": "hermes"})) as running,
        httpx.Client(base_url=running.url, timeout=60) as api,
    ):
        assert ask(api, "/tokenize", **chat)["tokens"] == [4, 5, 2]
        assert ask(api, "/tokenize", **chat, tool_choice="none")["tokens"] == [2]


@pytest.mark.parametrize(
    ("url", "body", "param", "code"),
    [
        ("/tokenize", {}, "prompt", None),
        ("/tokenize", {"prompt": "w", "messages": [{"role": "user", "content": "w"}]}, "prompt", None),
        ("/tokenize", {"prompt": "w" * (CONTEXT + 1)}, "prompt", "context_length_exceeded"),
        ("/tokenize", {"messages": [{"role": "user", "content": "w" * 99}]}, "messages", "context_length_exceeded"),
        ("/tokenize", {"prompt": "w", "model": "gone"}, "model", "model_not_found"),
        ("/detokenize", {}, "tokens", "missing_required_parameter"),
        ("/detokenize", {"tokens": [2] * (CONTEXT + 1)}, "tokens", "context_length_exceeded"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0", None),
    ],
    ids=str,
)
def test_what_cannot_be_tokenised_is_refused_by_name(
    api: httpx.Client, url: str, body: dict[str, Any], param: str, code: str | None
) -> None:
    refused = api.post(url, json=body)
    assert refused.status_code in (400, 404), refused.text
    assert (refused.json()["error"]["param"], refused.json()["error"]["code"]) == (param, code)


def test_models_tell_their_length_and_the_server_its_version(api: httpx.Client) -> None:
    found = {item["id"]: item for item in api.get("/v1/models").json()["data"]}
    assert found["llm"]["max_model_len"] == CONTEXT
    assert "max_model_len" not in found["text_to_image"]
    assert set(api.get("/version").json()) == {"version"}

"""The OpenAI-compatible API, asked by OpenAI's own package."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import openai
import pytest
from PIL import Image
from typer.testing import CliRunner

from nereid.serving.gateway.launch import Rules
from nereid.serving.gateway.limits import Limits
from nereid_bench.vllm_peer import stream_completion
from nereid_client import Client
from nereid_client.main import app
from nereid_zoo.sections.chat import conversation

from conftest import ZOO, Served, gateway
from gateway_before import hang_up
from raw import metric
from template_families import FAMILIES
from waiting import until

pytestmark = pytest.mark.triton

KEY = "a-key-of-the-test"
BRIEF = 'pricing section for a bakery called Golden Lane, three tiers, a "Order now" button'
MESSAGES = [{"role": "user", "content": BRIEF}]


@pytest.fixture(scope="module")
def url(served: Served) -> Iterator[str]:
    with gateway(served, KEY, Limits(body_bytes=100_000)) as url:
        yield url


@pytest.fixture
def api(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60)


def test_models_are_those_of_the_repository(api: openai.OpenAI) -> None:
    names = {model.id for model in api.models.list()}
    assert {"llm", "exact_llm", "text_to_image", "xl_text_to_image"} <= names
    assert api.models.retrieve("llm").id == "llm"


def test_a_chat_goes_through_the_chat_template(served: Served, api: openai.OpenAI) -> None:
    made = api.chat.completions.create(model="llm", messages=MESSAGES, temperature=0, max_tokens=200)  # type: ignore[arg-type]
    with Client(served.grpc_url, timeout=60) as client:
        expected = client.generate_text(conversation(BRIEF), temperature=0, max_tokens=200)
    assert made.choices[0].message.content == expected.text
    assert made.choices[0].finish_reason == expected.choices[0].finish_reason
    assert made.usage is not None
    assert made.usage.prompt_tokens == expected.num_input_tokens
    assert made.usage.completion_tokens == expected.num_output_tokens


def test_a_streamed_chat_adds_up_and_tells_its_usage(api: openai.OpenAI) -> None:
    whole = api.chat.completions.create(model="llm", messages=MESSAGES, temperature=0, max_tokens=60)  # type: ignore[arg-type]
    chunks = list(
        api.chat.completions.create(
            model="llm",
            messages=MESSAGES,  # type: ignore[arg-type]
            temperature=0,
            max_tokens=60,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert [choice.delta.content for choice in chunks[-2].choices] == [None]
    counted = [(usage.prompt_tokens, usage.completion_tokens) for usage in (chunks[-1].usage, whole.usage)]  # type: ignore[union-attr]
    assert counted[0] == counted[1]
    assert len(chunks) > 4  # role, text in parts, reason, usage: how many parts depends on who waits for whom


def test_choices_stops_logprobs_and_schemas(api: openai.OpenAI) -> None:
    made = api.chat.completions.create(
        model="llm",
        messages=MESSAGES,  # type: ignore[arg-type]
        n=2,
        seed=3,
        temperature=1,
        max_tokens=30,
        stop=["</h2>"],
        logprobs=True,
        top_logprobs=2,
    )
    assert [choice.index for choice in made.choices] == [0, 1]
    for choice in made.choices:
        assert "</h2>" not in (choice.message.content or "")
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert len(choice.logprobs.content[0].top_logprobs) == 2
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    bound = api.chat.completions.create(
        model="llm",
        messages=MESSAGES,  # type: ignore[arg-type]
        max_tokens=200,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    )
    if bound.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(bound.choices[0].message.content or "")["ok"], bool)


PRICE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "currency": {"enum": ["EUR", "USD"]},
        "tiers": {"type": "integer", "minimum": 1, "maximum": 9},
        "monthly": {"type": "boolean"},
    },
    "required": ["currency", "tiers", "monthly"],
    "additionalProperties": False,
}


@pytest.fixture
def calling(served: Served, tmp_path: Path) -> Iterator[openai.OpenAI]:
    """The same models, and a chat template that has tools."""
    repository = tmp_path / "repository"
    shutil.copytree(served.repository, repository, copy_function=os.symlink)
    template = repository / "llm" / "1" / "chat_template.jinja"
    template.unlink()
    template.write_text(FAMILIES["hermes"])
    with gateway(served, KEY, repository=repository) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60)


def test_a_model_that_must_call_obeys_the_tools_schema_and_gets_its_result(calling: openai.OpenAI) -> None:
    function = {"name": "price", "description": "of a section", "parameters": PRICE}
    asked: Any = {
        "model": "llm",
        "temperature": 1,
        "seed": 5,
        "max_tokens": 300,
        "tools": [{"type": "function", "function": function}],
    }
    forced = {**asked, "tool_choice": "required", "parallel_tool_calls": False}
    whole = calling.chat.completions.create(messages=MESSAGES, n=3, **forced)
    for choice in whole.choices:
        (call,) = choice.message.tool_calls or []
        jsonschema.validate(json.loads(call.function.arguments), PRICE)
        assert (call.function.name, choice.finish_reason, choice.message.content) == ("price", "tool_calls", None)
    with calling.chat.completions.stream(messages=MESSAGES, **forced) as stream:
        streamed = stream.get_final_completion().choices[0]
    (call,) = streamed.message.tool_calls or []
    first = whole.choices[0].message.tool_calls or []
    assert call.function.arguments == first[0].function.arguments
    result = {"role": "tool", "tool_call_id": call.id, "content": "20"}
    after = calling.chat.completions.create(messages=[*MESSAGES, streamed.message, result], **asked)
    assert after.choices[0].finish_reason in ("stop", "length")


def test_responses_are_made_streamed_and_gone_on_with(calling: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "price", "parameters": PRICE, "strict": True}
    asked: Any = {"model": "llm", "temperature": 1, "max_output_tokens": 300, "extra_body": {"seed": 5}}
    first = calling.responses.create(input=BRIEF, tools=[tool], tool_choice="required", parallel_tool_calls=False, **asked)
    (call,) = first.output
    assert call.type == "function_call"
    jsonschema.validate(json.loads(call.arguments), PRICE)
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "20"}
    with calling.responses.stream(input=[result], previous_response_id=first.id, tools=[tool], **asked) as stream:
        second = stream.get_final_response()
    assert second.usage is not None
    assert second.usage.input_tokens > (first.usage.input_tokens if first.usage else 0)
    kept = calling.responses.retrieve(second.id)
    assert (kept.output_text, kept.usage) == (second.output_text, second.usage)


def test_completions_take_several_prompts_and_echo(api: openai.OpenAI) -> None:
    made = api.completions.create(model="llm", prompt=["<section", "<footer"], max_tokens=4, temperature=0, echo=True, logprobs=1)
    assert [choice.text[:8] for choice in made.choices] == ["<section", "<footer" + made.choices[1].text[7:8]]
    assert made.choices[0].logprobs is not None
    assert made.usage is not None
    assert len(made.choices[0].logprobs.tokens or []) == 4 + made.usage.prompt_tokens // 2
    assert made.usage.completion_tokens == 8
    streamed = list(
        api.completions.create(model="llm", prompt=["<section", "<footer"], max_tokens=4, temperature=0, echo=True, stream=True)
    )
    for index, whole in enumerate(made.choices):
        assert "".join(piece.text for chunk in streamed for piece in chunk.choices if piece.index == index) == whole.text


def test_vllms_fields_bind_tokens_and_keep_prefixes_apart(api: openai.OpenAI, url: str) -> None:
    def ask(prompt: str = "<section", **fields: Any) -> Any:
        return api.completions.create(model="llm", prompt=prompt, max_tokens=6, temperature=0, logprobs=1, extra_body=fields)

    words = ask().choices[0].logprobs.tokens
    assert words[0] not in ask(bad_words=[words[0]]).choices[0].text
    headers = {"Authorization": f"Bearer {KEY}"}
    told = httpx.post(f"{url}/tokenize", json={"model": "llm", "prompt": "ab", "add_special_tokens": False}, headers=headers)
    assert set(ask(allowed_token_ids=told.json()["tokens"]).choices[0].text) <= set("ab")
    long = BRIEF * 4

    def cached(salt: str) -> int:
        return int(ask(long, cache_salt=salt).usage.prompt_tokens_details.cached_tokens)

    assert cached("one") == 0
    assert cached("one") > 0
    assert cached("two") == 0


def test_an_evaluators_probabilities_are_those_of_the_checkpoint(served: Served, api: openai.OpenAI) -> None:
    """As lm-evaluation-harness asks: token ids with echo, and no answer."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = ZOO / "sections" / "checkpoint"
    ids = AutoTokenizer.from_pretrained(checkpoint)('<section class="hero"><h1>Café 🦊 best</h1>')["input_ids"]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)(torch.tensor([ids])).logits[0]
    wanted = torch.log_softmax(logits.double(), -1).numpy()[:-1]
    made = api.completions.create(model="exact_llm", prompt=[ids, ids[:9]], max_tokens=0, echo=True, logprobs=1)
    assert made.usage is not None
    assert made.usage.completion_tokens == 0
    for choice, length in zip(made.choices, (len(ids), 9), strict=True):
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs is not None
        own = wanted[np.arange(length - 1), ids[1:length]]
        np.testing.assert_allclose(choice.logprobs.token_logprobs[1:], own, atol=5e-5)  # type: ignore[arg-type]
        told = zip(choice.logprobs.tokens or [], choice.logprobs.top_logprobs or [], strict=True)
        greedy = [token == max(top, key=lambda name: top[name]) for token, top in told if top is not None]
        assert greedy == (wanted[: length - 1].argmax(axis=1) == ids[1:length]).tolist()


def test_a_batch_goes_on_in_the_next_gateway(served: Served, tmp_path: Path) -> None:
    body = {"model": "llm", "prompt": "<section", "max_tokens": 40}
    lines = [{"custom_id": str(i), "url": "/v1/completions", "body": {**body, "seed": i}} for i in range(60)]
    with gateway(served, KEY, rules=Rules(batches=str(tmp_path))) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=5, timeout=60)
        file = client.files.create(file=("asked.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
        made = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
        until(lambda: client.batches.retrieve(made.id).request_counts.completed > 0)  # type: ignore[union-attr]
    with gateway(served, KEY, rules=Rules(batches=str(tmp_path))) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=5, timeout=60)
        until(lambda: client.batches.retrieve(made.id).status == "completed", seconds=120)
        output = client.batches.retrieve(made.id).output_file_id
        assert output is not None
        found = [json.loads(line) for line in client.files.content(output).text.splitlines()]
        assert [item["custom_id"] for item in found] == [item["custom_id"] for item in lines]
        assert {item["response"]["status_code"] for item in found} == {200}


def test_the_async_client_of_openai(url: str) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as api:
            made = await asyncio.gather(
                *(
                    api.chat.completions.create(model="llm", messages=MESSAGES, temperature=0, max_tokens=20)  # type: ignore[arg-type]
                    for _ in range(4)
                )
            )
            return [item.choices[0].message.content or "" for item in made]

    answers = asyncio.run(ask())
    assert len(set(answers)) == 1
    assert answers[0].startswith("<section")


def test_images_whole_and_with_partial_ones(api: openai.OpenAI, url: str) -> None:
    body = {"num_inference_steps": 6, "seed": 4}
    made = api.images.generate(model="text_to_image", prompt="a red box", n=2, size="32x32", extra_body=body)  # type: ignore[arg-type]
    assert made.data is not None
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(item.b64_json or "")))) for item in made.data]
    assert [picture.shape for picture in pictures] == [(32, 32, 3)] * 2
    request = {"model": "text_to_image", "prompt": "a red box", "size": "32x32", "stream": True, "partial_images": 2, **body}
    with httpx.stream("POST", f"{url}/v1/images/generations", json=request, headers=_bearer(), timeout=60) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    assert [event["type"].rsplit(".", 1)[1] for event in events] == ["partial_image", "partial_image", "completed"]
    final = np.asarray(Image.open(io.BytesIO(base64.b64decode(events[-1]["b64_json"]))))
    assert np.array_equal(final, pictures[0])


def _bearer() -> dict[str, str]:
    return {"Authorization": f"Bearer {KEY}"}


REFUSED = [
    ({"model": "nobody"}, 404, "model", "not one of those served"),
    ({"messages": []}, 400, "messages", "at least 1 item"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages.0.role", "wizard"),
    ({"temperature": -3}, 400, "temperature", "-3"),
    ({"temperature": "hot"}, 400, "temperature", "hot"),
    ({"n": 0}, 400, "n", "0"),
    ({"max_tokens": -1}, 400, "max_tokens", "-1"),
    ({"max_tokens": -1, "stream": True}, 400, "max_tokens", "-1"),
    ({"audio": {"voice": "alloy"}}, 400, "audio", "not supported"),
    ({"top_logprobs": 3}, 400, "top_logprobs", "needs logprobs"),
    ({"response_format": {"type": "json_schema"}}, 400, "response_format.json_schema", "missing"),
    ({"response_format": {"type": "xml"}}, 400, "response_format.type", "xml"),
    ({"messages": [{"role": "user", "content": "x" * 90_000}]}, 400, None, "tokens"),
]


@pytest.mark.parametrize(("change", "status", "param", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_errors_have_openais_form(url: str, change: dict[str, object], status: int, param: str | None, words: str) -> None:
    body = {"model": "llm", "messages": MESSAGES, **change}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=_bearer(), timeout=30)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"] if param else None) == (status, param), error
    assert words in error["message"]


def test_keys_sizes_and_unknown_places_are_refused(url: str) -> None:
    wrong = {"Authorization": "Bearer nonsense"}
    assert httpx.get(f"{url}/v1/models").status_code == 401
    assert httpx.get(f"{url}/v1/models", headers=wrong).json()["error"]["code"] == "invalid_api_key"
    large = httpx.post(f"{url}/v1/chat/completions", content=b"x" * 200_000, headers=_bearer())
    assert (large.status_code, "100000 bytes" in large.json()["error"]["message"]) == (413, True)

    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield b"x" * 10_000

    unannounced = httpx.post(
        f"{url}/v1/chat/completions", content=pieces(), headers={**_bearer(), "Content-Type": "application/json"}
    )
    assert unannounced.status_code == 413
    assert (
        httpx.post(
            f"{url}/v1/chat/completions", content=b"{", headers={**_bearer(), "Content-Type": "application/json"}
        ).status_code
        == 400
    )
    assert "error" in httpx.get(f"{url}/nowhere").json()


def test_health_and_metrics_answer_without_a_key(url: str) -> None:
    assert httpx.get(f"{url}/health").json()["ready"] is True
    page = httpx.get(f"{url}/metrics").text
    assert "nereid_llm_requests_total" in page
    assert 'nereid_gateway_requests_total{route="GET /health",status="200"}' in page


def test_the_state_page_shows_what_was_asked(served: Served, api: openai.OpenAI, url: str) -> None:
    api.images.generate(model="text_to_image", prompt="a red box", size="32x32", extra_body={"num_inference_steps": 4})  # type: ignore[arg-type]
    api.completions.create(model="llm", prompt="<section", max_tokens=4)
    places = ["--metrics", f"127.0.0.1:{served.metrics}", "--health", f"127.0.0.1:{served.health}", "--gateway", url]
    done = CliRunner().invoke(app, ["top", *places, "--once", "--json", "--interval", "0.5"])
    assert done.exit_code == 0, done.output
    state = json.loads(done.stdout)
    assert state["answering"] == {"triton": True, "gateway": True, "supervisor": True}
    assert state["supervisor"]["ready"]
    assert {model["name"]: model["ready"] for model in state["models"]}["denoise"] is True
    assert {"denoise", "llm", "triton", "supervisor", "llm worker"} <= state["supervisor"]["memory_bytes"].keys()
    (pipeline,) = [pipeline for pipeline in state["images"] if pipeline["model"] == "denoise"]
    assert pipeline["memory_budget_bytes"] > 0
    (lane,) = [lane for lane in pipeline["lanes"] if lane["size"] == "32x32"]
    assert lane["call_seconds"] + lane["row_seconds"] > 0
    routes = {route["route"] for route in state["gateway"]["routes"]}
    assert {"POST /v1/images/generations", "POST /v1/completions"} <= routes


@pytest.mark.parametrize("stream", [True, False])
def test_a_caller_that_hangs_up_cancels_its_request(served: Served, url: str, stream: bool) -> None:
    def running() -> float:
        return metric(served.metrics, "nereid_llm_requests_running", model="exact_llm")

    until(lambda: running() == 0)
    before = metric(served.metrics, "nereid_llm_requests_total", model="exact_llm", outcome="cancelled")
    body = {"model": "exact_llm", "messages": MESSAGES, "ignore_eos": True, "max_tokens": 1900, "stream": stream}
    if stream:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=_bearer()) as answer:
            next(answer.iter_lines())
    else:
        hang_up(url, "/v1/chat/completions", body, lambda: running() == 1, KEY)
    until(lambda: metric(served.metrics, "nereid_llm_requests_total", model="exact_llm", outcome="cancelled") > before)


def test_the_benchmarks_count_the_tokens_of_a_streamed_completion(served: Served) -> None:
    told: list[None] = []
    with gateway(served) as url:
        count = stream_completion(url, (5, 9, 12), lambda: told.append(None), max_tokens=23, ignore_eos=True, temperature=0)
    assert count == 23
    assert 1 <= len(told) <= 24

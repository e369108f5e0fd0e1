"""Which fields the gateway takes: null and what changes nothing, older names, and what it says of all others."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from nereid.serving.gateway.a1111.bodies import ImageToImageBody, Settings, TextToImageBody
from nereid.serving.gateway.image_bodies import EditBody, ImageBody, VariationBody
from nereid.serving.gateway.launch import Rules
from nereid.serving.gateway.messages import Message, TextPart, Tool, ToolCall
from nereid.serving.gateway.response_bodies import ResponsesBody
from nereid.serving.gateway.schemas import ChatBody, CompletionBody, EmbeddingBody
from nereid.serving.gateway.unused import UNUSED_FIELDS
from nereid.serving.gateway.unused_field import (
    CALL,
    EDITS,
    EMBEDDINGS,
    IMG2IMG,
    MASKED,
    MESSAGE,
    PART,
    SETTINGS,
    TOOL,
    TXT2IMG,
    VARIATIONS,
)
from nereid.serving.gateway.unused_field import CHAT as IN_CHAT
from nereid.serving.gateway.unused_field import COMPLETIONS as IN_COMPLETIONS
from nereid.serving.gateway.unused_field import IMAGES as IN_IMAGES
from nereid.serving.gateway.unused_field import RESPONSES as IN_RESPONSES

from gateway_before import gateway, small_repository
from scripted import delta, image, texts
from small_servers import Tensors

CHAT, COMPLETIONS, IMAGES = "/v1/chat/completions", "/v1/completions", "/v1/images/generations"
RESPONSES, EMBED = "/v1/responses", "/v1/embeddings"
EDIT, VARY, DRAW, REDRAW = "/v1/images/edits", "/v1/images/variations", "/sdapi/v1/txt2img", "/sdapi/v1/img2img"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "llm", "messages": [{"role": "user", "content": "hello"}]},
    COMPLETIONS: {"model": "llm", "prompt": "hello"},
    IMAGES: {"model": "text_to_image", "prompt": "a box"},
    RESPONSES: {"model": "llm", "input": "hello"},
    EMBED: {"model": "llm", "input": "hello"},
    EDIT: {"prompt": "a box"},
    VARY: {},
    DRAW: {"prompt": "a box"},
    REDRAW: {"prompt": "a box", "init_images": ["aGk="]},
}
ROUTES = {
    IN_CHAT: CHAT,
    IN_COMPLETIONS: COMPLETIONS,
    IN_IMAGES: IMAGES,
    IN_RESPONSES: RESPONSES,
    EMBEDDINGS: EMBED,
    EDITS: EDIT,
    VARIATIONS: VARY,
    TXT2IMG: DRAW,
    IMG2IMG: REDRAW,
    MASKED: REDRAW,
}
SCHEMAS: dict[str, Any] = {
    CHAT: ChatBody,
    COMPLETIONS: CompletionBody,
    EMBED: EmbeddingBody,
    IMAGES: ImageBody,
    RESPONSES: ResponsesBody,
    EDIT: EditBody,
    VARY: VariationBody,
    DRAW: TextToImageBody,
    REDRAW: ImageToImageBody,
}


class Models:
    """Answers "he", "llo", or of several whole answers each its number, the second likeliest."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.prompts: list[str] = []

    def llm(self, inputs: Tensors) -> Iterator[Tensors]:
        if "sampling_parameters" not in inputs:  # asked what has become of a run, or to cancel it
            yield {"run_state": texts("running")}
            return
        sampling = json.loads(inputs["sampling_parameters"][0])
        self.asked.append(sampling)
        self.prompts.append(inputs["text_input"][0].decode())
        if bool(inputs["stream"][0]):
            yield delta([5], "he", cached=1)
            yield delta([6, 7], "", "")
            yield delta([8], "llo", "stop")
            return
        count = sampling.get("n", 1)
        yield {
            "text_output": np.array([str(i).encode() for i in range(count)], object),
            "output_ids": np.array([[i, 9] for i in range(count)], np.int32).reshape(-1),
            "finish_reason": np.array([b"stop"] * count, object),
            "num_input_tokens": np.array([3]),
            "num_cached_tokens": np.array([0]),
            "num_output_tokens": np.array([2] * count),
            "cumulative_logprob": np.array([-1.0 if i == 1 else -2.0 - i for i in range(count)], np.float32),
        }

    def image(self, inputs: Tensors) -> Iterator[Tensors]:
        yield image()


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def triton_models(models: Models) -> dict[str, Any]:
    return {"llm": models.llm, "text_to_image": models.image}


@pytest.fixture
def api(repository: Path, triton: int) -> Iterator[httpx.Client]:
    with gateway(repository, triton) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


@pytest.fixture
def lenient(repository: Path, triton: int) -> Iterator[httpx.Client]:
    rules = Rules(lenient=True, a1111=True)
    with gateway(repository, triton, rules=rules) as running, httpx.Client(base_url=running.url) as client:
        yield client


@pytest.fixture(scope="module")
def bodies_only(repository: Path) -> Iterator[httpx.Client]:
    rules = Rules(a1111=True)
    with gateway(repository, 9, rules=rules) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


@pytest.mark.parametrize("route", SCHEMAS)
def test_null_is_as_absent_for_every_optional_field(route: str) -> None:
    body, schema = BODIES[route], SCHEMAS[route]
    optional = {field.alias or name: None for name, field in schema.model_fields.items() if name not in body}
    made, plain = schema.model_validate({**optional, **body}), schema.model_validate(body)
    assert made == plain
    assert made.model_fields_set == plain.model_fields_set


def test_null_is_as_absent_within_objects_but_stays_in_a_schema() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "strict": None, "schema": {"enum": [None], "default": None}}}
    made = ChatBody.model_validate({**BODIES[CHAT], "stream_options": {"include_usage": None}, "response_format": form})
    assert made.response_format is not None
    assert made.response_format.json_schema is not None
    assert made.response_format.json_schema.schema_ == {"enum": [None], "default": None}


NOTHING = [
    (place, row.name, value)
    for row in UNUSED_FIELDS
    for place in row.within
    for value in (row.values if row.values is not None else ("x", 3, {"a": [1]}))
]
OTHERS = [(place, row) for row in UNUSED_FIELDS for place in row.within if row.values is not None]


def body_with(place: str, name: str, value: object) -> tuple[str, dict[str, Any]]:
    if place == MESSAGE:
        message = {"role": "assistant", "content": "x", name: value}
        return CHAT, {**BODIES[CHAT], "messages": [message]}
    if place == PART:
        part = {"type": "text", "text": "x", name: value}
        return CHAT, {**BODIES[CHAT], "messages": [{"role": "assistant", "content": [part]}]}
    if place == CALL:
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}, name: value}
        return CHAT, {**BODIES[CHAT], "messages": [{"role": "assistant", "tool_calls": [call]}]}
    if place == TOOL:
        return CHAT, {**BODIES[CHAT], "tools": [{"type": "function", "function": {"name": "f"}, name: value}]}
    if place == SETTINGS:
        return DRAW, {**BODIES[DRAW], SETTINGS: {name: value}}
    mask = {"mask": "aGk="} if place == MASKED else {}
    return ROUTES[place], {**BODIES[ROUTES[place]], **mask, name: value}


@pytest.mark.parametrize(("place", "name", "value"), NOTHING, ids=str)
def test_a_value_that_changes_nothing_is_taken_and_dropped(place: str, name: str, value: object) -> None:
    route, body = body_with(place, name, value)
    made = SCHEMAS[route].model_validate(body)
    assert name not in made.model_fields_set
    if place == SETTINGS:
        assert made.override_settings == Settings()
    if place == MESSAGE:
        assert made.messages == [Message(role="assistant", content="x")]
    if place == PART:
        assert made.messages[0].content == [TextPart(type="text", text="x")]
    if place == CALL:
        assert made.messages[0].tool_calls == [ToolCall(id="c", function={"name": "f", "arguments": "{}"})]
    if place == TOOL:
        assert made.tools == [Tool.model_validate({"type": "function", "function": {"name": "f"}})]


def test_any_other_value_is_refused_by_name_also_where_unknown_fields_are_ignored(
    bodies_only: httpx.Client, lenient: httpx.Client
) -> None:
    for place, row in OTHERS:
        route, body = body_with(place, row.name, "something-else")
        field = {MESSAGE: f"messages.0.{row.name}", SETTINGS: f"{SETTINGS}.{row.name}"}.get(place, row.name)
        for client in (bodies_only, lenient):
            form = {"data": body, "files": {"image": b"x"}} if place in (EDITS, VARIATIONS) else {"json": body}
            answer = client.post(route, **form)  # type: ignore[arg-type]
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, field), error
            assert error["code"] == ("unsupported_value" if row.values else "unsupported_parameter")
            if row.values:
                assert error["message"] == f"{field}: 'something-else' is not allowed; it must be {row.allowed}"


def test_true_is_not_one() -> None:
    (row,) = (row for row in UNUSED_FIELDS if row.name == "best_of")
    assert row.allows(1)
    assert row.allows(1.0)
    assert not row.allows(True)


def test_a_field_that_is_honoured_is_not_called_unused() -> None:
    places: dict[str, Any] = {
        MESSAGE: Message,
        PART: TextPart,
        CALL: ToolCall,
        TOOL: Tool,
        SETTINGS: Settings,
        **{place: SCHEMAS[route] for place, route in ROUTES.items()},
    }
    both = [(place, row.name) for row in UNUSED_FIELDS for place in row.within if row.name in places[place].model_fields]
    assert not both
    assert len({(place, row.name) for row in UNUSED_FIELDS for place in row.within}) == sum(
        len(row.within) for row in UNUSED_FIELDS
    )


def test_what_openais_package_sends_back_is_taken(repository: Path, triton: int) -> None:
    with gateway(repository, triton) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        first = client.chat.completions.create(model="llm", messages=[{"role": "user", "content": "a"}], n=1, store=False)
        history: Any = [{"role": "user", "content": "a"}, first.choices[0].message.model_dump(), {"role": "user", "content": "b"}]
        second = client.chat.completions.create(
            model="llm", messages=history, tools=[], stop=None, service_tier="auto", top_logprobs=0, logprobs=False
        )
    assert second.choices[0].message.content == "0"


def test_unknown_fields_are_ignored_and_named_where_that_is_asked_for(lenient: httpx.Client, api: httpx.Client) -> None:
    part = {"type": "text", "text": "hi", "weight": {"a": 1}}
    body = {**BODIES[CHAT], "messages": [{"role": "user", "content": [part]}], "num_ctx": 5, "wïnd\n": 1}
    assert api.post(CHAT, json=body).json()["error"]["code"] == "unsupported_parameter"
    answer = lenient.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    named = answer.headers["x-nereid-ignored-fields"].split(", ")
    assert sorted(named) == ["messages.0.content.0.weight", "num_ctx", "w\\u00efnd\\n"]
    assert "x-nereid-ignored-fields" not in lenient.post(CHAT, json=BODIES[CHAT]).headers
    for name in ("structured_outputs", "guided_decoding"):
        given = {"regex": "a", "lookahead": 1, "x.y": {}}
        answer = lenient.post(COMPLETIONS, json={**BODIES[COMPLETIONS], name: given, "num_ctx": 5})
        assert answer.status_code == 200, answer.text
        assert {*answer.headers["x-nereid-ignored-fields"].split(", ")} == {"num_ctx", f"{name}.lookahead", f"{name}.x.y"}
        as_text = lenient.post(COMPLETIONS, json={**BODIES[COMPLETIONS], name: json.dumps(given)})
        assert (as_text.status_code, as_text.json()["error"]["param"]) == (400, f"{name}.lookahead")
    many = {"regex": "a", **{f"x{i}": 1 for i in range(1000)}}
    assert lenient.post(COMPLETIONS, json={**BODIES[COMPLETIONS], "structured_outputs": many}).status_code == 400
    wrong = lenient.post(CHAT, json={**body, "temperature": "hot"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "temperature")


@pytest.mark.parametrize(
    ("older", "member", "value"),
    [
        ("guided_json", "json", {"type": "object"}),
        ("guided_regex", "regex", "a+"),
        ("guided_choice", "choice", ["a", "b"]),
        ("guided_grammar", "grammar", 'root ::= "a"'),
    ],
)
def test_older_names_of_structured_outputs_are_taken(
    api: httpx.Client, models: Models, older: str, member: str, value: object
) -> None:
    for route in (CHAT, COMPLETIONS):
        answer = api.post(route, json={**BODIES[route], older: value, "guided_decoding_backend": "xgrammar"})
        assert answer.status_code == 200, answer.text
        assert models.asked[-1]["structured_outputs"][member] == value
    both = api.post(CHAT, json={**BODIES[CHAT], older: value, "structured_outputs": {"regex": "a"}})
    assert (both.status_code, both.json()["error"]["param"]) == (400, older)
    wrong = api.post(CHAT, json={**BODIES[CHAT], older: 3})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, older)


def test_an_object_of_vllms_with_all_its_members_is_taken(api: httpx.Client, models: Models) -> None:
    sent = {"json_object": True, "regex": None, "structural_tag": None, "disable_fallback": False, "backend": "auto"}
    for route, name in ((CHAT, "structured_outputs"), (COMPLETIONS, "guided_decoding")):
        answer = api.post(route, json={**BODIES[route], name: sent})
        assert answer.status_code == 200, answer.text
        assert models.asked[-1]["structured_outputs"]["json_object"] is True
        wrong = api.post(route, json={**BODIES[route], name: {"regex": 3}})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, f"{name}.regex")


def test_a_completion_has_the_form_that_is_asked_for_as_a_chat_has(api: httpx.Client, models: Models) -> None:
    """vLLM's completions have OpenAI's field of chats."""
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}}
    of_schema = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}
    for form, wanted in (({"type": "text"}, None), ({"type": "json_object"}, {"type": "object"}), (of_schema, schema)):
        for route in (CHAT, COMPLETIONS):
            answer = api.post(route, json={**BODIES[route], "response_format": form})
            assert answer.status_code == 200, answer.text
            assert models.asked[-1].get("structured_outputs") == (None if wanted is None else {"json": wanted})
    for wrong, param in (({"type": "xml"}, "response_format.type"), ({"type": "json_schema"}, "response_format.json_schema")):
        refused = api.post(COMPLETIONS, json={**BODIES[COMPLETIONS], "response_format": wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    both = {"response_format": of_schema, "guided_regex": "a"}
    refused = api.post(COMPLETIONS, json={**BODIES[COMPLETIONS], **both})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")


def test_the_likeliest_of_several_answers_are_told(api: httpx.Client, models: Models) -> None:
    made = api.post(COMPLETIONS, json={**BODIES[COMPLETIONS], "best_of": 3, "n": 2}).json()
    assert [(choice["index"], choice["text"]) for choice in made["choices"]] == [(0, "1"), (1, "0")]
    assert models.asked[-1]["n"] == 3
    assert made["usage"]["completion_tokens"] == 6
    for change in ({"best_of": 1, "n": 2}, {"best_of": 2, "stream": True}):
        answer = api.post(COMPLETIONS, json={**BODIES[COMPLETIONS], **change})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "best_of")


def events(client: httpx.Client, route: str, change: dict[str, Any]) -> list[dict[str, Any]]:
    lines = client.post(route, json={**BODIES[route], "stream": True, **change}).text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
def test_every_chunk_tells_the_usage_so_far_where_that_is_asked_for(api: httpx.Client, route: str) -> None:
    told = [event["usage"] for event in events(api, route, {"stream_options": {"continuous_usage_stats": True}})]
    counts = [usage["completion_tokens"] for usage in told]
    assert counts == sorted(counts)
    assert counts[-1] == 4
    assert {usage["prompt_tokens"] for usage in told} == {3}


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
def test_tokens_are_told_where_that_is_asked_for_and_none_is_lost(api: httpx.Client, route: str) -> None:
    whole = api.post(route, json={**BODIES[route], "return_token_ids": True}).json()
    assert whole["choices"][0]["token_ids"] == [0, 9]
    pieces = [
        choice.get("token_ids", []) for event in events(api, route, {"return_token_ids": True}) for choice in event["choices"]
    ]
    assert [token for piece in pieces for token in piece] == [5, 6, 7, 8]
    assert not any("token_ids" in choice for event in events(api, route, {}) for choice in event["choices"])


def test_events_are_compact_json(api: httpx.Client) -> None:
    lines = api.post(CHAT, json={**BODIES[CHAT], "stream": True}).text.splitlines()
    for line in lines:
        if line.startswith("data: {"):
            assert line[6:] == json.dumps(json.loads(line[6:]), separators=(",", ":"), ensure_ascii=False)


def test_pictures_are_compressed_as_asked(api: httpx.Client) -> None:
    def picture(**change: object) -> bytes:
        made = api.post(IMAGES, json={**BODIES[IMAGES], **change}).json()
        found = base64.b64decode(made["data"][0]["b64_json"])
        Image.open(io.BytesIO(found)).load()
        return found

    for kind in ("jpeg", "webp"):
        assert picture(output_format=kind, output_compression=5) != picture(output_format=kind, output_compression=100)
    refused = api.post(IMAGES, json={**BODIES[IMAGES], "output_compression": 50})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "output_compression")
    assert picture(output_format="png", output_compression=100, quality="auto", background="opaque")


# --- chat templates ---

READS = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ m.reasoning_content }}|{% endfor %}{{ effort }}{{ documents }}"
TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b ", "reasoning": "c"}]


@pytest.fixture
def templated(tmp_path: Path, triton: int) -> Iterator[httpx.Client]:
    """Two chat templates, and what export writes of special tokens."""
    repository = small_repository(tmp_path, READS + "{{ '>' if add_generation_prompt }}")
    folder = repository / "llm" / "1"
    (folder / "llm.json").write_text(json.dumps({"special_tokens": {"bos_token": "<s>"}}))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "short.jinja").write_text("{{ reasoning_effort }}{{ messages[-1].content }}")
    with gateway(repository, triton) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


@pytest.mark.parametrize(
    ("change", "prompt"),
    [
        ({}, "<s>a|b c|None>"),
        ({"add_generation_prompt": False}, "<s>a|b c|None"),
        ({"continue_final_message": True}, "<s>a|b "),
        ({"chat_template_kwargs": {"effort": "high"}}, "<s>a|b c|highNone>"),
        ({"documents": [{"title": "t"}]}, "<s>a|b c|[{'title': 't'}]>"),
        ({"documents": []}, "<s>a|b c|None>"),
        ({"chat_template": "short"}, "b "),
        ({"chat_template": "short", "reasoning_effort": "low"}, "lowb "),
    ],
    ids=str,
)
def test_a_chat_is_given_to_its_template_as_it_was_sent(
    templated: httpx.Client, models: Models, change: dict[str, Any], prompt: str
) -> None:
    answer = templated.post(CHAT, json={"model": "llm", "messages": TALK, **change})
    assert answer.status_code == 200, answer.text
    assert models.prompts[-1] == prompt
    assert models.asked[-1]["add_special_tokens"] is False  # the template writes them


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
        ({"documents": ["text"]}, "documents.0"),
    ],
)
def test_what_a_template_cannot_be_given_is_refused_by_name(templated: httpx.Client, change: dict[str, Any], param: str) -> None:
    answer = templated.post(CHAT, json={"model": "llm", "messages": TALK, **change})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_an_effort_that_the_template_does_not_read_is_refused(api: httpx.Client) -> None:
    for effort in ("high", "low"):
        answer = api.post(CHAT, json={**BODIES[CHAT], "reasoning_effort": effort})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "reasoning_effort")
        assert answer.json()["error"]["message"].endswith("of 'llm'; it must be medium, or absent")


@pytest.mark.parametrize(
    ("template", "efforts"),
    [
        ("{{ messages[-1].content }}", {"medium": "hi", "none": "hi"}),
        ("{{ messages[-1].content }}{# <think> #}", {"medium": "hi", "none": None}),
        ("{{ enable_thinking }}{{ messages[-1].content }}", {"medium": "hi", "none": "Falsehi", "high": None}),
        ("{{ reasoning_effort }}{{ enable_thinking }}", {"medium": "medium", "none": "none", "high": "high"}),
    ],
)
def test_an_effort_that_changes_nothing_is_taken_and_none_turns_thoughts_off(
    tmp_path: Path, triton: int, models: Models, template: str, efforts: dict[str, str | None]
) -> None:
    with gateway(small_repository(tmp_path, template), triton) as running:
        for effort, prompt in efforts.items():
            messages = [{"role": "user", "content": "hi"}]
            answer = httpx.post(f"{running.url}{CHAT}", json={"model": "llm", "messages": messages, "reasoning_effort": effort})
            assert answer.status_code == (200 if prompt else 400), answer.text
            assert prompt is None or models.prompts[-1] == prompt


def test_the_tokenizer_adds_its_tokens_to_a_chat_only_where_that_is_asked_for(
    templated: httpx.Client, api: httpx.Client, models: Models
) -> None:
    templated.post(CHAT, json={**BODIES[CHAT], "add_special_tokens": True})
    assert models.asked[-1]["add_special_tokens"] is True
    templated.post(COMPLETIONS, json=BODIES[COMPLETIONS])
    assert "add_special_tokens" not in models.asked[-1]
    api.post(CHAT, json=BODIES[CHAT])  # an export of before left out of bos_token what the tokenizer adds
    assert "add_special_tokens" not in models.asked[-1]


def test_a_template_that_is_none_takes_chats_from_its_model_alone(tmp_path: Path, triton: int) -> None:
    repository = small_repository(tmp_path, "{% if %}")
    with gateway(repository, triton) as running:
        chat = httpx.post(f"{running.url}{CHAT}", json=BODIES[CHAT])
        completion = httpx.post(f"{running.url}{COMPLETIONS}", json=BODIES[COMPLETIONS])
    assert (chat.status_code, chat.json()["error"]["param"]) == (400, "model")
    assert "the chat template of 'llm' cannot be used (Expected an expression" in chat.json()["error"]["message"]
    assert completion.status_code == 200

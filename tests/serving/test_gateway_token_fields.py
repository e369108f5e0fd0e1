"""vLLM's fields about an answer's tokens and the prefix cache, on their way from every text endpoint to `llm`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from calling_model import ASK, CHAT, Model, hermes

COMPLETIONS, RESPONSES, EMBEDDINGS = "/v1/completions", "/v1/responses", "/v1/embeddings"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {**ASK, "logprobs": True},
    COMPLETIONS: {"model": "llm", "prompt": "How warm?", "logprobs": 0},
    RESPONSES: {"model": "llm", "input": "How warm?", "include": ["message.output_text.logprobs"]},
}
FIELDS = {"allowed_token_ids": [3, 5], "bad_words": ["cold", " very hot"], "cache_salt": "tenant", "logprob_token_ids": [5, 3]}


@pytest.fixture
def model() -> Model:
    return Model("Warm.")


@pytest.fixture
def api(tmp_path: Path, triton: int) -> Iterator[httpx.Client]:
    with hermes(tmp_path, triton) as client:
        yield client


@pytest.mark.parametrize("route", BODIES)
def test_they_reach_the_model_as_they_were_sent_and_null_is_absent(api: httpx.Client, model: Model, route: str) -> None:
    answer = api.post(route, json={**BODIES[route], **FIELDS})
    assert answer.status_code == 200, answer.text
    assert {name: model.asked[-1][name] for name in FIELDS} == FIELDS
    answer = api.post(route, json={**BODIES[route], **dict.fromkeys(FIELDS)})
    assert answer.status_code == 200, answer.text
    assert not model.asked[-1].keys() & FIELDS.keys()


@pytest.mark.parametrize("route", BODIES)
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("allowed_token_ids", [], "a list of 1 to 262144 token ids"),
        ("allowed_token_ids", "x", "a list of 1 to 262144 token ids"),
        ("bad_words", [""], "a string of 1 to 256 characters"),
        ("bad_words", ["x"] * 129, "1 to 128"),
        ("cache_salt", "", "a string of 1 to 256 characters"),
        ("cache_salt", 3, "a string of 1 to 256 characters"),
        ("logprob_token_ids", [1] * 129, "at most 128"),
    ],
)
def test_what_they_may_not_be_is_refused_by_name(
    api: httpx.Client, model: Model, route: str, field: str, value: object, words: str
) -> None:
    answer = api.post(route, json={**BODIES[route], field: value})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"].split(".")[0]) == (400, field), error
    assert words in error["message"]
    assert model.asked == []


def test_named_tokens_have_no_place_where_no_log_probabilities_are_told(api: httpx.Client, model: Model) -> None:
    plain = {CHAT: ASK, COMPLETIONS: {"model": "llm", "prompt": "x"}, RESPONSES: {"model": "llm", "input": "x"}}
    for route, body in plain.items():
        answer = api.post(route, json={**body, "logprob_token_ids": [3]})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "logprob_token_ids")
        assert "where no log probabilities are asked for" in answer.json()["error"]["message"]
    assert model.asked == []

"""Log probabilities through the gateway: where tokens begin, and the bytes of parts of characters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from gateway_before import gateway, small_repository
from scripted import delta
from small_servers import Tensors, grpc_server

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "llm", "messages": [{"role": "user", "content": "hello"}]},
    COMPLETIONS: {"model": "llm", "prompt": "hello"},
}
LOGPROBS = [
    {"token": "é", "logprob": -0.1, "top": [{"token": "\ufffd", "logprob": -1.0, "bytes": [226]}]},
    {"token": "\ufffd", "logprob": -0.2, "bytes": [240, 159], "top": [{"token": "\ufffd", "logprob": -1.0, "bytes": [226]}]},
    {"token": "\ufffd", "logprob": -0.3, "bytes": [166, 138], "top": []},
    {"token": "!", "logprob": -0.4, "top": []},
]


class Scored:
    """Says two letters and a fox, whose bytes are two tokens, in chunks where it is asked to stream."""

    def __call__(self, inputs: Tensors) -> Iterator[Tensors]:
        if not bool(inputs["stream"][0]):
            whole = delta([1, 2, 3, 4], "é🦊!", "stop", logprobs=json.dumps(LOGPROBS))
            yield {**whole, "num_output_tokens": np.array([4]), "cumulative_logprob": np.array([-1.0], np.float32)}
            return
        for place, text in enumerate(("é", "", "🦊", "!")):
            yield delta([place], text, "stop" if place == 3 else "", logprobs=json.dumps(LOGPROBS[place : place + 1]))


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        grpc_server({"llm": Scored()}) as (port, _),
        gateway(small_repository(tmp_path_factory.mktemp("repository")), port) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield client


def streamed(client: httpx.Client, route: str, change: dict[str, Any]) -> list[dict[str, Any]]:
    lines = client.post(route, json={**BODIES[route], "stream": True, **change}).text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


@pytest.mark.parametrize(("echo", "first"), [(False, 0), (True, len("hello"))])
def test_log_probabilities_of_a_completion_say_where_each_token_begins(scored: httpx.Client, echo: bool, first: int) -> None:
    asked = {"logprobs": 1, "echo": echo}
    choice = scored.post(COMPLETIONS, json={**BODIES[COMPLETIONS], **asked}).json()["choices"][0]
    found = choice["logprobs"]
    assert found["text_offset"] == [first, first + 1, first + 1, first + 2]
    assert choice["text"][found["text_offset"][3] :] == "!"
    assert found["tokens"] == ["é", "bytes:\\xf0\\x9f", "bytes:\\xa6\\x8a", "!"]
    chunks = [chunk["choices"][0]["logprobs"] for chunk in streamed(scored, COMPLETIONS, asked)]
    pieces = [chunk for chunk in chunks if chunk is not None]
    assert [at for piece in pieces for at in piece["text_offset"]] == found["text_offset"]


def test_log_probabilities_of_a_chat_have_the_bytes_of_a_part_of_a_character(scored: httpx.Client) -> None:
    asked = {"logprobs": True, "top_logprobs": 1}
    found = scored.post(CHAT, json={**BODIES[CHAT], **asked}).json()["choices"][0]["logprobs"]["content"]
    assert bytes(byte for item in found for byte in item["bytes"]).decode() == "é🦊!"
    assert found[0]["top_logprobs"][0]["bytes"] == [226]

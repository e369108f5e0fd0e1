"""A scripted language model whose answers have calls of tools, and what a client asks it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from gateway_before import gateway, small_repository
from scripted import delta, texts
from small_servers import Tensors
from template_families import FAMILIES

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "llm", "messages": [{"role": "user", "content": "How warm?"}]}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
WARMTH = {"type": "function", "function": {"name": "warmth", "description": "of a city", "parameters": CITY}}
NOW = {"type": "function", "function": {"name": "now"}}


def refused(api: httpx.Client, **more: Any) -> tuple[str, str]:
    """The field that a chat is refused for, and the sentence."""
    answer = api.post(CHAT, json={**ASK, **more})
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]["param"], answer.json()["error"]["message"]


class Model:
    """Writes `answer`, a letter at a time where it streams; number i of several with i `x` before it.

    `ids` are its tokens; where they are as many as its letters, each comes with its letter.
    """

    def __init__(self, answer: str = "") -> None:
        self.answer, self.reason = answer, "stop"
        self.ids = [1, 2]
        self.asked: list[dict[str, Any]] = []
        self.prompts: list[str] = []

    def __call__(self, inputs: Tensors) -> Iterator[Tensors]:
        if "sampling_parameters" not in inputs:
            yield {"run_state": texts("running")}
            return
        sampling = json.loads(inputs["sampling_parameters"][0])
        self.asked.append(sampling)
        self.prompts.append(inputs["text_input"][0].decode())
        count = sampling.get("n", 1)
        if bool(inputs["stream"][0]):
            ids = self.ids if len(self.ids) == len(self.answer) else range(len(self.answer))
            for place, letter in enumerate(self.answer):
                for index in range(count):
                    made = delta([ids[place]], letter, self.reason if place == len(self.answer) - 1 else "")
                    yield {**made, "index": np.array([index])}
            return
        yield {
            "text_output": np.array([self.answer.encode()] * count, object),
            "output_ids": np.array([self.ids] * count, np.int32).reshape(-1),
            "finish_reason": np.array([self.reason.encode()] * count, object),
            "num_input_tokens": np.array([3]),
            "num_cached_tokens": np.array([0]),
            "num_output_tokens": np.array([len(self.ids)] * count),
            "cumulative_logprob": np.array([-1.0] * count, np.float32),
        }


def write(folder: Path, template: str, *special: str) -> Path:
    """A repository whose tokenizer has some special tokens."""
    repository = small_repository(folder, template)
    tokens = [{"id": 10 + place, "content": token, "special": True} for place, token in enumerate(special)]
    (repository / "llm" / "1" / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    return repository


@contextmanager
def hermes(folder: Path, triton: int) -> Iterator[httpx.Client]:
    """A client of a gateway whose model has Hermes' template."""
    with (
        gateway(write(folder, FAMILIES["hermes"]), triton) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield client


def chat(api: httpx.Client, **more: Any) -> dict[str, Any]:
    answer = api.post(CHAT, json={**ASK, **more})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())

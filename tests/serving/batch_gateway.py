"""The gateway with a folder of batches before a small model, and OpenAI's package before the gateway."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai

from nereid.serving.gateway.batches.load import Load
from nereid.serving.gateway.batches.runner import BatchRunner, Pace
from nereid.serving.gateway.batches.store import BatchStore
from nereid.serving.gateway.launch import Rules

from gateway_before import gateway, small_repository
from scripted import delta, image, texts
from small_servers import RefusedError, Tensors, grpc_server

URL = "/v1/completions"


def line(name: str, prompt: str = "w", url: str = URL, **body: Any) -> str:
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": {"model": "llm", "prompt": prompt, **body}})


def until(condition: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def work(store: BatchStore, ask: Any, done: Callable[[], bool], pace: Pace | None = None) -> None:
    """Work off what there is by a runner's own rounds, until this is so."""

    async def go() -> None:
        task = asyncio.ensure_future(BatchRunner(store, Load(), ask, pace or Pace(gap_seconds=0.0)).run())
        try:
            async with asyncio.timeout(20):
                while not done():
                    await asyncio.sleep(0.005)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(go())


class Model:
    """Answers a prompt with itself; a prompt of these words otherwise."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.priorities: list[int] = []
        self.release = threading.Event()

    def llm(self, inputs: Tensors) -> Iterator[Tensors]:
        if "sampling_parameters" not in inputs:
            yield {"run_state": texts("running")}
            return
        prompt = inputs["text_input"][0].decode()
        self.asked.append(prompt)
        self.priorities.append(json.loads(inputs["sampling_parameters"][0]).get("priority"))
        if prompt == "wrong":
            raise RefusedError("text_input: 'wrong' is not allowed [nereid: INVALID_ARG invalid text_input]")
        if prompt == "slow":
            self.release.wait(60)
        whole = {"num_output_tokens": np.array([1]), "cumulative_logprob": np.array([-1.0], np.float32)}
        yield delta([1], prompt, "stop", **whole)

    def image(self, inputs: Tensors) -> Iterator[Tensors]:
        yield image()


@contextmanager
def serving(tmp_path: Path, model: Model, **rules: Any) -> Iterator[openai.OpenAI]:
    repository = tmp_path / "repository"
    if not repository.exists():
        small_repository(repository)
    with (
        grpc_server({"llm": model.llm, "text_to_image": model.image}) as (port, _),
        gateway(repository, port, rules=Rules(batches=str(tmp_path / "batches"), **rules), max_file_bytes=300_000) as running,
    ):
        yield openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def begin(client: openai.OpenAI, *lines: str, endpoint: Any = URL) -> Any:
    file = client.files.create(file=("asked.jsonl", "\n".join(lines).encode()), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"a": "b"})


def ended(client: openai.OpenAI, batch: Any) -> Any:
    until(lambda: client.batches.retrieve(batch.id).status in ("completed", "failed", "cancelled", "expired"))
    return client.batches.retrieve(batch.id)


def answers(client: openai.OpenAI, file: str | None) -> dict[str, Any]:
    if file is None:
        return {}
    return {item["custom_id"]: item for item in map(json.loads, client.files.content(file).text.splitlines())}

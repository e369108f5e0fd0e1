"""The gateway with a folder of batches before a small model, and OpenAI's package before the gateway."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai

from nereid.serving.gateway.batches.asking import Answer
from nereid.serving.gateway.batches.load import Load
from nereid.serving.gateway.batches.pace import Pace
from nereid.serving.gateway.batches.runner import BatchRunner
from nereid.serving.gateway.batches.states import State
from nereid.serving.gateway.batches.store import BatchStore
from nereid.serving.gateway.launch import Rules

from gateway_before import gateway, small_repository
from scripted import delta, image, texts
from small_servers import RefusedError, Tensors, grpc_server
from waiting import reach, until

URL = "/v1/completions"


def line(name: str, prompt: str = "w", url: str = URL, **body: Any) -> str:
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": {"model": "llm", "prompt": prompt, **body}})


def work(store: BatchStore, ask: Any, done: Callable[[], bool], pace: Pace | None = None) -> None:
    """Work off what there is by a runner's own rounds, until this is so."""

    async def go() -> None:
        task = asyncio.ensure_future(BatchRunner(store, Load(), ask, pace or Pace(gap_seconds=0.0)).run())
        try:
            await reach(done)
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
def serving(tmp_path: Path, model: Model, *, first: bool = True, **rules: Any) -> Iterator[openai.OpenAI]:
    repository = tmp_path / "repository"
    if not repository.exists():
        small_repository(repository)
    with (
        grpc_server({"llm": model.llm, "text_to_image": model.image}) as (port, _),
        gateway(
            repository, port, rules=Rules(batches=str(tmp_path / "batches"), **rules), max_file_bytes=300_000, first=first
        ) as running,
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


class Server:
    """Answers when it is told to; notes what it was asked, and what was called back."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.asked: list[str] = []
        self.gone: list[str] = []
        self.most = 0
        self.inside = 0
        self.hold = asyncio.Event()

    async def __call__(self, path: str, body: dict[str, Any], owner: str) -> Answer:
        self.asked.append(body["prompt"])
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self.hold.wait()
        except asyncio.CancelledError:
            self.gone.append(body["prompt"])
            raise
        finally:
            self.inside -= 1
        return Answer(self.statuses.pop(0) if self.statuses else 200, "id", {"text": body["prompt"]})


def add(store: BatchStore, *lines: str, seconds: int = 60, endpoint: str = URL) -> str:
    """A batch of these lines, which nobody has looked at yet."""
    draft = store.draft()
    draft.write_text("\n".join(lines))
    return store.add_batch("", endpoint, store.add_file(draft, "", "asked", "batch").id, "24h", seconds, None).id


def stored(folder: Path, *lines: str, seconds: int = 60, endpoint: str = URL) -> tuple[BatchStore, str]:
    store = BatchStore(folder)
    return store, add(store, *lines, seconds=seconds, endpoint=endpoint)


def status(store: BatchStore, batch: str) -> State:
    found = store.batch(batch)
    assert found is not None
    return found.status


def state(store: BatchStore, batch: str) -> tuple[str, int, int, int]:
    found = store.batch(batch)
    assert found is not None
    return found.status, found.total, found.completed, found.failed


@asynccontextmanager
async def running(
    store: BatchStore, load: Load, server: Server, pace: Pace, text_model: Callable[[object], str | None] = lambda name: None
) -> AsyncIterator[None]:
    """A runner at work."""
    task = asyncio.ensure_future(BatchRunner(store, load, server, pace, text_model).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

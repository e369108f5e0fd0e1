"""Killed with -9 while requests run: nothing is lost through the SDK, and the answers are those of an undisturbed run."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nereid_client import AsyncClient, Client, ImageResult

from conftest import Served, export, serving, set_parameters, stub_of
from raw import metric

pytestmark = pytest.mark.triton

TEXT: dict[str, Any] = {"seed": 5, "max_tokens": 1500, "ignore_eos": True}
IMAGE: dict[str, Any] = {"seed": 3, "num_inference_steps": 850}
TIMEOUT = 300


@pytest.fixture(scope="module")
def own(checkpoints: dict[str, Path], repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of one pipeline and one language model that these tests may hurt."""
    folder = tmp_path_factory.mktemp("replayed")
    export(checkpoints["sd"], folder / "repository")
    shutil.copytree(repository / "llm", folder / "repository" / "llm")
    set_parameters(folder / "repository", "denoise", max_steps=900)
    yield from serving(folder / "repository", folder, checkpoints)


def kill(served: Served, victim: str) -> None:
    """The Python process of a model, or Triton itself."""
    pid = served.supervisor.triton_pid  # type: ignore[attr-defined]
    if victim != "tritonserver":
        pid = stub_of(served, victim).pid
    os.kill(pid, signal.SIGKILL)


def inside(served: Served, gauge: str) -> float:
    return metric(served.metrics, gauge)


def image(client: Client) -> bytes:
    return client.generate_image("a box", **IMAGE).pixels.tobytes()


def image_stream(client: Client) -> bytes:
    *shown, last = client.stream_image("a box", preview_interval=50, **IMAGE)
    steps = [item.step for item in shown]  # type: ignore[union-attr]
    assert steps == sorted(set(steps))
    assert isinstance(last, ImageResult)
    return last.pixels.tobytes()


def text(client: Client) -> bytes:
    return client.generate_text("<section", **TEXT).text.encode()


def text_stream(client: Client) -> bytes:
    return "".join(delta.text for delta in client.stream_text("<section", **TEXT)).encode()


async def async_text_stream(url: str, protocol: str) -> bytes:
    async with AsyncClient(url, protocol=protocol, timeout=TIMEOUT) as client:
        return "".join([delta.text async for delta in client.stream_text("<section", **TEXT)]).encode()


@pytest.mark.parametrize("victim", ["llm", "denoise", "text_to_image_stream", "unet", "vae_decoder", "tokenizer", "tritonserver"])
def test_nothing_is_lost_and_answers_are_those_of_an_undisturbed_run(own: Served, victim: str) -> None:
    urls = {"grpc": own.grpc_url, "http": own.http_url}
    with Client(own.grpc_url, timeout=TIMEOUT) as client:
        drawn, written = image(client), text(client)

    def ask(protocol: str, request: Callable[[Client], bytes]) -> bytes:
        with Client(urls[protocol], protocol=protocol, timeout=TIMEOUT) as client:
            return request(client)

    with ThreadPoolExecutor(12) as pool:
        images = [pool.submit(ask, protocol, request) for protocol in urls for request in (image, image_stream)]
        texts = [pool.submit(ask, protocol, request) for protocol in urls for request in (text, text_stream)]
        texts += [pool.submit(asyncio.run, async_text_stream(urls[protocol], protocol)) for protocol in urls]
        while not (inside(own, "nereid_image_active_requests") >= 4 and inside(own, "nereid_llm_requests_running") >= 4):
            assert not all(job.done() for job in [*images, *texts]), "they ended before they could be disturbed"
            time.sleep(0.01)
        kill(own, victim)
        assert [job.result(TIMEOUT) == drawn for job in images] == [True] * len(images)
        assert [job.result(TIMEOUT) == written for job in texts] == [True] * len(texts)

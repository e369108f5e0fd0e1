"""Killed with -9 while requests run: nothing is lost through SDK and gateway, and the answers are those of an undisturbed run."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from nereid_client import AsyncClient, Client, ImageResult

from conftest import Served, export, gateway, serving, set_parameters, stub_of, wait_until_whole
from raw import metric

pytestmark = pytest.mark.triton

TEXT: dict[str, Any] = {"seed": 5, "max_tokens": 1000, "ignore_eos": True}
IMAGE: dict[str, Any] = {"seed": 3, "num_inference_steps": 500}
PART: dict[str, Any] = {
    **IMAGE,
    "init_image": (np.arange(32 * 32 * 3) % 256).astype(np.uint8).reshape(32, 32, 3),
    "mask_image": np.arange(32 * 32).reshape(32, 32) < 512,
}
TIMEOUT = 300


@pytest.fixture(scope="module")
def own(checkpoints: dict[str, Path], repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of one pipeline and one language model that these tests may hurt."""
    folder = tmp_path_factory.mktemp("replayed")
    export(checkpoints["sd"], folder / "repository")
    shutil.copytree(repository / "llm", folder / "repository" / "llm")
    set_parameters(folder / "repository", "denoise", max_steps=900)
    yield from serving(folder / "repository", folder, checkpoints)


@pytest.fixture(autouse=True)
def whole(own: Served) -> None:
    """Each test begins with a server that has done with the death of the test before."""
    wait_until_whole(own, seconds=200)


@pytest.fixture(scope="module")
def undisturbed(own: Served) -> tuple[bytes, bytes]:
    """The picture and the text."""
    with Client(own.grpc_url, timeout=TIMEOUT) as client:
        return image(client), text(client)


def kill(served: Served, victim: str) -> None:
    """The Python process of a model, or Triton itself."""
    pid = served.supervisor.triton_pid  # type: ignore[attr-defined]
    if victim != "tritonserver":
        pid = stub_of(served, victim).pid
    os.kill(pid, signal.SIGKILL)


Jobs = list[Future[bytes]]


def begin(served: Served, submit: Callable[[], tuple[Jobs, Jobs]]) -> tuple[Jobs, Jobs]:
    """Images and texts that the server has, all of them: a request that finds no server is another matter. A quick machine may be
    done with the first before the last has come: then they are all begun again."""
    for _ in range(10):
        images, texts = submit()
        if inside(served, images, texts):
            return images, texts
    raise AssertionError("they ended before they could be disturbed")


def inside(served: Served, images: Jobs, texts: Jobs) -> bool:
    """Wait until the server has all that are not answered yet; False where they are all answered."""
    while True:
        undone = [sum(not job.done() for job in jobs) for jobs in (images, texts)]
        if not any(undone):
            return False
        kinds = (("image_active_requests", "image_queued_requests"), ("llm_requests_running", "llm_requests_waiting"))
        if all(
            sum(metric(served.metrics, f"nereid_{gauge}") for gauge in kind) >= count
            for kind, count in zip(kinds, undone, strict=True)
        ):
            return True
        time.sleep(0.01)


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


def events(url: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with httpx.stream("POST", f"{url}/v1/{path}", json={**body, "stream": True}, timeout=TIMEOUT) as answer:
        assert answer.status_code == 200, answer.read()
        told = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
        assert not any("error" in event for event in told), told[-1]
        return told


def gateway_image(url: str) -> bytes:
    """Through the gateway, as a stream: the last event is the picture."""
    body = {"model": "text_to_image", "prompt": "a box", "partial_images": 2, **IMAGE}
    last = events(url, "images/generations", body)[-1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(last["b64_json"])))).tobytes()


def gateway_text(url: str) -> bytes:
    body = {"model": "llm", "prompt": "<section", **TEXT}
    return "".join(event["choices"][0]["text"] for event in events(url, "completions", body)).encode()


@pytest.mark.parametrize("victim", ["llm", "denoise", "text_to_image_stream", "unet", "vae_decoder", "tokenizer", "tritonserver"])
def test_nothing_is_lost_and_answers_are_those_of_an_undisturbed_run(
    own: Served, undisturbed: tuple[bytes, bytes], victim: str
) -> None:
    """Both protocols, streamed or not; those whom a death does not concern are there in smaller numbers."""
    urls = {"grpc": own.grpc_url, "http": own.http_url}

    def ask(protocol: str, request: Callable[[Client], bytes]) -> bytes:
        with Client(urls[protocol], protocol=protocol, timeout=TIMEOUT) as client:
            return request(client)

    with ThreadPoolExecutor(12) as pool:

        def submit() -> tuple[Jobs, Jobs]:
            kinds = (image, image_stream)[victim == "llm" :]
            images = [pool.submit(ask, protocol, request) for protocol in urls for request in kinds]
            texts = [pool.submit(ask, "grpc", text_stream)]
            if victim in ("llm", "tritonserver"):
                texts += [pool.submit(ask, protocol, text) for protocol in urls]
                texts += [pool.submit(asyncio.run, async_text_stream(urls[protocol], protocol)) for protocol in urls]
            return images, texts

        images, texts = begin(own, submit)
        kill(own, victim)
        assert [job.result(TIMEOUT) == undisturbed[0] for job in images] == [True] * len(images)
        assert [job.result(TIMEOUT) == undisturbed[1] for job in texts] == [True] * len(texts)


@pytest.mark.parametrize("victim", ["denoise", "unet"])
def test_a_part_of_a_picture_is_drawn_again_with_its_mask(own: Served, victim: str) -> None:
    def draw() -> bytes:
        with Client(own.grpc_url, timeout=TIMEOUT) as client:
            return client.generate_image("a box", **PART).pixels.tobytes()

    expected = draw()
    with ThreadPoolExecutor(2) as pool:
        jobs, _ = begin(own, lambda: ([pool.submit(draw) for _ in range(2)], []))
        kill(own, victim)
        assert [job.result(TIMEOUT) == expected for job in jobs] == [True, True]


@pytest.mark.parametrize("victim", ["denoise", "tritonserver"])
def test_nothing_is_lost_through_the_gateway(own: Served, undisturbed: tuple[bytes, bytes], victim: str) -> None:
    """Streams, which are resumed: an end that is late would be seen here, as would one that is other than the SDK's."""
    with gateway(own) as url, ThreadPoolExecutor(4) as pool:
        images, texts = begin(
            own, lambda: ([pool.submit(gateway_image, url) for _ in range(2)], [pool.submit(gateway_text, url) for _ in range(2)])
        )
        kill(own, victim)
        assert [job.result(TIMEOUT) == undisturbed[0] for job in images] == [True] * len(images)
        assert [job.result(TIMEOUT) == undisturbed[1] for job in texts] == [True] * len(texts)

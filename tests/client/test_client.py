"""The SDK without a server: retries, types, errors, and what installing it drags in."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

import nereid_client as sdk
from nereid_client import (
    AsyncClient,
    Client,
    ConnectionLostError,
    EmbeddingResult,
    ImageRequest,
    InvalidRequestError,
    LostError,
    NereidError,
    UnhealthyError,
)
from nereid_client.errors import typed
from nereid_client.transport import Answered, Call, Cancel, Tell

from scripted import HANGS, Instant, answers, delta, fails, image, progress, state
from waiting import reach


def test_a_stream_that_nobody_takes_says_who_did_not_answer() -> None:
    with Client("127.0.0.1:1", retries=0) as client, pytest.raises(ConnectionLostError, match=r"127\.0\.0\.1:1"):
        next(iter(client.stream_image("a box")))


def test_result_is_typed() -> None:
    result = Client(transport=Instant(answers(image()))).generate_image("a box")
    assert result.warnings == ("one", "two")
    assert (result.queue_seconds, result.denoise_seconds) == (0.5, 1.5)
    assert len(result.images) == 1
    assert result.image.size == (4, 4)


def test_name_prefixes_the_models_and_the_timeout_reaches_the_server() -> None:
    transport = Instant(answers(image()))
    Client(transport=transport, name="xl", timeout=9.0).generate_image("a box")
    _, call = transport.calls[0]
    assert call.model == "xl_text_to_image"
    assert call.tensors["timeout_seconds"].tolist() == [[pytest.approx(9.0, abs=0.5)]]
    assert call.timeout is not None
    assert call.timeout > float(call.tensors["timeout_seconds"][0, 0])


async def _collect(stream: Any) -> list[Any]:
    return [item async for item in stream]


STREAMED = [progress(1, 2), progress(2, 2), image()]
TYPED = [delta([1], "a"), delta([2], "b", "stop")]


def test_both_clients_go_on_where_a_stream_stopped() -> None:
    """The requests of both are the same steps; what differs is who waits."""

    def scripts() -> Instant:
        lost = [fails(LostError("died"), *pieces[:1]) for pieces in (STREAMED, TYPED)]
        return Instant(lost[0], answers(*STREAMED), lost[1], answers(*TYPED))

    with Client(transport=scripts(), backoff=0.01) as client:
        blocking = [len(list(client.stream_image("a box"))), [item.text for item in client.stream_text("a")]]

    async def ask() -> list[Any]:
        async with AsyncClient(transport=scripts(), backoff=0.01) as client:
            return [
                len(await _collect(client.stream_image("a box"))),
                [item.text for item in await _collect(client.stream_text("a"))],
            ]

    assert blocking == asyncio.run(ask()) == [3, ["a", "b"]]


def test_both_clients_count_their_replays() -> None:
    with Client(transport=Instant(fails(LostError("died")), answers(image())), backoff=0.01) as client:
        client.generate_image("a box")
        assert (client.statistics.requests, client.statistics.replays) == (1, 1)

    async def ask() -> tuple[int, int]:
        async with AsyncClient(transport=Instant(fails(LostError("died")), answers(image())), backoff=0.01) as client:
            await client.generate_image("a box")
            return client.statistics.requests, client.statistics.replays

    assert asyncio.run(ask()) == (1, 1)


def test_both_clients_have_the_same_arguments() -> None:
    assert inspect.signature(Client) == inspect.signature(AsyncClient)
    for name in ("generate_image", "stream_image", "generate_text", "stream_text", "embed_text"):
        assert inspect.signature(getattr(Client, name)).parameters == inspect.signature(getattr(AsyncClient, name)).parameters


def test_an_embedding_is_asked_for_and_read_by_both_clients() -> None:
    made = {"embedding": np.array([0.5, -1], np.float32), "num_input_tokens": np.array([3], np.uint32)}

    async def ask(transport: Instant) -> EmbeddingResult:
        async with AsyncClient(transport=transport) as client:
            return await client.embed_text([1, 2, 3], run_id="mine")

    transports = Instant(answers(made)), Instant(answers(made))
    with Client(transport=transports[0]) as client:
        results = [client.embed_text("a", priority=2, run_id="mine"), asyncio.run(ask(transports[1]))]
    for result in results:
        assert (result.embedding.tolist(), result.num_input_tokens, result.run_id) == ([0.5, -1.0], 3, "mine")
    (_, text), (_, tokens) = transports[0].calls[0], transports[1].calls[0]
    assert text.tensors["task"].tolist() == tokens.tensors["task"].tolist() == [b"embed"]
    assert (text.tensors["text_input"].tolist(), tokens.tensors["input_ids"].tolist()) == ([b"a"], [1, 2, 3])
    assert json.loads(text.tensors["sampling_parameters"][0]) == {"priority": 2}  # and no seed, which would be refused
    assert "stream" not in text.tensors


def test_cancelling_a_task_names_the_run_to_the_server() -> None:
    transport = Instant(HANGS)

    async def ask() -> None:
        async with AsyncClient(transport=transport) as client:
            task = asyncio.create_task(client.generate_image("a box", run_id="mine"))
            await reach(lambda: transport.calls)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(ask())
    assert (len(transport.given_up), transport.cancelled) == (1, [b"mine"])


def test_leaving_an_async_stream_names_the_run_to_the_server() -> None:
    transport = Instant([(0.0, Answered(delta([1], "a")))])

    async def ask() -> None:
        async with AsyncClient(transport=transport) as client:
            stream = client.stream_text("a", run_id="mine")
            await anext(stream)
            await stream.aclose()

    asyncio.run(ask())
    assert (len(transport.given_up), transport.cancelled) == (1, [b"mine"])


def test_cancelling_a_pending_image_names_the_run_to_the_server() -> None:
    transport = Instant(HANGS)
    with Client(transport=transport) as client:
        pending = client.submit_image("a box")
        pending.cancel()
        with pytest.raises(sdk.CancelledError):
            pending.result(timeout=60)
    assert transport.cancelled == [pending.run_id.encode()]


def test_closing_at_once_names_a_pending_run_to_the_server() -> None:
    transport = Instant(HANGS)
    with Client(transport=transport) as client:
        pending = client.submit_image("a box")
    assert transport.cancelled == [pending.run_id.encode()]
    with pytest.raises(sdk.CancelledError):
        pending.result(timeout=60)


def test_an_interrupt_names_the_run_to_the_server() -> None:
    class Interrupted(Instant):
        def start(self, call: Call, tell: Tell) -> Cancel:
            if call.model == "llm" and self.calls:
                return super().start(call, tell)
            threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
            return super().start(call, tell)

    transport = Interrupted(HANGS)
    with Client(transport=transport) as client, pytest.raises(KeyboardInterrupt):
        client.generate_text("a", run_id="mine")
    assert transport.cancelled == [b"mine"]


def test_closing_waits_for_cancellations_on_their_way() -> None:
    class Slow(Instant):
        def _script(self, call: Call) -> Any:
            return [(0.2 if "cancel" in call.tensors else after, event) for after, event in super()._script(call)]

        def close(self) -> None:
            self.closed_after = time.monotonic() - self.left

    transport = Slow([(0.0, Answered(delta([1], "a")))])
    client = Client(transport=transport)
    stream = client.stream_text("a")
    next(stream)
    transport.left = time.monotonic()
    stream.close()
    client.close()
    assert transport.closed_after >= 0.15


def test_a_lost_run_is_replayed_by_real_clocks_too() -> None:
    def transport() -> Instant:
        dead = [fails(UnhealthyError("Stub process 'denoise_0_0' is not healthy."))]
        return Instant(HANGS, answers(image()), watch=lambda now: dead.pop() if dead else state("unknown"))

    with Client(transport=transport(), backoff=0.01) as client:
        assert client.generate_image("a box").seeds == (5,)

    async def ask() -> tuple[int, ...]:
        async with AsyncClient(transport=transport(), backoff=0.01) as client:
            return (await client.generate_image("a box")).seeds

    assert asyncio.run(ask()) == (5,)


def test_only_given_options_are_sent() -> None:
    tensors = ImageRequest.of(prompt="a", seed=2**62).tensors(timeout=None, batched=True)
    assert {name: value.dtype.name for name, value in tensors.items()} == {"prompt": "object", "seed": "int64"}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"steps": 3}, "steps"),
        ({"num_inference_steps": "4"}, "num_inference_steps"),
        ({"guidance_scale": "a"}, "guidance_scale"),
    ],
)
def test_wrong_types_and_unknown_options_are_refused_by_name(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidRequestError, match=word):
        Client(transport=Instant()).generate_image("a box", **options)


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        ("StatusCode.INVALID_ARGUMENT", "width: 13", sdk.InvalidRequestError),
        ("400", "width: 13", sdk.InvalidRequestError),
        ("StatusCode.UNAVAILABLE", "queue: 3 requests wait", sdk.UnavailableError),
        ("StatusCode.UNAVAILABLE", "failed to connect to all addresses", sdk.ConnectionLostError),
        ("StatusCode.UNAVAILABLE", "Cancelling all calls", sdk.ConnectionLostError),
        ("StatusCode.UNAVAILABLE", "Server is stopping, scheduler for model has stopped accepting", sdk.NotReadyError),
        ("StatusCode.NOT_FOUND", "Request for unknown model: 'x' is not found", sdk.InvalidRequestError),
        ("StatusCode.NOT_FOUND", "Request for unknown model: 'x' has no available versions", sdk.NotReadyError),
        ("StatusCode.UNAVAILABLE", "seed: late [nereid: UNAVAILABLE deadline seed]", sdk.DeadlineExceededError),
        ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", sdk.DeadlineExceededError),
        ("StatusCode.CANCELLED", "Locally cancelled", sdk.CancelledError),
        ("StatusCode.INTERNAL", "unet: broken", sdk.ServerError),
    ],
)
def test_every_status_has_its_type(status: str, message: str, kind: type[NereidError]) -> None:
    error = typed(message, status)
    assert type(error) is kind
    assert str(error) == message.partition(" [nereid")[0]


def test_nobody_at_the_address_is_one_clear_error() -> None:
    with Client("127.0.0.1:1", retries=0) as client, pytest.raises(sdk.ConnectionLostError):
        client.generate_image("a box")
    with Client("127.0.0.1:1", protocol="http", retries=0) as client, pytest.raises(sdk.ConnectionLostError):
        client.generate_image("a box")


def test_client_and_command_line_need_no_heavy_packages() -> None:
    code = (
        "import sys; import nereid_client, nereid_client.main;"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'diffusers', 'transformers', 'pytriton'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

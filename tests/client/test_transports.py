"""Both protocols over real connections: deadlines, broken connections, cancellation, errors in streams, large tensors."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import pytest

from nereid_client import (
    AsyncClient,
    CancelledError,
    Client,
    ConnectionLostError,
    DeadlineExceededError,
    InvalidRequestError,
    LostError,
    NereidError,
    NotReadyError,
    QueueFullError,
    ServerError,
    UnavailableError,
    UnhealthyError,
)
from nereid_client.replay import GRACE_SECONDS

from scripted import delta, image, texts
from small_servers import SERVERS, DieError, HangError, RefusedError, Tensors, grpc_server, http_server
from waiting import until

BOTH = pytest.mark.parametrize("protocol", ["grpc", "http"])


def hangs(tensors: Tensors) -> Iterator[Tensors]:
    raise HangError
    yield {}


def dies(tensors: Tensors) -> Iterator[Tensors]:
    raise DieError
    yield {}


def url(port: int) -> str:
    return f"127.0.0.1:{port}"


@BOTH
def test_a_deadline_ends_the_call_and_its_connection(protocol: str) -> None:
    """The server here never answers, and never ends anything itself."""
    asked = []

    def notes(tensors: Tensors) -> Iterator[Tensors]:
        asked.append(tensors)
        yield from hangs(tensors)

    with SERVERS[protocol]({"text_to_image": notes}) as (port, small), Client(url(port), protocol=protocol) as client:
        for seconds in (0.3, 3.0, 15.0):  # a machine that stands still may have nothing sent in time
            start = time.monotonic()
            with pytest.raises(DeadlineExceededError) as ended:
                client.generate_image("a box", timeout=seconds)
            assert seconds <= time.monotonic() - start < 60
            assert str(ended.value) == f"timeout: text_to_image has not answered within {seconds:g} s; raise timeout"
            if asked:
                break
        assert small.gone.wait(60)


@BOTH
def test_a_deadline_ends_a_stream(protocol: str) -> None:
    def stops(tensors: Tensors) -> Iterator[Tensors]:
        yield delta([1], "a")
        raise HangError

    with SERVERS[protocol]({"llm": stops}) as (port, small), Client(url(port), protocol=protocol) as client:
        read: list[str] = []
        for seconds in (0.3, 3.0, 15.0):  # a machine that stands still may have nothing sent in time
            with pytest.raises(DeadlineExceededError):
                read.extend(delta.text for delta in client.stream_text("a", timeout=seconds))
            if read:
                break
        assert read == ["a"]
        assert small.gone.wait(60)


@BOTH
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_deadline_that_the_protocol_notices_first_is_told_as_any(protocol: str, kind: type[Client] | type[AsyncClient]) -> None:
    """It passes while the caller is busy with what came before."""
    read: list[str] = []

    def stops(tensors: Tensors) -> Iterator[Tensors]:
        yield delta([1], "a")
        raise HangError

    async def write(port: int, seconds: float) -> None:
        async with AsyncClient(url(port), protocol=protocol) as client:
            async for made in client.stream_text("a", timeout=seconds):
                read.append(made.text)
                await asyncio.sleep(seconds + 2 * GRACE_SECONDS)

    def write_blocking(port: int, seconds: float) -> None:
        with Client(url(port), protocol=protocol) as client:
            for made in client.stream_text("a", timeout=seconds):
                read.append(made.text)
                time.sleep(seconds + 2 * GRACE_SECONDS)

    with SERVERS[protocol]({"llm": stops}) as (port, _):
        for seconds in (0.3, 3.0, 15.0):  # a machine that stands still may have nothing sent in time
            with pytest.raises(DeadlineExceededError) as ended:
                asyncio.run(write(port, seconds)) if kind is AsyncClient else write_blocking(port, seconds)
            if read:
                break
    assert str(ended.value) == f"timeout: llm has not ended its answer within {seconds:g} s; raise timeout"


@BOTH
def test_the_server_gets_the_seconds_that_are_left(protocol: str) -> None:
    given = []

    def notes(tensors: Tensors) -> Iterator[Tensors]:
        given.append(float(tensors["timeout_seconds"].reshape(-1)[0]))
        yield image()

    with SERVERS[protocol]({"text_to_image": notes}) as (port, _), Client(url(port), protocol=protocol, timeout=30) as client:
        client.generate_image("a box")
    assert 0 < given[0] <= 30


@BOTH
def test_a_connection_that_breaks_under_a_request_is_a_death_and_a_refused_one_is_not(protocol: str) -> None:
    with SERVERS[protocol]({"text_to_image": dies}) as (port, _), Client(url(port), protocol=protocol, replays=0) as client:
        with pytest.raises(ConnectionLostError) as broken:
            client.generate_image("a box")
        assert broken.value.sent
        assert client.statistics.lost == 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, and nobody listens
        with Client(url(free.getsockname()[1]), protocol=protocol, retries=0) as client:
            with pytest.raises(ConnectionLostError) as refused:
                client.generate_image("a box")
            assert not refused.value.sent
            assert client.statistics.lost == 0


@BOTH
@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_a_stream_goes_on_at_the_server_that_was_started_again(protocol: str, kind: str) -> None:
    pieces = [delta([i], f"{i}.") for i in range(5)] + [delta([5], "5.", "stop")]
    attempts: list[Any] = []

    def breaks(tensors: Tensors) -> Iterator[Tensors]:
        attempts.append(tensors)
        yield from pieces[:3]
        raise DieError

    def whole(tensors: Tensors) -> Iterator[Tensors]:
        if "watch" in tensors:
            yield {"run_state": texts("unknown")}
            return
        attempts.append(tensors)
        yield from pieces

    read: list[str] = []
    failed: list[BaseException] = []

    def blocking(port: int) -> None:
        with Client(url(port), protocol=protocol, backoff=0.05) as client:
            read.extend(item.text for item in client.stream_text("a"))

    async def on_a_loop(port: int) -> None:
        async with AsyncClient(url(port), protocol=protocol, backoff=0.05) as client:
            read.extend([item.text async for item in client.stream_text("a")])

    def ask(port: int) -> None:
        try:
            blocking(port) if kind == "blocking" else asyncio.run(on_a_loop(port))
        except BaseException as error:
            failed.append(error)

    serve = SERVERS[protocol]
    with serve({"llm": breaks}) as (port, _):
        asking = threading.Thread(target=ask, args=(port,))
        asking.start()
        until(lambda: attempts)
    with serve({"llm": whole}, port):
        asking.join(60)
    assert failed == []
    assert "".join(read) == "0.1.2.3.4.5."
    assert [list(attempt["run_id"]) for attempt in attempts[1:]] == [list(attempts[0]["run_id"])]
    assert [list(attempt["sampling_parameters"]) for attempt in attempts[1:]] == [list(attempts[0]["sampling_parameters"])]


@BOTH
def test_leaving_a_stream_ends_the_call_and_names_the_run(protocol: str) -> None:
    cancelled = threading.Event()

    def goes_on(tensors: Tensors) -> Iterator[Tensors]:
        if "cancel" in tensors:
            assert list(tensors["cancel"]) == [b"mine"]
            cancelled.set()
            yield {"run_state": texts("running")}
            return
        yield delta([1], "a")
        raise HangError

    with SERVERS[protocol]({"llm": goes_on}) as (port, small), Client(url(port), protocol=protocol) as client:
        for _ in client.stream_text("a", run_id="mine"):
            break
        assert cancelled.wait(60)
        assert small.gone.wait(60)


async def leave_picture(address: str, started: threading.Event) -> None:
    async with AsyncClient(address) as client:
        drawing = asyncio.create_task(client.generate_image("a box"))
        await asyncio.to_thread(started.wait, 60)
        drawing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await drawing


def leave_picture_too(address: str, started: threading.Event) -> None:
    with Client(address) as client:
        drawing = client.submit_image("a box")
        assert started.wait(60)
        drawing.cancel()
        with pytest.raises(CancelledError):
            drawing.result(60)


async def leave_text(address: str, started: threading.Event) -> None:
    async with AsyncClient(address) as client, contextlib.aclosing(client.stream_text("a")) as read:
        async for _ in read:
            break


def leave_text_too(address: str, started: threading.Event) -> None:
    with Client(address) as client, contextlib.closing(client.stream_text("a")) as read:
        next(read)


@pytest.mark.parametrize("leave", [leave_picture, leave_picture_too, leave_text, leave_text_too])
def test_a_run_that_is_cancelled_by_its_id_is_left_to_end_by_itself(leave: Callable[[str, threading.Event], Any]) -> None:
    """Triton before 24.12 may crash where gRPC's cancellation meets an answer, and a run that is cancelled by its id answers."""
    started, cancelled, ended = threading.Event(), threading.Event(), threading.Event()

    def run(tensors: Tensors) -> Iterator[Tensors]:
        if "cancel" in tensors:
            cancelled.set()
            yield {"run_state": texts("running").reshape(1, 1)}
            return
        started.set()
        yield delta([1], "a")
        assert cancelled.wait(60)
        time.sleep(0.2)  # a cancellation of the call itself would have come
        ended.set()
        raise RefusedError("a run was cancelled [nereid: CANCELLED cancelled]")

    def picture(tensors: Tensors) -> Iterator[Tensors]:
        *_, _ = run(tensors)
        yield {}

    with grpc_server({"text_to_image": picture, "llm": run, "denoise": run}) as (port, small):
        made = leave(url(port), started)
        if made is not None:
            asyncio.run(made)
        assert cancelled.wait(60)
        assert ended.wait(60)
    assert small.cut == []


@BOTH
@pytest.mark.parametrize(
    ("sentence", "kind"),
    [
        ("temperature: -1 is not allowed [nereid: INVALID_ARG invalid temperature]", InvalidRequestError),
        ("the request was cancelled; its deadline was not the cause [nereid: INTERNAL engine]", ServerError),
        ("llm: its process has died [nereid: UNAVAILABLE lost]", LostError),
        ("queue: full [nereid: UNAVAILABLE queue_full]", QueueFullError),
        ("seed: too late [nereid: UNAVAILABLE deadline]", DeadlineExceededError),
        ("Stub process 'llm_0_0' is not healthy.", UnhealthyError),
        ("Error when running inference: Server not ready", NotReadyError),
        ("Server is stopping, scheduler for model has stopped accepting new inference requests", NotReadyError),
        ("a word such as deadline or cancelled decides nothing", ServerError),
    ],
)
def test_errors_are_typed_in_streams_too(protocol: str, sentence: str, kind: type[NereidError]) -> None:
    def refuses(tensors: Tensors) -> Iterator[Tensors]:
        if b"late" in tensors.get("text_input", [b""])[0]:
            yield delta([1], "a")
        raise RefusedError(sentence, grpc.StatusCode.INTERNAL)

    async def ask(port: int, prompt: str) -> None:
        async with AsyncClient(url(port), protocol=protocol, retries=0, replays=0) as client:
            [item async for item in client.stream_text(prompt)]

    with SERVERS[protocol]({"llm": refuses}) as (port, _):
        for prompt in ("at once", "late"):
            with Client(url(port), protocol=protocol, retries=0, replays=0) as client, pytest.raises(NereidError) as error:
                list(client.stream_text(prompt))
            assert type(error.value) is kind
            assert str(error.value) == sentence.partition(" [nereid")[0]
            with pytest.raises(kind):
                asyncio.run(ask(port, prompt))


@BOTH
@pytest.mark.parametrize("status", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE])
def test_tritons_own_errors_are_typed_by_their_status(protocol: str, status: grpc.StatusCode) -> None:
    def refuses(tensors: Tensors) -> Iterator[Tensors]:
        raise RefusedError("something of Triton's", status)
        yield {}

    kind = {grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError, grpc.StatusCode.UNAVAILABLE: UnavailableError}[status]
    with SERVERS[protocol]({"text_to_image": refuses}) as (port, _), Client(url(port), protocol=protocol, retries=0) as client:
        with pytest.raises(NereidError) as error:
            client.generate_image("a box")
        assert type(error.value) is kind


@pytest.mark.parametrize(
    ("sentence", "kind"), [("", ConnectionLostError), ("a run was cancelled [nereid: CANCELLED cancelled]", CancelledError)]
)
def test_a_call_that_the_server_cancels_is_lost_unless_somebody_asked_for_that(sentence: str, kind: type[NereidError]) -> None:
    def ends(tensors: Tensors) -> Iterator[Tensors]:
        raise RefusedError(sentence, grpc.StatusCode.CANCELLED)
        yield {}

    with grpc_server({"text_to_image": ends}) as (port, _), Client(url(port), replays=0) as client, pytest.raises(kind):
        client.generate_image("a box")


@BOTH
def test_large_pictures_pass_in_both_directions(protocol: str) -> None:
    """Larger than the 4 MB that gRPC allows by itself."""
    picture = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)

    def copies(tensors: Tensors) -> Iterator[Tensors]:
        yield image(generated_image=tensors["init_image"])

    with SERVERS[protocol]({"text_to_image": copies}) as (port, _), Client(url(port), protocol=protocol) as client:
        made = client.generate_image("a box with ümläuts", init_image=picture)
    np.testing.assert_array_equal(made.pixels[0], picture)


@BOTH
def test_closing_a_client_ends_its_requests(protocol: str) -> None:
    asked = []

    def notes(tensors: Tensors) -> Iterator[Tensors]:
        asked.append(tensors)
        yield from hangs(tensors)

    with SERVERS[protocol]({"text_to_image": notes}) as (port, _):
        client = Client(url(port), protocol=protocol)
        pending = client.submit_image("a box")
        until(lambda: asked)
        client.close()
        with pytest.raises(NereidError):
            pending.result(timeout=60)
        with pytest.raises(CancelledError, match="closed"):
            client.generate_image("a box")


@BOTH
def test_readiness_is_told(protocol: str) -> None:
    with (
        SERVERS[protocol]({"text_to_image": hangs, "denoise": hangs}) as (port, small),
        Client(url(port), protocol=protocol) as client,
    ):
        assert client.is_live()
        assert not client.is_ready()
        small.models["unet"] = hangs
        assert client.is_ready()
    with Client("127.0.0.1:1", protocol=protocol) as client:
        assert not client.is_live()


@pytest.mark.parametrize("error", ['"a sentence"', '{"message": "a sentence", "code": null}'])
def test_over_http_a_refusal_in_tritons_form_and_in_openais_is_its_sentence(error: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(404)
            self.end_headers()
            self.wfile.write(f'{{"error": {error}}}'.encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        address, said = f"127.0.0.1:{server.server_address[1]}", r"^a sentence$"
        with Client(address, protocol="http", retries=0) as client, pytest.raises(InvalidRequestError, match=said):
            client.generate_text("hello")
        server.shutdown()


def test_over_http_a_connection_that_the_system_gives_up_is_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    monkeypatch.setattr("http.client.HTTPConnection.getresponse", lost)
    with http_server({"llm": lambda tensors: iter(())}) as (port, _):
        said = rf"^the connection to {url(port)} broke \(Connection timed out\)$"
        with (
            Client(url(port), protocol="http", retries=0, replays=0) as client,
            pytest.raises(ConnectionLostError, match=said) as end,
        ):
            client.generate_text("hello")
    assert end.value.sent


def test_a_truncated_answer_over_http_is_a_broken_connection() -> None:
    def breaks(tensors: Tensors) -> Iterator[Tensors]:
        yield delta([1], "a")
        raise DieError

    with http_server({"llm": breaks}) as (port, _), Client(url(port), protocol="http", replays=0) as client:
        stream = client.stream_text("a")
        next(stream)
        with pytest.raises(ConnectionLostError, match="broke"):
            next(stream)


def test_control_c_ends_the_command_with_one_sentence_and_the_run_on_the_server() -> None:
    drawing, cancelled = threading.Event(), threading.Event()

    def draws(tensors: Tensors) -> Iterator[Tensors]:
        drawing.set()
        raise HangError
        yield {}

    def denoise(tensors: Tensors) -> Iterator[Tensors]:
        if "cancel" in tensors:
            cancelled.set()
        yield {"run_state": texts("running").reshape(1, 1)}

    with grpc_server({"text_to_image_stream": draws, "denoise": denoise}) as (port, _):
        command = [sys.executable, "-m", "nereid_client.main", "generate", "a box", "--url", url(port)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert drawing.wait(60)
            os.kill(process.pid, signal.SIGINT)
            _, said = process.communicate(timeout=60)
        assert cancelled.wait(60)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "stopped" in said

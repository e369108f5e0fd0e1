"""`nereid chat` against a gateway that answers what it was told to."""

from __future__ import annotations

import errno
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner

from nereid_client import (
    ConnectionLostError,
    DeadlineExceededError,
    InvalidRequestError,
    NereidError,
    ServerError,
    UnavailableError,
)
from nereid_client.chat import Chat
from nereid_client.main import app


@contextmanager
def gateway(status: int, *lines: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("x-request-id", "req-1")
            self.end_headers()
            self.wfile.write("".join(f"{line}\n\n" for line in lines).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def piece(text: str) -> str:
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}"


def failure(**error: Any) -> str:
    return json.dumps({"error": error})


def test_an_answer_is_read_to_its_end_and_remembered() -> None:
    with gateway(200, piece("a"), piece("b"), "data: [DONE]") as url:
        talk = Chat(url)
        assert list(talk.say("hello")) == ["a", "b"]
    assert [message["content"] for message in talk.messages] == ["hello", "ab"]


def test_an_answer_that_is_cut_is_no_answer() -> None:
    with gateway(200, piece("a")) as url:
        talk = Chat(url)
        with pytest.raises(ConnectionLostError, match="broke"):
            list(talk.say("hello"))
    assert talk.messages == []


@pytest.mark.parametrize(("told", "done"), [((), "has not answered"), ((piece("a"),), "has not gone on with its answer")])
def test_a_gateway_that_is_silent_for_too_long_is_a_deadline(told: tuple[str, ...], done: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"127.0.0.1:{listener.getsockname()[1]}"

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
                connection.sendall("".join([head, *(f"{line}\n\n" for line in told)]).encode() if told else b"")
                ended.wait(60)

        ended = threading.Event()
        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(DeadlineExceededError) as raised:
            list(Chat(url, timeout=0.5).say("hello"))
        ended.set()
    assert str(raised.value) == f"timeout: llm at {url} {done} within 0.5 s; raise timeout"


def test_a_connection_that_the_system_gives_up_is_no_deadline_of_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    with gateway(200, piece("a")) as url:
        monkeypatch.setattr("http.client.HTTPConnection.getresponse", lost)
        with pytest.raises(ConnectionLostError, match=rf"^the connection to {url} broke \(Connection timed out\)$") as raised:
            list(Chat(url).say("hello"))
    assert raised.value.sent


def test_the_command_waits_as_long_as_it_is_told_and_takes_an_address_of_openais_api() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        made = CliRunner().invoke(app, ["chat", "hello", "--url", url, "--timeout", "0.3"])
    assert made.exit_code == 1
    assert f"timeout: llm at {url} has not answered within 0.3 s; raise timeout" in made.output


def test_nobody_there_is_said_so() -> None:
    with pytest.raises(ConnectionLostError, match=r"no gateway answers at 127\.0\.0\.1:1"):
        list(Chat("127.0.0.1:1").say("hello"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("invalid_request_error", InvalidRequestError),
        ("service_unavailable_error", UnavailableError),
        ("timeout_error", DeadlineExceededError),
        ("server_error", ServerError),
    ],
)
def test_errors_inside_a_stream_are_typed(name: str, kind: type[NereidError]) -> None:
    with (
        gateway(200, piece("a"), f"data: {failure(message='a sentence', type=name)}") as url,
        pytest.raises(kind, match="a sentence"),
    ):
        list(Chat(url).say("hello"))


def test_a_server_of_another_api_is_said_to_be_one() -> None:
    with gateway(404, "<h1>404 Not Found</h1>") as url, pytest.raises(InvalidRequestError, match=r"is that the gateway's port"):
        list(Chat(url).say("hello"))


@pytest.mark.parametrize(("status", "kind"), [(400, InvalidRequestError), (503, UnavailableError), (504, DeadlineExceededError)])
def test_errors_before_a_stream_are_typed(status: int, kind: type[NereidError]) -> None:
    with gateway(status, failure(message="a sentence")) as url, pytest.raises(kind, match="a sentence") as raised:
        list(Chat(url).say("hello"))
    assert raised.value.request_id == "req-1"

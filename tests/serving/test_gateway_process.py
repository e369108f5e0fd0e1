"""The gateway's process: it comes back whatever ends it, strangers cannot keep others out, and it ends in order."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from nereid.serving.errors import ServingError
from nereid.serving.gateway.connections import Connections, Phase
from nereid.serving.gateway.limits import Limits
from nereid.serving.gateway.service import GatewayOptions, gateway_service
from nereid.serving.listening import listen
from nereid.serving.options import ServeOptions, free_ports
from nereid.serving.services import KeptServices

from small_gateway import KEY, SmallGateway, small_gateway, words, write_repository
from waiting import until


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallGateway]:
    """With the limits that it has by default, and tended."""
    with small_gateway(tmp_path_factory.mktemp("gateway")) as made:
        services = KeptServices()
        services.add(made.service)
        services.start()
        yield made
        services.drain()


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallGateway]:
    """With limits that a test can wait for."""
    limits = Limits(connections=24, head_seconds=0.4, body_seconds=0.4, idle_seconds=0.4, send_seconds=0.4)
    with small_gateway(tmp_path_factory.mktemp("hasty"), limits) as made:
        yield made


def connect(gateway: SmallGateway, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", gateway.port), timeout=60)
    connection.sendall(sent)
    return connection


def received(connection: socket.socket) -> bytes:
    """All until the other side closes."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    connection.close()
    return found


def post(length: int, sent: bytes) -> bytes:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {length}\r\n\r\n".encode() + sent


# --- kept up ---


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_gateway_that_dies_or_stops_is_replaced_and_who_connects_meanwhile_is_served(
    gateway: SmallGateway, number: signal.Signals
) -> None:
    until(gateway.service.is_well)
    dead = gateway.service.pid
    assert dead is not None
    os.kill(dead, number)
    answer = gateway.ask()  # its connection waits in the socket that the supervisor holds
    assert words(answer) == "done"
    assert gateway.service.pid != dead
    assert not psutil.pid_exists(dead)
    assert httpx.get(f"{gateway.url}/v1/models").status_code == 401  # the key is known to the new one


def test_key_is_on_no_command_line(gateway: SmallGateway) -> None:
    until(gateway.service.is_well)
    process = psutil.Process(gateway.service.pid)
    keeper = process.parent()
    assert keeper is not None
    assert KEY not in " ".join([*process.cmdline(), *keeper.cmdline()])
    assert process.environ()["NEREID_API_KEY"] == KEY


# --- strangers ---


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n", post(100, b"{")], ids=["nothing", "head", "body"])
def test_two_thousand_callers_that_stop_midway_leave_others_served(tmp_path: Path, said: bytes) -> None:
    with small_gateway(tmp_path, most_files=1024) as gateway:
        idle = [connect(gateway, said) for _ in range(2000)]
        assert words(gateway.ask()) == "done"
        assert httpx.get(f"{gateway.url}/health", timeout=60).status_code == 200
        assert gateway.service._child is not None
        assert gateway.service._child.is_running()
        assert gateway.log.read_text() == ""
        for connection in idle:
            connection.close()


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nHost", b"HTTP/1.1 408 "),
        (post(100, b"{"), b"HTTP/1.1 408 "),
        (post(100, b"{").replace(KEY.encode(), b"x"), b"HTTP/1.1 401 "),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 "),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /", b"HTTP/1.1 200 "),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000, b"HTTP/1.1 400 "),
        (b"\x16\x03\x01 nonsense\r\n\r\n", b"HTTP/1.1 400 "),
        (post(100, b"").replace(b"Content-Length: 100", b"Transfer-Encoding: chunked") + b"x\r\n", b"HTTP/1.1 400 "),
        # https://github.com/pgjones/hypercorn/issues/279, https://github.com/hyperium/hyper/issues/4123
        (
            b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 400 ",
        ),
    ],
)
def test_half_a_request_and_an_idle_connection_are_closed_in_time(hasty: SmallGateway, sent: bytes, answer: bytes) -> None:
    found = received(connect(hasty, sent))
    assert found.startswith(answer)
    if b" 408 " in answer or b" 400 " in answer:
        assert "error" in json.loads(found.split(b"\r\n\r\n", 1)[1])
    assert hasty.log.read_text() == ""


def test_a_request_refused_before_its_body_has_come_is_answered_once(hasty: SmallGateway) -> None:
    refused = post(100, b"{").replace(KEY.encode(), b"x")
    found = received(connect(hasty, refused))  # a second answer would be taken for that of the next request
    assert re.findall(rb"HTTP/1\.1 (\d{3}) ", found) == [b"401"]


def test_limits_of_time_do_not_touch_a_request_that_is_worked_on(hasty: SmallGateway) -> None:
    hasty.model.release.clear()
    with ThreadPoolExecutor() as pool:
        inside = [pool.submit(hasty.ask, "wait"), pool.submit(hasty.stream, "wait")]
        time.sleep(1.5)
        assert not any(job.done() for job in inside)
        hasty.model.release.set()
        assert words(inside[0].result()) == "first last"  # type: ignore[arg-type]
        assert inside[1].result()[-1] == "[DONE]"  # type: ignore[index]


def test_new_connection_is_refused_only_where_all_are_busy(hasty: SmallGateway) -> None:
    hasty.model.release.clear()
    begun, most = hasty.model.begun, 24
    body = json.dumps(hasty.body("wait", stream=True)).encode()
    busy = [connect(hasty, post(len(body), body)) for _ in range(most)]
    until(lambda: hasty.model.begun >= begun + 8)  # as many as the server behind takes at once; the others are accepted, too
    refused: list[bytes] = []
    until(lambda: refused.append(received(connect(hasty))) or refused[-1])  # type: ignore[func-returns-value]
    assert refused[-1].startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: " in refused[-1]
    hasty.model.release.set()
    for connection in busy:
        connection.close()
    until(lambda: words(hasty.ask()) == "done")


def test_caller_that_does_not_read_is_dropped_and_its_run_cancelled(hasty: SmallGateway) -> None:
    cancelled = hasty.model.cancelled
    body = json.dumps(hasty.body("much", stream=True)).encode()
    connection = connect(hasty, post(len(body), body))
    until(lambda: hasty.model.cancelled > cancelled)
    connection.close()


def test_bodies_in_crumbs_do_not_hold_the_loop_up(gateway: SmallGateway) -> None:
    """A megabyte in chunks of one byte is two hundred thousand of them, each as much work as a large one."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

    def send() -> bytes:
        connection = connect(gateway, head)
        with contextlib.suppress(OSError):
            connection.sendall(b"1\r\nx\r\n" * 200_000)
        return received(connection)

    until(gateway.service.is_well)
    process = gateway.service.pid
    spent = sum(psutil.Process(process).cpu_times()[:2])
    with ThreadPoolExecutor(16) as pool:
        sent = [pool.submit(send) for _ in range(16)]
        assert words(gateway.ask()) == "done"
        answers = [job.result() for job in sent]
    assert all(answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 401 ")) for answer in answers)
    assert gateway.service.pid == process
    assert sum(psutil.Process(process).cpu_times()[:2]) - spent < 3  # 12 where every chunk is read


class FakeConnection:
    def __init__(self) -> None:
        self.ended = ""
        self.waits = 0

    def drop(self) -> None:
        self.ended = "dropped"

    def expire(self) -> None:
        self.ended = "expired"

    def unsent(self) -> int:
        return self.waits


def test_oldest_that_has_not_finished_asking_makes_room() -> None:
    table = Connections(Limits(connections=3))
    busy, asking, answered = made = [FakeConnection() for _ in range(3)]
    assert all(table.arrive(connection) for connection in made)
    table.enter(busy, Phase.ASKED)
    table.enter(answered, Phase.ASKED)
    table.enter(answered, Phase.IDLE)
    table.enter(asking, Phase.BODY)
    late = [FakeConnection() for _ in range(3)]
    assert table.arrive(late[0])
    assert (asking.ended, answered.ended) == ("dropped", "")
    assert table.arrive(late[1])
    assert answered.ended == "dropped"
    for connection in late[:2]:
        table.enter(connection, Phase.ASKED)
    assert not table.arrive(late[2])
    assert (busy.ended, len(table)) == ("", 3)


def test_slow_reader_is_kept_while_it_reads() -> None:
    table = Connections(Limits(send_seconds=10, send_bytes=1000))
    slow, stuck = FakeConnection(), FakeConnection()
    for connection in (slow, stuck):
        table.arrive(connection)
        table.enter(connection, Phase.ASKED)
        connection.waits = 10_000
        table.stall(connection)
    slow.waits = 9_000
    table.sweep(table.awake.now() + 11)
    assert (slow.ended, stuck.ended) == ("", "dropped")
    table.flow(slow)
    table.sweep(table.awake.now() + 100)
    assert slow.ended == ""


# --- the end ---


def test_what_is_inside_finishes_and_what_is_new_is_refused(tmp_path: Path) -> None:
    with small_gateway(tmp_path) as gateway, ThreadPoolExecutor() as pool:
        whole, stream = pool.submit(gateway.ask, "wait"), pool.submit(gateway.stream, "wait")
        kept = httpx.Client(base_url=gateway.url)
        assert kept.get("/health").json() == {"ready": True}
        until(lambda: gateway.model.begun == 2)
        gateway.service.terminate()
        until(lambda: kept.get("/health").status_code == 503)
        refused = gateway.ask()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert not whole.done()
        gateway.model.release.set()
        assert words(whole.result()) == "first last"
        assert stream.result()[-1] == "[DONE]"
        until(gateway.service.has_ended)
        assert gateway.service._child is not None
        assert gateway.service._child.returncode == 0
        assert gateway.log.read_text() == ""


@pytest.mark.parametrize("hurried", [False, True])
def test_what_is_left_at_the_end_is_told_so(tmp_path: Path, hurried: bool) -> None:
    with small_gateway(tmp_path, drain_seconds=600 if hurried else 0.5) as gateway, ThreadPoolExecutor() as pool:
        whole, stream = pool.submit(gateway.ask, "wait"), pool.submit(gateway.stream, "wait")
        until(lambda: gateway.model.begun == 2)
        gateway.service.terminate()
        if hurried:
            until(lambda: httpx.get(f"{gateway.url}/health").status_code == 503)
            gateway.service.terminate()
        assert (whole.result().status_code, whole.result().json()["error"]["code"]) == (503, "shutting_down")
        first, last = stream.result()
        assert json.loads(first)["choices"][0]["text"] == "first "
        assert json.loads(last)["error"]["code"] == "shutting_down"
        until(gateway.service.has_ended)
        assert gateway.model.cancelled == 2
        assert gateway.log.read_text() == ""


# --- mistakes ---


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("llm.json", "{", r"llm\.json cannot be read \([^\n]+\)"),
        ("llm.json", "[]", r"llm\.json is no JSON object"),
    ],
)
def test_gateway_that_cannot_read_its_repository_names_the_file(tmp_path: Path, file: str, content: str, said: str) -> None:
    (port,) = free_ports(1)
    served = ServeOptions(repository=write_repository(tmp_path))
    (tmp_path / "llm" / "1" / file).write_text(content)
    service = gateway_service(served, listen("--openai-port", "127.0.0.1", port, 1), {})
    with pytest.raises(ServingError, match=rf"the gateway cannot be started: /[^\n]+/llm/1/{said}; export the model again$"):
        service.start()
    service.stop()


def test_package_that_is_missing_is_named(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError(\"No module named 'uvicorn'\", name='uvicorn')")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    served = ServeOptions(repository=write_repository(tmp_path))
    service = gateway_service(served, listen("--openai-port", "127.0.0.1", port, 1), {"PYTHONPATH": path})
    with pytest.raises(ServingError, match="the gateway cannot be started: uvicorn is missing; install it with `pip install"):
        service.start()
    service.stop()


def test_port_and_key_are_checked_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = ServeOptions(repository=tmp_path)
    monkeypatch.delenv("NEREID_API_KEY", raising=False)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        with pytest.raises(ServingError, match=f"--openai-port: port {busy.getsockname()[1]} on 127.0.0.1 cannot be used"):
            GatewayOptions(port=busy.getsockname()[1]).bind()
    with pytest.raises(ServingError, match="--openai-port: 8001 is not allowed; another port option has it"):
        GatewayOptions(port=8001).check(served)
    with pytest.raises(ServingError, match="--openai-port: 70000 is not allowed"):
        GatewayOptions(port=70000).check(served)
    with pytest.raises(ServingError, match=r"--openai-host: 0\.0\.0\.0 is not allowed without a key"):
        GatewayOptions(port=8080, host="0.0.0.0").check(served)
    monkeypatch.setenv("NEREID_API_KEY", KEY)
    GatewayOptions(port=8080, host="0.0.0.0").check(served)

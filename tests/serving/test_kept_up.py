"""A real Triton with tiny models, hurt in every way: it serves again, leaves nothing, and takes orders from nobody else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from nereid.serving.options import ServeOptions
from nereid.serving.process import UNSENDABLE
from nereid.serving.supervisor import Supervisor

from conftest import OwnTemporary, shared_memory
from tiny_models import ask, write_repository
from waiting import until

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def options(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> ServeOptions:
    return ServeOptions.on_free_ports(repository, tmp_path_factory.mktemp("log") / "triton.log")


@pytest.fixture(scope="module")
def supervisor(options: ServeOptions) -> Iterator[Supervisor]:
    with Supervisor(options) as running:
        yield running


@pytest.fixture
def client(options: ServeOptions, supervisor: Supervisor) -> Iterator[grpcclient.InferenceServerClient]:
    until(lambda: supervisor.readiness()[0] and supervisor._pending.by is None)
    with grpcclient.InferenceServerClient(options.grpc_url) as made:
        yield made


def stub_of(supervisor: Supervisor, model: str) -> psutil.Process:
    return next(psutil.Process(pid) for pid, name in supervisor._triton.stubs().items() if name == model)


def has_stub(supervisor: Supervisor, model: str) -> bool:
    return model in supervisor._triton.stubs().values()


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED)


def answers(options: ServeOptions, *models: str) -> bool:
    """Asked on a connection of its own: gRPC waits longer and longer before it connects again."""
    with grpcclient.InferenceServerClient(options.grpc_url) as own, contextlib.suppress(InferenceServerException):
        return [ask(own, model, 1, timeout=5) for model in models] == [1] * len(models)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_killed_or_stopped_step_is_replaced_beside_the_others(
    options: ServeOptions, supervisor: Supervisor, client: grpcclient.InferenceServerClient, number: signal.Signals
) -> None:
    server, stub = supervisor.triton_pid, stub_of(supervisor, "echo")
    with ThreadPoolExecutor() as pool:
        untouched = pool.submit(ask, client, "other", 3000)
        stub.send_signal(number)
        until(lambda: not is_alive(stub) and has_stub(supervisor, "echo") and supervisor.readiness()[0])
        assert answers(options, "echo", "both")
        assert untouched.result() == 3000
    assert supervisor.triton_pid == server


def test_model_that_answers_late_serves_again_at_once_and_the_server_restarts_when_others_are_idle(
    options: ServeOptions, supervisor: Supervisor, client: grpcclient.InferenceServerClient
) -> None:
    server = supervisor.triton_pid
    with ThreadPoolExecutor() as pool:
        untouched = pool.submit(ask, client, "other", 5000)
        held = pool.submit(ask, client, "both", 600_000, 600)
        until(lambda: '_requests{model="late"} 1' in _metrics(options) and '_requests{model="other"} 1' in _metrics(options))
        stub = stub_of(supervisor, "late")
        stub.kill()
        until(lambda: not is_alive(stub) and has_stub(supervisor, "late") and supervisor.readiness()[0])
        if not untouched.done():  # on a busy machine it may be over
            assert supervisor.triton_pid == server
        assert untouched.result() == 5000
        with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
            held.result()
    until(lambda: supervisor.triton_pid != server)
    until(lambda: answers(options, "late", "both", "other"))


def _metrics(options: ServeOptions) -> str:
    with urllib.request.urlopen(options.metrics_url, timeout=5) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_killed_or_stopped_server_comes_back_and_leaves_no_stub(
    options: ServeOptions, supervisor: Supervisor, client: grpcclient.InferenceServerClient, number: signal.Signals
) -> None:
    assert supervisor.triton_pid is not None
    family = [psutil.Process(supervisor.triton_pid), *psutil.Process(supervisor.triton_pid).children(recursive=True)]
    assert len(family) >= 5
    with ThreadPoolExecutor() as pool:
        held = pool.submit(ask, client, "late", 600_000, 600)
        until(lambda: '_requests{model="late"} 1' in _metrics(options))
        family[0].send_signal(number)
        with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
            held.result()
    until(lambda: supervisor.triton_pid != family[0].pid and supervisor.readiness()[0])
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
    until(lambda: answers(options, "echo", "both"))


def test_dead_control_model_costs_a_restart_and_no_more(
    options: ServeOptions, supervisor: Supervisor, client: grpcclient.InferenceServerClient
) -> None:
    server = supervisor.triton_pid
    stub_of(supervisor, "nereid_control").kill()
    until(lambda: supervisor.triton_pid != server and supervisor.readiness()[0])
    until(lambda: answers(options, "both"))


def test_no_key_of_model_control_can_be_read_anywhere(supervisor: Supervisor) -> None:
    """What another user sees of a process is its command line. What stands there cannot be sent."""
    assert supervisor.triton_pid is not None
    server = psutil.Process(supervisor.triton_pid)
    keeper = server.parent()
    assert keeper is not None
    for process in (server, keeper, *server.children(recursive=True)):
        for argument in process.cmdline():
            assert "restricted" not in argument or argument.endswith(f":{UNSENDABLE}={UNSENDABLE}")
    folder = supervisor.folder.path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "control").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ValueError, match="Invalid header"):
        urllib.request.urlopen(urllib.request.Request("http://127.0.0.1:1", headers={UNSENDABLE: UNSENDABLE}))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_cannot_reach_the_control_socket_or_read_an_environment(supervisor: Supervisor) -> None:
    attempts = f"""
import os, socket
os.setgid(65534), os.setuid(65534)
for attempt in (lambda: socket.socket(socket.AF_UNIX).connect({str(supervisor.folder.path / "control")!r}),
                lambda: os.listdir({str(supervisor.folder.path)!r}),
                lambda: open("/proc/{supervisor.triton_pid}/environ").read()):
    try:
        attempt()
    except PermissionError:
        continue
    raise SystemExit("allowed")
"""
    assert subprocess.run(["/usr/bin/env", "python3", "-c", attempts], timeout=60).returncode == 0


REFUSED_OVER_HTTP = [
    ("POST", "v2/repository/index"),
    ("POST", "v2/repository/models/echo/load"),
    ("POST", "v2/repository/models/echo/unload"),
    ("POST", "v2/repository/models/nereid_control/unload"),
    ("GET", "v2/systemsharedmemory/status"),
    ("POST", "v2/systemsharedmemory/region/x/register"),
    ("GET", "v2/cudasharedmemory/status"),
    ("GET", "v2/trace/setting"),
    ("POST", "v2/trace/setting"),
    ("GET", "v2/logging"),
    ("POST", "v2/logging"),
]


@pytest.mark.parametrize(
    "headers", ["", "nereid: x\r\n", "nereid\n\x01: nereid\n\x01\r\n", "nereid\r\n\t\x01: nereid\r\n\t\x01\r\n"]
)
@pytest.mark.parametrize(("method", "path"), REFUSED_OVER_HTTP)
def test_http_control_is_closed_to_everybody(options: ServeOptions, client: object, method: str, path: str, headers: str) -> None:
    """Raw, so that a client that sends what no library would is covered too."""
    with socket.create_connection((options.host, options.http_port), timeout=30) as connection:
        connection.sendall(f"{method} /{path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: 2\r\n\r\n{{}}".encode())
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(4096)
    assert not answer or b" 403 " in answer.split(b"\r\n")[0] or b" 400 " in answer.split(b"\r\n")[0]


@pytest.mark.parametrize("headers", [{}, {f"triton-grpc-protocol-{UNSENDABLE}": UNSENDABLE}, {UNSENDABLE: UNSENDABLE}])
@pytest.mark.parametrize(
    "call",
    [
        lambda client, headers: client.get_model_repository_index(headers=headers),
        lambda client, headers: client.load_model("echo", headers=headers),
        lambda client, headers: client.load_model("evil", config="{}", files={"file:1/model.py": b""}, headers=headers),
        lambda client, headers: client.unload_model("echo", headers=headers),
        lambda client, headers: client.get_system_shared_memory_status(headers=headers),
        lambda client, headers: client.register_system_shared_memory("x", "/x", 1, headers=headers),
        lambda client, headers: client.get_trace_settings(headers=headers),
        lambda client, headers: client.update_trace_settings(settings={"trace_level": "OFF"}, headers=headers),
        lambda client, headers: client.get_log_settings(headers=headers),
        lambda client, headers: client.update_log_settings({"log_verbose_level": 1}, headers=headers),
    ],
)
def test_grpc_control_is_closed_to_everybody(
    client: grpcclient.InferenceServerClient, call: Callable[..., object], headers: dict[str, str]
) -> None:
    with pytest.raises((InferenceServerException, ValueError)) as refused:
        call(client, headers)
    assert not headers or "ONLY" not in str(refused.value)
    assert ask(client, "echo", 1) == 1


def test_control_model_takes_no_requests(options: ServeOptions, client: object) -> None:
    url = f"{options.address}:{options.http_port}"
    with httpclient.InferenceServerClient(url) as http, pytest.raises(InferenceServerException, match="takes no requests"):
        http.infer("nereid_control", [])


def _serve(options: ServeOptions, log: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    ports = [word for option, port in options.ports.items() for word in (option, str(port))]
    command = [
        sys.executable,
        "-m",
        "nereid_client.main",
        "serve",
        "--repository",
        str(options.repository),
        "--host",
        options.host,
    ]
    errors = log.with_suffix(".err").open("wb")
    return subprocess.Popen([*command, *ports, "--log-file", str(log)], env=environment, stderr=errors)


def _ready(options: ServeOptions) -> bool:
    try:
        with urllib.request.urlopen(f"http://{options.address}:{options.health_port}/ready", timeout=5) as answer:
            return bool(json.load(answer)["ready"])
    except (OSError, ValueError):
        return False


def test_nothing_stays_of_a_killed_supervisor_and_the_next_serve_works_at_once(
    repository: Path, tmp_path: Path, temporary: OwnTemporary
) -> None:
    options = ServeOptions.on_free_ports(repository, tmp_path / "log")
    first = _serve(options, tmp_path / "first", temporary.environment)
    until(lambda: _ready(options))
    family = psutil.Process(first.pid).children(recursive=True)
    assert len(family) >= 6
    regions = temporary.regions()
    assert shared_memory(regions)
    first.kill()
    first.wait()
    second = _serve(options, tmp_path / "second", temporary.environment)
    until(lambda: _ready(options))
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
    assert answers(options, "both")
    regions |= temporary.regions()
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) == 0
    assert len(regions) == 2
    until(lambda: shared_memory(regions) == [])
    until(lambda: temporary.folders() == [])


def test_sigterm_turns_readiness_at_once_and_lets_requests_in_flight_end(repository: Path, tmp_path: Path) -> None:
    options = ServeOptions.on_free_ports(repository, tmp_path / "log")
    server = _serve(options, tmp_path / "triton")
    until(lambda: _ready(options))
    with ThreadPoolExecutor() as pool, grpcclient.InferenceServerClient(options.grpc_url) as client:
        inside = pool.submit(ask, client, "both", 6000)
        until(lambda: '_requests{model="late"} 1' in _metrics(options))
        server.send_signal(signal.SIGTERM)
        until(lambda: not _ready(options))
        assert not inside.done()
        until(lambda: not answers(options, "both"))
        assert inside.result() == 6000
    assert server.wait(60) == 0


def test_ipv6_loopback_serves(repository: Path, tmp_path: Path) -> None:
    if not Path("/proc/net/if_inet6").is_file():
        pytest.skip("no IPv6 here")
    from dataclasses import replace

    options = replace(ServeOptions.on_free_ports(repository, tmp_path / "log"), host="::1")
    with Supervisor(options):
        assert _ready(options)
        assert answers(options, "echo")

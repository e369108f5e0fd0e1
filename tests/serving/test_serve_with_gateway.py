"""`nereid serve` with a gateway, and a program in Triton's place: readiness, restarts, the end, mistakes, the environment."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from nereid.serving.installation import Source
from nereid.serving.options import ServeOptions, free_ports

import fake_triton
from small_gateway import run_serve, serve_command, write_repository
from waiting import until


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "triton"
    monkeypatch.setenv("PATH", f"{fake_triton.install(folder)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("NEREID_API_KEY", raising=False)
    return folder


@pytest.fixture
def options(tmp_path: Path, home: Path) -> ServeOptions:
    repository = fake_triton.write_models(write_repository(tmp_path / "repository"), "first")
    (repository / "llm" / "config.pbtxt").write_text('name: "llm" backend: "python" instance_group [ { count: 1 } ]')
    return replace(ServeOptions.on_free_ports(repository, tmp_path / "triton.log"), triton=Source.PATH)


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def server(
    options: ServeOptions, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[subprocess.Popen[bytes]]:
    monkeypatch.setenv("NEREID_OPENAI_PORT", str(port))
    with (tmp_path / "said").open("wb") as said:
        running = subprocess.Popen(serve_command(options), stderr=said)
    try:
        until(lambda: readiness(options).get("ready"))
        yield running
    finally:
        running.kill()
        running.wait()


def readiness(options: ServeOptions) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{options.health_port}/ready", timeout=5) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        return dict(json.load(error))
    except (OSError, ValueError):
        return {}


def process_of(server: subprocess.Popen[bytes], word: str) -> psutil.Process:
    return next(child for child in psutil.Process(server.pid).children(recursive=True) if word in child.cmdline()[:5])


def test_serve_is_not_ready_without_its_gateway_which_comes_back_on_its_port_and_harms_nothing(
    server: subprocess.Popen[bytes], options: ServeOptions, port: int
) -> None:
    triton = process_of(server, f"--model-repository={options.repository}")
    for _ in range(2):  # the second waits a while before it is started again
        process_of(server, "nereid.serving.gateway").kill()
        until(lambda: readiness(options)["services_down"] == ["the gateway"])
        assert not readiness(options)["ready"]
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=60).json()["data"][0]["id"] == "llm"
        until(lambda: readiness(options)["ready"])
    assert triton.is_running()
    page = httpx.get(f"http://127.0.0.1:{options.health_port}/metrics", timeout=60).text
    assert 'nereid_serve_service_deaths_total{service="gateway"} 2' in page
    assert 'nereid_serve_resident_memory_bytes{process="gateway"}' in page


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_gateway_ends_with_its_serve(
    server: subprocess.Popen[bytes], options: ServeOptions, port: int, tmp_path: Path, number: signal.Signals
) -> None:
    family = psutil.Process(server.pid).children(recursive=True)
    server.send_signal(number)
    assert server.wait(60) == (0 if number != signal.SIGKILL else -number)
    until(lambda: not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family))
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))
    until(lambda: not list(tmp_path.glob("nereid-serve-*")))


def test_mistakes_are_one_sentence_and_nothing_is_left(options: ServeOptions, port: int, home: Path, tmp_path: Path) -> None:
    (options.repository / "llm" / "1" / "llm.json").write_text("{")
    unreadable = run_serve(options, "--openai-port", str(port))
    assert "error: the gateway cannot be started: " in unreadable.stderr
    assert "llm/1/llm.json cannot be read" in unreadable.stderr.replace("\n", "")
    assert "export the model again" in unreadable.stderr
    with socket.socket() as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        busy.bind(("127.0.0.1", port))
        busy.listen()
        taken = run_serve(options, "--openai-port", str(port))
    assert f"error: --openai-port: port {port} on 127.0.0.1 cannot be used" in taken.stderr
    keyless = run_serve(options, "--openai-port", str(port), "--openai-host", "0.0.0.0")
    assert "error: --openai-host: 0.0.0.0 is not allowed without a key" in keyless.stderr
    for done in (unreadable, taken, keyless):
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
    assert fake_triton.starts(home) == 0
    assert not list(tmp_path.glob("nereid-serve-*"))


def test_empty_variables_mean_no_gateway(options: ServeOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """As compose passes on what is not set."""
    for name in ("NEREID_OPENAI_PORT", "NEREID_API_KEY", "NEREID_OPENAI_HOST"):
        monkeypatch.setenv(name, "")
    server = subprocess.Popen(serve_command(options), stderr=subprocess.DEVNULL)
    try:
        until(lambda: readiness(options).get("ready"))
        with pytest.raises(StopIteration):
            process_of(server, "nereid.serving.gateway")
    finally:
        server.terminate()
        server.wait()

"""What `serve` refuses before anything starts, and where it finds Triton."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nereid.engines.compile_cache import default_folder
from nereid.serving.cli import serve
from nereid.serving.errors import ServingError
from nereid.serving.gateway.service import GatewayOptions
from nereid.serving.installation import Installation, Source, find_triton
from nereid.serving.listening import listen
from nereid.serving.options import ServeOptions, free_ports

PIP = Installation(Path("/x"), Path("/x"), None, None, loopback_only=True)
CONTAINER = Installation(Path("/x"), Path("/x"), None, None, loopback_only=False)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.pbtxt").write_text("")
    return tmp_path


def options(models: Path, **changes: object) -> ServeOptions:
    http, grpc, metrics, health = free_ports(4)
    ports = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics, "health_port": health}
    return ServeOptions(**{"repository": models, **ports, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_pip_triton_refuses_other_hosts_and_names_the_container(models: Path, host: str) -> None:
    with pytest.raises(ServingError, match=r"--host.*CVE-2025-23310.*make docker-up"):
        options(models, host=host).check(PIP)


def test_container_may_bind_anywhere(models: Path) -> None:
    options(models, host="0.0.0.0").check(CONTAINER)


@pytest.mark.parametrize(
    ("name", "value"), [("start_timeout", -1.0), ("start_timeout", 0.0), ("drain_seconds", -1.0), ("drain_seconds", 1e9)]
)
def test_seconds_that_mean_nothing_are_refused_by_name(models: Path, name: str, value: float) -> None:
    with pytest.raises(ServingError, match=rf"^--{name.replace('_', '-')}: .* is not allowed; it must be"):
        options(models, **{name: value}).check(PIP)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_fine(models: Path, host: str) -> None:
    options(models, host=host).check(PIP)


def test_folder_without_models_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ServingError, match="not a model repository"):
            options(folder).check(PIP)


def test_busy_port_is_named(models: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        with pytest.raises(ServingError, match=f"--grpc-port: port {busy.getsockname()[1]}"):
            options(models, grpc_port=busy.getsockname()[1]).check(PIP)


def test_a_free_port_is_given_to_nobody_else_before_its_server_has_it() -> None:
    """Others ask for any port all the time: the other process of the tests, and each connection."""
    (port,) = free_ports(1)
    with socket.socket() as by_chance, pytest.raises(OSError, match="in use"):
        by_chance.bind(("127.0.0.1", port))
    with socket.socket() as asking, pytest.raises(ConnectionRefusedError):
        asking.connect(("127.0.0.1", port))
    with listen("--openai-port", "127.0.0.1", port, 1) as server:
        assert server.getsockname()[1] == port


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_impossible_port_is_refused(models: Path, port: int) -> None:
    with pytest.raises(ServingError, match="--http-port"):
        options(models, http_port=port).check(PIP)


def test_equal_ports_are_refused(models: Path) -> None:
    port = free_ports(1)[0]
    with pytest.raises(ServingError, match="must differ"):
        options(models, http_port=port, grpc_port=port).check(PIP)


def test_triton_on_path_is_preferred_and_not_bound_to_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = tmp_path / "bin" / "tritonserver"
    server.parent.mkdir()
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)
    monkeypatch.setenv("PATH", f"{server.parent}{os.pathsep}{os.environ['PATH']}")
    found = find_triton()
    assert found.server == server
    assert not found.loopback_only
    assert find_triton(Source.PIP).loopback_only


def test_stand_ins_fill_only_what_the_installation_lacks(tmp_path: Path) -> None:
    theirs = tmp_path / "backends"
    (theirs / "onnxruntime").mkdir(parents=True)
    (theirs / "python").mkdir()
    Installation(Path("/x"), theirs, None, None, loopback_only=False).lay_out_backends(tmp_path / "with")
    assert not (tmp_path / "with" / "onnxruntime" / "model.py").exists()
    find_triton(Source.PIP).lay_out_backends(tmp_path / "without")
    assert (tmp_path / "without" / "onnxruntime" / "model.py").is_file()
    assert (tmp_path / "without" / "python" / "triton_python_backend_stub").is_file()


@pytest.mark.triton
def test_model_that_cannot_load_is_told_in_one_sentence(tmp_path: Path) -> None:
    model = tmp_path / "repository" / "broken"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text('name: "broken" backend: "onnxruntime" max_batch_size: 1\n')
    http, grpc, metrics, health = free_ports(4)
    ports = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics, "--health-port", health]
    command = [sys.executable, "-m", "nereid_client.main", "serve", "--repository", str(tmp_path / "repository")]
    done = subprocess.run(
        [*command, *map(str, ports), "--log-file", str(tmp_path / "log")], capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 1
    assert "broken" in done.stderr
    assert "Traceback" not in done.stderr


def test_options_that_are_left_out_are_what_is_served_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    monkeypatch.setattr("nereid.serving.cli._run", lambda *options: taken.append(options))
    serve(openai_port=9)
    served = ServeOptions(repository=Path("build/repository"), cache_dir=default_folder())
    assert taken == [(served, GatewayOptions(port=9))]

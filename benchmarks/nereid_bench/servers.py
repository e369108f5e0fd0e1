"""Nereid on free ports, for the measurements: alone, or with its gateway."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nereid.engines.digests import sign
from nereid.serving.errors import ServingError
from nereid.serving.gateway.launch import API_KEY
from nereid.serving.options import ServeOptions, free_ports
from nereid.serving.supervisor import Supervisor
from nereid_client import Client
from nereid_export.configs import read_config, write_config

HOST = "127.0.0.1"
LONGEST_SECONDS = 86_400.0
"""A picture of a slow machine is waited for."""


@dataclass(frozen=True, slots=True)
class WithGateway:
    """A server and its gateway, which asks for no key."""

    options: ServeOptions
    gateway_port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.gateway_port}"

    def state(self) -> dict[str, Any]:
        """The page /ready; not ready while nothing answers there."""
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.options.health_port}/ready", timeout=10) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            return dict(json.load(error))
        except OSError:
            return {"ready": False, "restart_pending": False}


@contextmanager
def serving(repository: Path, name: str = "") -> Iterator[tuple[Client, ServeOptions]]:
    """Nereid on free ports; the client is for the pipeline whose models have the prefix `name`."""
    with tempfile.TemporaryDirectory() as folder:
        options = ServeOptions.on_free_ports(repository, Path(folder) / "triton.log")
        with Supervisor(options), Client(f"{HOST}:{options.grpc_port}", name=name) as client:
            yield client, options


@contextmanager
def serving_with_gateway(repository: Path, *more: str) -> Iterator[WithGateway]:
    """`nereid serve --openai-port` with `more`, as a process of its own: what watches over it shares no Python with callers."""
    with tempfile.TemporaryDirectory() as folder:
        options = ServeOptions.on_free_ports(repository, Path(folder) / "triton.log")
        (port,) = free_ports(1)
        ports = [word for option, value in {**options.ports, "--openai-port": port}.items() for word in (option, str(value))]
        command = [sys.executable, "-m", "nereid_client.main", "serve", "--repository", str(repository), *ports, *more]
        environment = {key: value for key, value in os.environ.items() if key != API_KEY}
        server = WithGateway(options, port, subprocess.Popen([*command, "--log-file", str(options.log_file)], env=environment))
        try:
            while not server.state()["ready"]:
                if server.process.poll() is not None:
                    raise ServingError(f"nereid serve ended with {server.process.returncode}")
                time.sleep(0.1)
            yield server
        finally:
            server.process.terminate()
            server.process.wait(60)


@contextmanager
def serving_with(repository: Path, model: str = "llm", **parameters: object) -> Iterator[tuple[Client, ServeOptions]]:
    """The repository served with other parameters of a model; its engines are linked, not copied."""
    with tempfile.TemporaryDirectory(dir=repository.parent) as folder:
        linked = Path(folder) / "repository"
        shutil.copytree(repository, linked, copy_function=os.link)
        file = linked / model / "config.pbtxt"
        config = read_config(file)
        file.unlink()  # the link, not the original
        for name, value in parameters.items():
            config.parameters[name].string_value = str(value)
        write_config(config, file.parent)
        sign(linked)
        with serving(linked) as served:
            yield served

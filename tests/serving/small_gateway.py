"""A real gateway process before a small server of Triton's protocol, whose language model does what the prompt says."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from nereid.serving.child import Child
from nereid.serving.gateway.limits import Limits
from nereid.serving.gateway.service import BACKLOG, gateway_service
from nereid.serving.health import HealthServer
from nereid.serving.listening import listen
from nereid.serving.options import ServeOptions, free_ports
from nereid.serving.services import KeptService

from scripted import delta, texts
from small_servers import Tensors, grpc_server

KEY = "a-key-of-the-test"


def write_repository(folder: Path, template: str | None = None) -> Path:
    """As much of a language model as the gateway reads."""
    (folder / "llm" / "1").mkdir(parents=True)
    (folder / "llm" / "1" / "llm.json").write_text(json.dumps({"bos_token": "", "eos_token": ""}))
    if template is not None:
        (folder / "llm" / "1" / "chat_template.jinja").write_text(template)
    return folder


@dataclass
class Model:
    """`wait` begins, and ends once `release` is set; `much` has more to say than anybody reads; others say "done"."""

    release: threading.Event = field(default_factory=threading.Event)
    begun: int = 0
    cancelled: int = 0

    def __call__(self, tensors: Tensors) -> Iterator[Tensors]:
        if "watch" in tensors or "cancel" in tensors:
            self.cancelled += "cancel" in tensors
            yield {"run_state": texts("running")}
            return
        self.begun += 1
        prompt, stream = tensors["text_input"][0], bool(tensors["stream"][0])
        if prompt == b"wait" and stream:
            yield delta([1], "first ")
        if prompt == b"wait":
            self.release.wait(120)
        if prompt == b"much":
            for token in range(4000):
                yield delta([token], "x" * 50_000)
                time.sleep(0.005)  # longer, all in all, than a caller may stand still, however quick the machine
        text = {b"wait": "last" if stream else "first last"}.get(prompt, "done")
        whole = {"num_output_tokens": np.array([1]), "cumulative_logprob": np.array([0.0])}
        yield delta([2], text, "stop", **({} if stream else whole))


@dataclass
class SmallGateway:
    service: KeptService
    port: int
    model: Model
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def body(self, prompt: str, stream: bool = False) -> dict[str, Any]:
        return {"model": "llm", "prompt": prompt, "stream": stream}

    def ask(self, prompt: str = "hello", **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.post(f"{self.url}/v1/completions", json=self.body(prompt), headers=headers, timeout=60, **options)

    def stream(self, prompt: str) -> list[str]:
        headers = {"Authorization": f"Bearer {KEY}"}
        url, body = f"{self.url}/v1/completions", self.body(prompt, stream=True)
        with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as answer:
            return [line.removeprefix("data: ") for line in answer.iter_lines() if line]


def words(response: httpx.Response) -> str:
    return str(response.json()["choices"][0]["text"])


@contextmanager
def small_gateway(
    folder: Path, limits: Limits | None = None, drain_seconds: float = 60, most_files: int | None = None
) -> Iterator[SmallGateway]:
    """`most_files` is the hard limit of its process's descriptors."""
    model = Model()
    repository = write_repository(folder / "repository")
    port, health = free_ports(2)
    supervisor = HealthServer("127.0.0.1", health, lambda: (True, {"ready": True}))
    with grpc_server({"llm": model}) as (triton, _), (folder / "log").open("wb") as log:
        served = ServeOptions(repository=repository, grpc_port=triton, health_port=health, drain_seconds=drain_seconds)
        listener = listen("--openai-port", "127.0.0.1", port, BACKLOG)
        service = gateway_service(served, listener, {"NEREID_API_KEY": KEY}, limits)
        make = service.make

        def limited(heart: int) -> Child:
            child = make(heart)
            bound = [] if most_files is None else ["/bin/sh", "-c", f'ulimit -n {most_files}; exec "$@"', "sh"]
            return replace(child, command=[*bound, *child.command], output=log)

        service.make = limited
        supervisor.start()
        try:
            service.start()
            yield SmallGateway(service, port, model, folder / "log")
        finally:
            model.release.set()
            service.stop()
            supervisor.stop()


def serve_command(options: ServeOptions, *more: str) -> list[str]:
    """`nereid serve` on these ports."""
    import sys

    ports = [word for option, port in options.ports.items() for word in (option, str(port))]
    return [
        sys.executable,
        "-m",
        "nereid_client.main",
        "serve",
        "--repository",
        str(options.repository),
        "--triton",
        options.triton.value,
        *ports,
        *more,
    ]


def run_serve(options: ServeOptions, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(serve_command(options, *more), capture_output=True, text=True, timeout=120, env=dict(os.environ))

"""The gateway before a small server, for quick tests: real HTTP and gRPC, models that are functions."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import uvicorn

from nereid.serving.gateway.app import GatewaySettings, create_app
from nereid.serving.options import free_ports

from waiting import until

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def small_repository(folder: Path, template: str = TEMPLATE) -> Path:
    """What the gateway reads of a repository: a language model and an image pipeline."""
    for model, file in (("llm", "llm.json"), ("text_to_image_stream", "pipeline.json")):
        (folder / model / "1").mkdir(parents=True)
        (folder / model / "1" / file).write_text("{}")
    (folder / "llm" / "1" / "chat_template.jinja").write_text(template)
    return folder


@dataclass(frozen=True)
class Running:
    url: str


@contextmanager
def gateway(
    repository: Path,
    grpc_port: int,
    metrics_url: str = "http://127.0.0.1:9/metrics",
    ready_url: str = "http://127.0.0.1:9/ready",
    **settings_besides: Any,
) -> Iterator[Running]:
    """Listening on a free port."""
    (port,) = free_ports(1)
    settings = GatewaySettings(
        repository=repository,
        grpc_url=f"127.0.0.1:{grpc_port}",
        metrics_url=metrics_url,
        ready_url=ready_url,
        max_body_bytes=100_000,
        **settings_besides,
    )
    config = uvicorn.Config(create_app(settings), port=port, log_config=None, timeout_graceful_shutdown=1, proxy_headers=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Running(f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join()


def client_of(api: httpx.Client) -> openai.OpenAI:
    """OpenAI's package on the same gateway."""
    return openai.OpenAI(base_url=f"{api.base_url}/v1", api_key="none", max_retries=0)


def hang_up(url: str, path: str, body: dict[str, Any], when: Callable[[], object], key: str = "none") -> None:
    """Ask, and close the connection when something has happened."""
    host, _, port = url.removeprefix("http://").partition(":")
    sent = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + sent)
        until(when)

"""The gateway's /health says what the supervisor says; pages of this machine are asked for directly."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterator
from typing import Any

import pytest

from nereid.serving import pages
from nereid.serving.gateway.readiness import readiness
from nereid.serving.health import HealthServer
from nereid.serving.options import free_ports


@pytest.fixture
def said() -> dict[str, Any]:
    return {"ready": True, "models_reloading": []}


@pytest.fixture
def url(said: dict[str, Any]) -> Iterator[str]:
    """Of a supervisor's /ready that says so."""
    (port,) = free_ports(1)
    server = HealthServer("127.0.0.1", port, lambda: (said["ready"], said))
    server.start()
    yield f"http://127.0.0.1:{port}/ready"
    server.stop()


def ask(url: str) -> dict[str, Any]:
    return asyncio.run(readiness(url))


def test_a_model_that_is_missing_is_told_by_the_gateway_too(url: str, said: dict[str, Any]) -> None:
    assert ask(url) == said
    said.update(ready=False, models_reloading=["unet"])
    assert ask(url) == {"ready": False, "models_reloading": ["unet"]}


def test_a_supervisor_that_does_not_answer_is_not_ready() -> None:
    (port,) = free_ports(1)
    assert ask(f"http://127.0.0.1:{port}/ready") == {"ready": False}


def test_no_proxy_is_asked_for_pages_of_this_machine(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (nobody,) = free_ports(1)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{nobody}")
    started_so = importlib.reload(pages)
    assert started_so.fetch(url, 10)[0] == 200
    assert started_so.fetch(url.replace("/ready", "/nothing"), 10)[0] == 404

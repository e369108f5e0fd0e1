"""A gateway before image models whose answers are known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from drawing_models import Drawers, drawing_repository
from gateway_before import gateway


@pytest.fixture
def triton_models(drawers: Drawers) -> dict[str, Any]:
    return drawers.all()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return drawing_repository(tmp_path / "repository")


@pytest.fixture
def api(repository: Path, triton: int) -> Iterator[httpx.Client]:
    with gateway(repository, triton) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        yield client

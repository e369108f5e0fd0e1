"""A gateway with AUTOMATIC1111's API before image models whose answers are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from nereid.serving.gateway.launch import Rules

from drawing_models import Drawers, drawing_repository
from gateway_before import gateway


@pytest.fixture
def triton_models(drawers: Drawers) -> dict[str, Any]:
    return drawers.all()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    made = drawing_repository(tmp_path / "repository")
    (made / "a_text_to_image_stream" / "1").mkdir(parents=True)
    (made / "a_text_to_image_stream" / "1" / "pipeline.json").write_text("{}")
    return made


@pytest.fixture
def api(repository: Path, triton: int) -> Iterator[httpx.Client]:
    with (
        gateway(repository, triton, rules=Rules(a1111=True)) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield client


@pytest.fixture
def later() -> Iterator[Callable[[Callable[[], httpx.Response]], Future[httpx.Response]]]:
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit

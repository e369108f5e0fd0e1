"""What gateway tests share: a small server of Triton's protocol before which each file puts its own models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from drawing_models import Drawers
from small_servers import grpc_server


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Any:
    """A file's own language model, its class `Model`."""
    return request.module.Model()


@pytest.fixture
def triton_models(model: Any) -> dict[str, Any]:
    """The models of the server by their names."""
    return {"llm": model}


@pytest.fixture
def triton(triton_models: dict[str, Any]) -> Iterator[int]:
    """The server's port."""
    with grpc_server(triton_models) as (port, _):
        yield port


@pytest.fixture
def drawers() -> Iterator[Drawers]:
    """Image models, for those who serve them."""
    made = Drawers()
    yield made
    made.release.set()

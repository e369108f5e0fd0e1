"""No test depends on those that ran before it in its process (`conftest`): each finds the same, alone or among thousands."""

from __future__ import annotations

import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.torch


def draw() -> tuple[float, ...]:
    return random.random(), np.random.random(), torch.rand(()).item()


@pytest.fixture(scope="module")
def drawn() -> tuple[float, ...]:
    return draw()


@pytest.mark.parametrize("time", ["once", "again"])
def test_what_draws_without_a_seed_draws_the_same_whatever_drew_before(drawn: tuple[float, ...], time: str) -> None:
    assert draw() == drawn

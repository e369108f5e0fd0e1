"""Trainings of these tests take as many steps on a busy machine as on a quiet one."""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Iterator
from types import SimpleNamespace
from unittest.mock import patch

import pytest

STEP_SECONDS = 0.2
"""What a step takes of a training's minutes, where a file does not set its own."""


@pytest.fixture(scope="module", autouse=True)
def steps_for_time(request: pytest.FixtureRequest) -> Iterator[None]:
    """A training's minutes are a number of steps, in fixtures of a whole file, too."""
    if importlib.util.find_spec("torch") is None:
        yield
        return
    looks, seconds = itertools.count(), getattr(request.module, "STEP_SECONDS", STEP_SECONDS)
    clock = SimpleNamespace(monotonic=lambda: seconds * next(looks), strftime=time.strftime)
    with patch("nereid_zoo.optimisation.time", clock):
        yield

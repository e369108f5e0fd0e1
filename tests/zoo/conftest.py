"""Trainings of these tests take as many steps on a busy machine as on a quiet one."""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from unittest.mock import patch

import pytest

STEP_SECONDS = 0.2
"""What a step takes of a training's minutes, where a file does not set its own."""
CLOCKED = ("nereid_zoo.optimisation", "nereid_zoo.layout.dynamic_train", "nereid_zoo.layout.token_train")
"""Modules that look once a step how much of a training is done, each by a clock of its own."""


@pytest.fixture(scope="module", autouse=True)
def steps_for_time(request: pytest.FixtureRequest) -> Iterator[None]:
    """A training's minutes are a number of steps, in fixtures of a whole file, too."""
    if importlib.util.find_spec("torch") is None:
        yield
        return
    with ExitStack() as stack:
        for module in CLOCKED:
            stack.enter_context(patch(f"{module}.time", clock(getattr(request.module, "STEP_SECONDS", STEP_SECONDS))))
        yield


def clock(seconds: float) -> SimpleNamespace:
    """The part of `time` that trainings use; each look takes so long."""
    looks = itertools.count()
    return SimpleNamespace(monotonic=lambda: seconds * next(looks), strftime=time.strftime)

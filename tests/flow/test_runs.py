"""Runs by their ids: cancellations that come before their runs, and how long they are remembered."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from nereid.flow import runs as module
from nereid.flow.runs import REMEMBERED, Runs, RunState


@dataclass
class Waiting:
    cancelled: bool = False


def begun(runs: Runs, name: str) -> Waiting:
    run = Waiting()
    runs.begin(name, run)
    return run


def test_a_cancellation_that_overtakes_its_run_cancels_it() -> None:
    runs = Runs()
    assert runs.cancel("early") is RunState.UNKNOWN
    assert begun(runs, "early").cancelled
    assert not begun(runs, "other").cancelled


def test_a_run_after_that_one_is_not_cancelled() -> None:
    runs = Runs()
    runs.cancel("early")
    runs.end("early", begun(runs, "early"), failed=True)
    assert not begun(runs, "early").cancelled


def test_a_cancellation_of_a_run_that_has_ended_is_for_no_later_one() -> None:
    runs = Runs()
    runs.end("once", begun(runs, "once"), failed=False)
    assert runs.cancel("once") is RunState.DONE
    assert not begun(runs, "once").cancelled


def test_an_early_cancellation_is_forgotten_in_time_and_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, now = Runs(), [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    runs.cancel("old")
    now[0] += module.EARLY_SECONDS + 1
    assert not begun(runs, "old").cancelled
    runs.cancel("first")
    for number in range(REMEMBERED):
        runs.cancel(f"other-{number}")
    assert not begun(runs, "first").cancelled
    assert begun(runs, "other-7").cancelled

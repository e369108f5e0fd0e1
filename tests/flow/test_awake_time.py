"""Time that stands while its watcher does: what is watched is judged by no silence that nobody has attended."""

from __future__ import annotations

import threading
import time

import pytest

from nereid.flow.awake_time import AwakeTime, AwakeTimer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The machine's, moved by hand."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_silence_counts_while_the_watcher_looks_in_time(clock: list[float]) -> None:
    awake = AwakeTime(1.0)
    heard = awake.now()
    for _ in range(10):
        clock[0] += 0.5
        awake.look()
    assert awake.silent_since(heard) == pytest.approx(5.0)


def test_a_late_look_gives_everybody_a_full_period_anew(clock: list[float]) -> None:
    awake = AwakeTime(1.0)
    heard = awake.now()
    clock[0] += 0.9
    awake.look()
    clock[0] += 60.0
    awake.look()
    assert awake.silent_since(heard) == 0.0
    clock[0] += 0.5
    awake.look()
    assert awake.silent_since(heard) == pytest.approx(0.5)
    later = awake.now()
    clock[0] += 0.25
    awake.look()
    assert awake.silent_since(later) == pytest.approx(0.25)


def test_a_silence_is_not_longer_than_it_was_at_the_last_look(clock: list[float]) -> None:
    awake = AwakeTime(1.0)
    heard = awake.now()
    clock[0] += 60.0  # and the watcher goes on in the midst of a round
    assert awake.silent_since(heard) == 0.0


def test_a_deadline_is_put_off_by_what_was_slept(clock: list[float]) -> None:
    awake = AwakeTime(1.0)
    end = awake.now() + 3.0
    clock[0] += 60.0
    assert awake.now() < end  # noted by another thread before the watcher looks
    assert awake.look() == pytest.approx(end - 2.0)
    for _ in range(4):
        clock[0] += 0.5
        awake.look()
    assert awake.now() == pytest.approx(end)


def test_a_timer_calls_in_time_and_not_once_cancelled() -> None:
    called, never = threading.Event(), threading.Event()
    cancelled = AwakeTimer(0.1, never.set)
    cancelled.start()
    cancelled.cancel()
    AwakeTimer(0.2, called.set).start()
    assert called.wait(60)
    assert not never.is_set()

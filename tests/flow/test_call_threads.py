"""A thread for each call: whose work it is, what fails in it, and what never returns."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from nereid.flow.call_threads import CallThreads
from nereid.flow.request_ids import current, handling


def test_a_call_works_under_the_id_of_who_submitted_it() -> None:
    threads, seen = CallThreads("call"), []  # type: ignore[var-annotated]
    with handling("mine"):
        threads.submit(lambda *given: seen.append((current(), *given)), 1, 2)
    assert threads.join(60)
    assert seen == [("mine", 1, 2)]


def test_calls_that_never_return_hold_up_neither_others_nor_the_end() -> None:
    threads, never, done = CallThreads("call"), threading.Event(), threading.Event()
    for _ in range(50):
        threads.submit(never.wait, 120)
    threads.submit(done.set)
    assert done.wait(60)
    begun = time.monotonic()
    assert not threads.join(0.05)
    assert time.monotonic() - begun < 60
    never.set()
    assert threads.join(60)


def test_a_call_that_fails_is_logged_and_returns(caplog: pytest.LogCaptureFixture) -> None:
    threads = CallThreads("call")
    with caplog.at_level(logging.ERROR, logger="nereid.flow.call_threads"):
        threads.submit(lambda: 1 / 0)
        assert threads.join(60)
    assert "a call has failed" in caplog.text

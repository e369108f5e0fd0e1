"""Turns: together, or one alone, and who waits may be called off."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from nereid.flow.turns import Turns


def nothing() -> None:
    """Waits on."""


def test_many_have_their_turns_together() -> None:
    turns, both = Turns(), threading.Barrier(2)

    def work() -> None:
        with turns.take(nothing):
            both.wait(30)

    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(work) for _ in range(2)]:
            job.result(30)


def test_one_alone_waits_for_those_inside_and_lets_nobody_in_before_it() -> None:
    turns, entered, wanting = Turns(), [], threading.Event()
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with turns.take(nothing):
            inside.set()
            leave.wait(30)

    def enter(name: str, alone: bool) -> None:
        with turns.take(wanting.set, alone=alone):
            entered.append(name)

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(first)]
        inside.wait(30)
        jobs.append(pool.submit(enter, "alone", True))
        wanting.wait(30)
        jobs.append(pool.submit(enter, "later", False))
        leave.set()
        for job in jobs:
            job.result(30)
    assert entered == ["alone", "later"]


def test_who_gives_up_waiting_leaves_no_trace() -> None:
    turns = Turns()

    def give_up() -> None:
        raise TimeoutError

    with turns.take(nothing, alone=True):
        for alone in (True, False):
            with pytest.raises(TimeoutError), turns.take(give_up, alone=alone):
                raise AssertionError("it had its turn")
    with turns.take(give_up), turns.take(give_up):
        pass

"""The in-flight batcher with tasks whose work is known: who joins when, who is refused, who is answered how."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from nereid.flow.batcher import InFlightBatcher
from nereid.flow.errors import (
    CancelledError,
    DeadlineError,
    EngineError,
    InvalidRequestError,
    QueueFullError,
    RequestError,
    StoppingError,
)

from waiting import until


@dataclass(eq=False)
class Count:
    """A task that is done after so many ticks."""

    ticks: int
    rows: int = 1
    error: RequestError | None = None
    cancelled: bool = False
    seen: int = 0
    asked: int = 0
    outcome: list[RequestError | None] = field(default_factory=list)
    answered: threading.Event = field(default_factory=threading.Event)

    @property
    def done(self) -> bool:
        return self.seen >= self.ticks

    def is_cancelled(self) -> bool:
        assert not self.answered.is_set(), "an answered request was asked whether it was cancelled"
        self.asked += 1
        return self.cancelled

    def finish(self, error: RequestError | None) -> None:
        self.outcome.append(error)
        self.answered.set()

    def wait(self) -> RequestError | None:
        assert self.answered.wait(60)
        return self.outcome[0]


class Log:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.outcomes: list[str] = []

    def admitted(self, queue_seconds: float) -> None: ...

    def ticked(self, seconds: float, rows: int) -> None:
        self.rows.append(rows)

    def occupancy(self, active: int, queued: int) -> None: ...

    def finished(self, outcome: str, seconds: float) -> None:
        self.outcomes.append(outcome)


class Gate:
    """An `advance` that waits to be let through, tick by tick, and notes who was in each."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.ticks: list[list[Count]] = []

    def __call__(self, tasks: Sequence[Count]) -> None:
        assert self.permits.acquire(timeout=60)
        self.ticks.append(list(tasks))
        for task in tasks:
            task.seen += 1


@contextmanager
def batcher(
    advance: Callable[[Sequence[Count]], None], *, inflight: int = 4, queue: int = 2
) -> Iterator[tuple[InFlightBatcher[Count], Log]]:
    log = Log()
    made = InFlightBatcher(advance, log, max_inflight=inflight, max_queue=queue, poll_seconds=0.005)
    yield made, log
    made.stop()


def step(tasks: Sequence[Count]) -> None:
    for task in tasks:
        task.seen += 1
    time.sleep(0.001)


def test_request_joins_at_the_next_tick_and_leaves_when_done() -> None:
    gate = Gate()
    with batcher(gate) as (made, _):
        long, short = Count(3), Count(1)
        made.submit(long)
        gate.permits.release()
        until(lambda: len(gate.ticks) == 1)
        made.submit(short)
        gate.permits.release(2)
        assert long.wait() is None
        assert short.wait() is None
    # The second tick may have begun before the second task came; then it joined the third.
    assert gate.ticks[0] == [long]
    assert any(tick == [long, short] for tick in gate.ticks[1:])


def test_full_queue_refuses_at_once() -> None:
    gate = Gate()
    with batcher(gate, inflight=2, queue=1) as (made, _):
        running = [Count(1), Count(1)]
        for task in running:
            made.submit(task)
        waiting = Count(1)
        made.submit(waiting)
        with pytest.raises(QueueFullError, match="at most 1"):
            made.submit(Count(1))
        gate.permits.release(4)
        assert [task.wait() for task in (*running, waiting)] == [None] * 3


def test_task_larger_than_everything_is_invalid() -> None:
    with batcher(step, inflight=3) as (made, _), pytest.raises(InvalidRequestError, match="at most 3"):
        made.submit(Count(1, rows=4))


def test_rows_never_exceed_the_limit_and_order_is_kept() -> None:
    with batcher(step, inflight=4, queue=64) as (made, log):
        tasks = [Count(3, rows=1 + i % 3) for i in range(20)]
        for task in tasks:
            made.submit(task)
        assert [task.wait() for task in tasks] == [None] * 20
    assert max(log.rows) <= 4
    assert log.outcomes == ["success"] * 20


def test_cancelled_task_leaves_within_a_tick_and_others_go_on() -> None:
    with batcher(step) as (made, log):
        lost, kept = Count(10**9), Count(200)
        made.submit(lost)
        made.submit(kept)
        lost.cancelled = True
        assert isinstance(lost.wait(), CancelledError)
        assert kept.wait() is None
    assert sorted(log.outcomes) == ["cancelled", "success"]


def test_a_request_is_not_answered_while_it_is_being_asked() -> None:
    """Triton frees a request with its answer: to ask a freed one whether it was cancelled ends the process."""
    asked, go_on = threading.Event(), threading.Event()

    class Slow(Count):
        def is_cancelled(self) -> bool:
            asked.set()
            assert go_on.wait(60)
            return False

    with batcher(step) as (made, log):
        task = Slow(10**9)
        made.submit(task)
        assert asked.wait(60)
        task.ticks = 0
        until(lambda: log.outcomes == ["success"])
        assert not task.answered.wait(0.05)
        go_on.set()
        assert task.wait() is None


def test_a_request_that_was_answered_within_a_round_of_questions_is_not_asked_any_more() -> None:
    late: list[bool] = []

    class Asked(Count):
        def is_cancelled(self) -> bool:
            late.append(self.answered.is_set())
            return False

    class First(Count):
        """Has the other one answered between its own question and the other's, in a round that asks both."""

        both = False

        def is_cancelled(self) -> bool:
            if self.both and not other.answered.is_set():
                other.ticks = 0
                assert other.answered.wait(60)
            self.both = self.both or other.seen > 0
            self.asked += 1
            return False

    with batcher(step) as (made, _):
        first, other = First(10**9), Asked(10**9)
        made.submit(first)
        made.submit(other)
        assert other.wait() is None
        rounds = first.asked
        until(lambda: first.asked >= rounds + 2)
    assert True not in late


def test_a_hundred_waiting_tasks_are_asked_no_more_often_than_a_few_and_yet_let_go() -> None:
    with batcher(step, inflight=1, queue=100) as (made, _):
        tasks = [Count(10**9) for _ in range(100)]
        start = time.monotonic()
        for task in tasks:
            made.submit(task)
        until(lambda: sum(task.asked for task in tasks) >= 60)
        assert sum(task.asked for task in tasks) <= 1 + (time.monotonic() - start) / made.question_seconds
        assert tasks[0].asked >= 10
        tasks[-1].cancelled = True
        assert isinstance(tasks[-1].wait(), CancelledError)


def test_deadline_ends_running_and_waiting_tasks_by_name() -> None:
    with batcher(step, inflight=1) as (made, _):
        running, waiting = Count(10**9), Count(1)
        with made._changed:  # both are there before either is looked at
            made.submit(running, timeout_seconds=0.1)
            made.submit(waiting, timeout_seconds=0.001)
        assert "waiting" in str(waiting.wait())
        error = running.wait()
        assert isinstance(error, DeadlineError)
        assert "running" in str(error)


def test_failing_tick_fails_its_tasks_and_the_next_ones_run() -> None:
    def advance(tasks: Sequence[Count]) -> None:
        if any(task.ticks == 13 for task in tasks):
            raise ZeroDivisionError
        step(tasks)

    with batcher(advance) as (made, _):
        bad = Count(13)
        made.submit(bad)
        assert isinstance(bad.wait(), EngineError)
        good = Count(2)
        made.submit(good)
        assert good.wait() is None


def test_one_tasks_error_fails_only_itself() -> None:
    def advance(tasks: Sequence[Count]) -> None:
        step(tasks)
        for task in tasks:
            if task.ticks == 13:
                task.error = EngineError("unet: broken")

    with batcher(advance) as (made, _):
        bad, good = Count(13), Count(5)
        made.submit(bad)
        made.submit(good)
        assert str(bad.wait()) == "unet: broken"
        assert good.wait() is None


def test_stop_answers_everything_and_refuses_more() -> None:
    with batcher(step, inflight=1) as (made, _):
        tasks = [Count(10**9), Count(1)]
        for task in tasks:
            made.submit(task)
        made.stop()
        assert all(isinstance(task.wait(), StoppingError) for task in tasks)
        with pytest.raises(StoppingError):
            made.submit(Count(1))


def test_every_task_is_answered_exactly_once_under_churn() -> None:
    with batcher(step, inflight=8, queue=1000) as (made, _):
        tasks = [Count(1 + i % 7) for i in range(300)]
        for i, task in enumerate(tasks):
            task.cancelled = i % 11 == 0
            made.submit(task, timeout_seconds=10)
        for task in tasks:
            task.wait()
        time.sleep(0.05)
    assert all(len(task.outcome) == 1 for task in tasks)


def test_what_can_wait_is_done_between_requests_and_stops_for_them() -> None:
    log, rests, come = Log(), [], threading.Event()

    def rest() -> bool:
        rests.append(len(log.outcomes))
        if len(rests) == 3:
            assert come.wait(60)  # a tick's worth: the second request comes within it
        return len(rests) < 20

    made = InFlightBatcher(step, log, max_inflight=1, max_queue=4, rest=rest)
    first, second = Count(1), Count(1)
    made.submit(first)
    until(lambda: len(rests) >= 3)
    made.submit(second)
    come.set()
    assert second.wait() is None
    until(lambda: len(rests) == 20)
    assert rests[0] == 1
    assert rests[-1] == 2
    assert rests.index(2) < 19  # the second did not wait for the rest of the rest
    time.sleep(0.05)
    assert len(rests) == 20
    made.stop()


def test_a_mistake_at_rest_stops_nothing() -> None:
    def rest() -> bool:
        raise RuntimeError("broken")

    made = InFlightBatcher(step, Log(), max_inflight=1, max_queue=4, rest=rest)
    for _ in range(3):
        task = Count(1)
        made.submit(task)
        assert task.wait() is None
        time.sleep(0.02)
    made.stop()

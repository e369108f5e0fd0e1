"""The in-flight batcher: requests join and leave between ticks of one thread; knows nothing of what a tick computes.

Policy (who runs next) is first come, first served by free rows; bookkeeping (who waits, who runs) lives here; execution is
the `advance` callable, which moves every active task one tick on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from nereid.flow.errors import (
    CancelledError,
    DeadlineError,
    EngineError,
    InvalidRequestError,
    QueueFullError,
    RequestError,
    StoppingError,
)

log = logging.getLogger(__name__)

_WAITING_ASKED = 4
"""How many of those that wait are asked in a turn whether they were cancelled."""


class Task(Protocol):
    """One request in flight."""

    @property
    def rows(self) -> int:
        """Places it takes while active."""

    @property
    def done(self) -> bool:
        """True once `advance` has nothing left to do for it."""

    @property
    def error(self) -> RequestError | None:
        """Set by `advance` when this task alone has failed."""

    def is_cancelled(self) -> bool:
        """Whether the caller went away; may be slow, never called on the tick thread."""

    def finish(self, error: RequestError | None) -> None:
        """Called exactly once, never on the tick thread."""


T = TypeVar("T", bound=Task)


@dataclass(slots=True, eq=False)
class Ticket(Generic[T]):
    """A task's place in the queue or among the active ones."""

    task: T
    submitted: float
    deadline: float | None
    admitted: float | None = None
    cancelled: bool = False
    finished: bool = False
    in_use: threading.Lock = field(default_factory=threading.Lock)


class Observer(Protocol):
    """What the batcher tells of itself; called on the tick thread, so it must be quick."""

    def admitted(self, queue_seconds: float) -> None: ...

    def ticked(self, seconds: float, rows: int) -> None: ...

    def occupancy(self, active: int, queued: int) -> None: ...

    def finished(self, outcome: str, seconds: float) -> None: ...


@dataclass(slots=True, eq=False)
class InFlightBatcher(Generic[T]):
    """Keeps up to `max_inflight` rows active and `max_queue` requests waiting; everything else is refused at once.

    `submit` raises QueueFullError or StoppingError; every accepted task is finished exactly once, whatever happens. While
    nothing is in flight `rest` is called after each last tick until it returns False: a tick's worth of work that can wait.
    Active tasks are asked in turn whether they were cancelled, each of them every `poll_seconds`, but no more than one every
    `question_seconds`: in Triton a question goes to another process and back, and a hundred of them keep a core busy. Of
    those in the queue a few are asked in each turn.
    """

    advance: Callable[[Sequence[T]], None]
    observer: Observer
    max_inflight: int
    max_queue: int
    poll_seconds: float = 0.02
    question_seconds: float = 0.005
    name: str = "batcher"
    rest: Callable[[], bool] = lambda: False
    _resting: bool = field(default=False, init=False)
    _queue: deque[Ticket[T]] = field(default_factory=deque, init=False)
    _active: list[Ticket[T]] = field(default_factory=list, init=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, init=False)
    _stopping: bool = field(default=False, init=False)
    _threads: list[threading.Thread] = field(default_factory=list, init=False)
    _finisher: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self._finisher = ThreadPoolExecutor(max_workers=4, thread_name_prefix=f"{self.name}-finish")
        for work in (self._tick_forever, self._watch_forever):
            thread = threading.Thread(target=work, name=f"{self.name}-{work.__name__}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def submit(self, task: T, *, timeout_seconds: float | None = None) -> None:
        """Queue a task; it is an InvalidRequestError to need more rows than there will ever be."""
        if task.rows > self.max_inflight:
            raise InvalidRequestError.of("images in one request", task.rows, f"at most {self.max_inflight}")
        now = time.monotonic()
        ticket = Ticket(task, now, None if timeout_seconds is None else now + timeout_seconds)
        with self._changed:
            if self._stopping:
                raise StoppingError("the model is being unloaded")
            if len(self._queue) >= self.max_queue and not self._fits(task):
                raise QueueFullError(f"queue: {len(self._queue)} requests wait already; at most {self.max_queue} may")
            self._queue.append(ticket)
            self._admit()  # at once where there is room, so that only those who must wait count as waiting
            self._changed.notify_all()

    def stop(self) -> None:
        """Refuse new tasks, fail the waiting and the active ones, and join the threads."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._finisher.shutdown(wait=True)

    def _fits(self, task: T) -> bool:
        active = sum(ticket.task.rows for ticket in self._active)
        waiting = sum(ticket.task.rows for ticket in self._queue)
        return active + waiting + task.rows <= self.max_inflight

    # --- the tick thread ---

    def _tick_forever(self) -> None:
        while not self._stopping:
            try:
                self._tick_once()
            except Exception:
                # A mistake in the bookkeeping must not leave requests waiting for a thread that is gone.
                log.exception("the batcher has failed; everything in flight is given up")
                self._give_up(EngineError("internal error in the batcher; see the server's log"))
        self._give_up(StoppingError("the model is being unloaded"))

    def _tick_once(self) -> None:
        with self._changed:
            while not (self._stopping or self._queue or self._active or self._resting):
                self._changed.wait()
            if self._stopping:
                return
            self._drop_lost()
            self._admit()
            active = list(self._active)
        if active:
            self._tick(active)
            self._resting = True
        elif self._resting:
            self._rest()
        with self._changed:
            self.observer.occupancy(len(self._active), len(self._queue))

    def _rest(self) -> None:
        try:
            self._resting = self.rest()
        except Exception:
            log.exception("the work between requests has failed")
            self._resting = False

    def _give_up(self, error: RequestError) -> None:
        with self._changed:
            dropped = [*self._active, *self._queue]
            self._active.clear()
            self._queue.clear()
        for ticket in dropped:
            self._finish(ticket, error)

    def _drop_lost(self) -> None:
        """Let go of cancelled and overdue tasks, waiting or active."""
        now = time.monotonic()
        for place in (self._active, self._queue):
            for ticket in list(place):
                error: RequestError | None = None
                if ticket.cancelled:
                    error = CancelledError("the request was cancelled")
                elif ticket.deadline is not None and now >= ticket.deadline:
                    waited = ticket.deadline - ticket.submitted
                    where = "waiting" if ticket.admitted is None else "running"
                    error = DeadlineError(f"timeout_seconds: the request was still {where} after {waited:.3g} s")
                if error is not None:
                    place.remove(ticket)
                    self._finish(ticket, error)

    def _admit(self) -> None:
        free = self.max_inflight - sum(ticket.task.rows for ticket in self._active)
        while self._queue and self._queue[0].task.rows <= free:
            ticket = self._queue.popleft()
            ticket.admitted = time.monotonic()
            free -= ticket.task.rows
            self._active.append(ticket)
            self.observer.admitted(ticket.admitted - ticket.submitted)

    def _tick(self, active: list[Ticket[T]]) -> None:
        start = time.perf_counter()
        crash: RequestError | None = None
        try:
            self.advance([ticket.task for ticket in active])
        except Exception:
            log.exception("a tick has failed")
            crash = EngineError("internal error in a step; see the server's log")
        self.observer.ticked(time.perf_counter() - start, sum(ticket.task.rows for ticket in active))
        for ticket in active:
            error = crash or ticket.task.error
            if error is not None or ticket.task.done:
                with self._changed:
                    self._active.remove(ticket)
                self._finish(ticket, error)

    def _finish(self, ticket: Ticket[T], error: RequestError | None) -> None:
        outcome = "success" if error is None else error.outcome
        self.observer.finished(outcome, time.monotonic() - ticket.submitted)
        self._finisher.submit(self._finish_safely, ticket, error)

    @staticmethod
    def _finish_safely(ticket: Ticket[T], error: RequestError | None) -> None:
        with ticket.in_use:  # an answered request must not be asked whether it was cancelled: Triton has freed it
            ticket.finished = True
        try:
            ticket.task.finish(error)
        except Exception:
            log.exception("a finished request could not be answered")

    # --- the watching thread: cancellation and deadlines of tasks, off the tick thread ---

    def _watch_forever(self) -> None:
        first = 0
        while True:
            with self._changed:
                while not (self._stopping or self._queue or self._active):
                    self._changed.wait()
                waiting = list(self._queue)
                first = (first + _WAITING_ASKED) % max(len(waiting), 1)
                tickets = [*self._active, *waiting[first : first + _WAITING_ASKED]]
            pause = max(self.poll_seconds / max(len(tickets), 1), self.question_seconds)
            for ticket in tickets:
                if self._stopping:
                    return
                with ticket.in_use:
                    if not ticket.finished and not ticket.cancelled:
                        ticket.cancelled = ticket.task.is_cancelled()
                time.sleep(pause)
            if self._stopping:
                return

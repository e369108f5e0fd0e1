"""Continuous batching: requests join and leave between ticks (steps) of one thread; knows nothing of what a tick computes.

Bookkeeping (who waits, who runs) lies in nereid.flow.tickets; execution is the `advance` callable, which is given every
active task and moves those on that it chooses.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, Protocol

from nereid.flow.errors import EngineError, RequestError, StoppingError
from nereid.flow.request_ids import handling, named
from nereid.flow.runs import RunState
from nereid.flow.tickets import USUAL_PRIORITY, T, Task, Ticket, Tickets

__all__ = ["InFlightBatcher", "Observer", "Task", "Ticket"]

log = logging.getLogger(__name__)

_WAITING_ASKED = 4
"""So many of those that wait are asked in a turn whether they were cancelled, or a quarter of the active ones' number."""


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
    those in the queue a few are asked in each turn. Deadlines are looked at as often, and do not wait for a tick to end.
    `displaces`: active tasks that yield give their places up to others, are missing from the next ticks, and come again.
    """

    advance: Callable[[Sequence[T]], None]
    observer: Observer
    max_inflight: int
    max_queue: int
    max_weight: float = math.inf
    poll_seconds: float = 0.02
    question_seconds: float = 0.005
    name: str = "batcher"
    rows_name: str = "images in one request"
    rest: Callable[[], bool] = lambda: False
    displaces: bool = False
    _resting: bool = field(default=False, init=False)
    _tickets: Tickets[T] = field(init=False)
    _changed: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()), init=False)
    _stopping: bool = field(default=False, init=False)
    _threads: list[threading.Thread] = field(default_factory=list, init=False)
    _finisher: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self._tickets = Tickets(self.max_inflight, self.max_queue, self.max_weight, self.rows_name, self.displaces)
        self._finisher = ThreadPoolExecutor(max_workers=4, thread_name_prefix=f"{self.name}-finish")
        for work in (self._tick_forever, self._watch_forever):
            thread = threading.Thread(target=work, name=f"{self.name}-{work.__name__}", daemon=True)
            self._threads.append(thread)
            thread.start()

    # --- what requests ask ---

    def take_ticket(
        self,
        rows: int,
        *,
        timeout_seconds: float | None = None,
        task: T | None = None,
        run_id: str = "",
        weight: float = 0.0,
        priority: int = USUAL_PRIORITY,
    ) -> Ticket[T]:
        """A place in the queue for work that is not ready yet; raises RequestError where there is none.

        With a `task`, that task is finished if the ticket is cancelled or overdue before it is redeemed.
        """
        with self._changed:
            if self._stopping:
                raise StoppingError("the model is being unloaded")
            ticket = self._tickets.take(rows, timeout_seconds, task, run_id, weight, priority)
            self._changed.notify_all()
            return ticket

    def attach(
        self,
        ticket: Ticket[T],
        task: T,
        weight: float = 0.0,
        *,
        priority: int,
        timeout_seconds: float | None = None,
    ) -> bool:
        """Give a ticket that was taken in advance its task, and its time, from arrival on; False where it has expired."""
        with self._changed:
            if ticket not in self._tickets.queue:
                return False
            ticket.task, ticket.rows, ticket.weight, ticket.priority = task, task.rows, weight, priority
            if timeout_seconds is not None:
                ticket.deadline = ticket.submitted + timeout_seconds
            return True

    def redeem(self, ticket: Ticket[T]) -> None:
        """From now on the ticket's task may join; nothing happens where it has been given up meanwhile."""
        with self._changed:
            ticket.ready = True
            self._admit()  # at once where there is room, so that only those who must wait count as waiting
            self._changed.notify_all()

    def submit(self, task: T, *, timeout_seconds: float | None = None, run_id: str = "") -> Ticket[T]:
        """Queue a task that is ready; it is an InvalidRequestError to need more rows than there will ever be."""
        with self._changed:
            ticket = self.take_ticket(task.rows, timeout_seconds=timeout_seconds, task=task, run_id=run_id)
            self.redeem(ticket)
            return ticket

    def give_back(self, ticket: Ticket[T], error: RequestError | None = None) -> None:
        """End a ticket before it runs: silently, or its task with `error`."""
        with self._changed:
            if self._tickets.remove(ticket, error) and error is not None:
                self._finish(ticket, error)

    def find(self, run_id: str) -> Ticket[T] | None:
        """The ticket of a run that waits or runs."""
        found = self._tickets.runs.find(run_id)
        return found if isinstance(found, Ticket) else None

    def state(self, run_id: str) -> RunState:
        return self._tickets.runs.state(run_id)

    def cancel(self, run_id: str) -> RunState:
        """Cancel a run by its id; what it was until now."""
        state = self._tickets.runs.cancel(run_id)
        with self._changed:
            self._drop_lost()
            self._changed.notify_all()
        return state

    def waiting(self) -> list[T]:
        """The tasks in the queue that are ready, in order."""
        with self._changed:
            return [ticket.task for ticket in self._tickets.queue if ticket.ready and ticket.task is not None]

    def stop(self) -> None:
        """Refuse new tasks, fail the waiting and the active ones, and join the threads."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._finisher.shutdown(wait=True)

    # --- the tick thread ---

    def _tick_forever(self) -> None:
        while not self._stopping:
            try:
                self._tick_once()
            except Exception:
                # A mistake in the bookkeeping must not leave requests waiting for a thread that is gone.
                inside = [ticket.request_id for ticket in [*self._tickets.active, *self._tickets.queue]]
                log.exception("the batcher has failed; %s are given up", named(inside))
                self._give_up(EngineError("internal error in the batcher; see the server's log"))
        self._give_up(StoppingError("the model is being unloaded"))

    def _tick_once(self) -> None:
        tickets = self._tickets
        with self._changed:
            while not (self._stopping or self._runnable() or self._resting):
                self._changed.wait()
            if self._stopping:
                return
            self._drop_lost()
            self._admit()
            active = list(tickets.active)
        if active:
            self._tick(active)
            self._resting = True
        elif self._resting:
            self._rest()
        with self._changed:
            self.observer.occupancy(len(tickets.active), len(tickets.queue))

    def _runnable(self) -> bool:
        return bool(self._tickets.active) or any(ticket.ready for ticket in self._tickets.queue)

    def _rest(self) -> None:
        try:
            self._resting = self.rest()
        except Exception:
            log.exception("the work between requests has failed")
            self._resting = False

    def _give_up(self, error: RequestError) -> None:
        with self._changed:
            for ticket in [*self._tickets.active, *self._tickets.queue]:
                self._tickets.remove(ticket, error)
                self._finish(ticket, error)

    def _drop_lost(self) -> None:
        for ticket, error in self._tickets.drop_lost():
            self._finish(ticket, error)

    def _admit(self) -> None:
        self._tickets.admit(self.observer.admitted)

    def _tick(self, active: list[Ticket[T]]) -> None:
        start = time.perf_counter()
        crash: RequestError | None = None
        tasks = [ticket.task for ticket in active if ticket.task is not None]
        try:
            self.advance(tasks)
        except Exception:
            log.exception("a tick has failed with %s inside", named([ticket.request_id for ticket in active]))
            crash = EngineError("internal error in a step; see the server's log")
        self.observer.ticked(time.perf_counter() - start, sum(task.rows for task in tasks))
        with self._changed:
            for ticket in active:
                assert ticket.task is not None
                error = crash or ticket.task.error
                if (error is not None or ticket.task.done) and self._tickets.remove(ticket, error):
                    self._finish(ticket, error)

    def _finish(self, ticket: Ticket[T], error: RequestError | None) -> None:
        if ticket.task is None:
            return  # nobody waits for an answer yet
        outcome = "success" if error is None else error.outcome
        self.observer.finished(outcome, time.monotonic() - ticket.submitted)
        self._finisher.submit(self._finish_safely, ticket, ticket.task, error)

    @staticmethod
    def _finish_safely(ticket: Ticket[T], task: T, error: RequestError | None) -> None:
        with ticket.in_use:  # an answered request must not be asked whether it was cancelled: Triton has freed it
            ticket.finished = True
        with handling(ticket.request_id):
            try:
                task.finish(error)
            except Exception:
                log.exception("a finished request could not be answered")

    # --- the watching thread: cancellation and deadlines, off the tick thread ---

    def _watch_forever(self) -> None:
        first = 0
        while True:
            with self._changed:
                tickets = self._tickets
                while not (self._stopping or tickets.queue or tickets.active):
                    self._changed.wait()
                waiting = list(tickets.queue)
                share = max(_WAITING_ASKED, len(tickets.active) // 4)
                first = (first + share) % max(len(waiting), 1)
                asked = [*tickets.active, *waiting[first : first + share]]
            pause = max(self.poll_seconds / max(len(asked), 1), self.question_seconds)
            for ticket in asked:
                if self._stopping:
                    return
                self._ask(ticket)
                time.sleep(pause)
            with self._changed:
                if self._stopping:
                    return
                self._drop_lost()

    @staticmethod
    def _ask(ticket: Ticket[T]) -> None:
        with ticket.in_use:
            if ticket.task is not None and not ticket.finished and not ticket.cancelled:
                ticket.cancelled = ticket.task.is_cancelled()

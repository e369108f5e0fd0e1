"""Who waits, who runs, who is refused: the bookkeeping of one loop's tickets, without a thread; knows nothing of the work.

A request has one ticket from arrival to answer: one deadline, one place in the queue, one cancellation flag. A ticket may be
taken before the work is known (an ensemble's first step asks for one before anything is encoded) or before it is ready (an
image is still being encoded); it keeps its place, and it is passed over until it can run.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from nereid.flow.errors import CancelledError, DeadlineError, InvalidRequestError, QueueFullError, RequestError
from nereid.flow.request_ids import current
from nereid.flow.runs import Runs

UNUSED_SECONDS = 30.0
"""How long a ticket without work is kept."""
USUAL_PRIORITY = 5
AGING_SECONDS = 10.0
"""Who waits so long is of one priority better, so that none starves."""


def aged(priority: int, waited: float) -> int:
    """A priority, the lower the sooner, after a time of waiting."""
    return priority - int(waited / AGING_SECONDS)


class Task(Protocol):
    """One request in flight."""

    @property
    def rows(self) -> int:
        """Places it takes while active."""
        ...

    @property
    def done(self) -> bool:
        """True once `advance` has nothing left to do for it."""
        ...

    @property
    def error(self) -> RequestError | None:
        """Set by `advance` when this task alone has failed."""
        ...

    def is_cancelled(self) -> bool:
        """Whether the caller went away; may be slow, never called on the tick thread."""
        ...

    def finish(self, error: RequestError | None) -> None:
        """Called exactly once, never on the tick thread."""


T = TypeVar("T", bound=Task)


@dataclass(slots=True, eq=False)
class Ticket(Generic[T]):
    """One request's place. `weight` is its share of `max_weight`: bytes, or whatever the loop's owner counts.

    `watched`: somebody will ask how it goes. `alone`: it was inside when a process died, and runs with nobody beside it.
    """

    rows: int
    submitted: float
    deadline: float = math.inf
    run_id: str = ""
    weight: float = 0.0
    task: T | None = None
    ready: bool = False
    expires: float = math.inf
    admitted: float | None = None
    cancelled: bool = False
    finished: bool = False
    watched: bool = False
    alone: bool = False
    displaced: bool = False
    """Whether it ran, and gave its place up to who does not yield."""
    priority: int = USUAL_PRIORITY
    start_by: float = math.inf
    """When it must be admitted to meet a goal that it was given."""
    late_from: float = math.inf
    """When it is too late to meet that goal."""
    request_id: str = field(default_factory=current)
    in_use: threading.Lock = field(default_factory=threading.Lock)

    def turn(self, now: float) -> tuple[int, bool, bool, float]:
        """Its place among those that wait: the least goes first."""
        return aged(self.priority, now - self.submitted), now >= self.late_from, now < self.start_by, self.submitted

    @property
    def yields(self) -> bool:
        """Whether it is meant to be in nobody's way."""
        return self.priority > USUAL_PRIORITY

    @property
    def is_over(self) -> bool:
        """Whether it gives its place back with the tick that is under way, and is answered."""
        return self.task is not None and (self.task.done or self.task.error is not None)

    @property
    def has_ended_outside(self) -> bool:
        """Whether it ended while it gave its place up."""
        return self.displaced and self.is_over

    def lost(self, now: float) -> RequestError | None:
        """Why it need not go on, if so."""
        if self.cancelled:
            return CancelledError("the request was cancelled")
        if now >= self.deadline:
            waited = self.deadline - self.submitted
            where = "waiting" if self.admitted is None else "running"
            return DeadlineError(f"timeout_seconds: the request was still {where} after {waited:.3g} s", "timeout_seconds")
        if self.task is None and now >= self.expires:
            return DeadlineError("ticket: it was not used in time")
        return None


@dataclass(slots=True, eq=False)
class Tickets(Generic[T]):
    """Up to `max_inflight` rows run, up to `max_queue` requests wait; everything else is refused at once.

    Not safe between threads: the batcher holds its lock around every call. `displaces`: those that yield give their places up to
    others, wait for the next, and count for nobody who comes.
    """

    max_inflight: int
    max_queue: int
    max_weight: float = math.inf
    rows_name: str = "images in one request"
    displaces: bool = False
    queue: deque[Ticket[T]] = field(default_factory=deque)
    active: list[Ticket[T]] = field(default_factory=list)
    runs: Runs = field(default_factory=Runs)

    def take(
        self,
        rows: int,
        timeout_seconds: float | None,
        task: T | None = None,
        run_id: str = "",
        weight: float = 0.0,
        priority: int = USUAL_PRIORITY,
    ) -> Ticket[T]:
        """A place in the queue; raises InvalidRequestError for more rows than there will ever be, QueueFullError for no place."""
        if rows > self.max_inflight:
            raise InvalidRequestError.of(self.rows_name, rows, f"at most {self.max_inflight}")
        if weight > self.max_weight:
            raise InvalidRequestError(f"weight: the request needs {weight:.3g}; at most {self.max_weight:.3g} is allowed")
        waiting = self._waiting()
        if waiting >= self.max_queue and not self._fits(rows, weight):
            raise QueueFullError(f"queue: {waiting} requests wait already; at most {self.max_queue} may")
        now = time.monotonic()
        deadline = math.inf if timeout_seconds is None else now + timeout_seconds
        expires = math.inf if task is not None else now + UNUSED_SECONDS
        ticket = Ticket(rows, now, deadline, run_id, weight, task, expires=expires, priority=priority)
        if run_id:
            self.runs.begin(run_id, ticket)
        self.queue.append(ticket)
        return ticket

    def admit(self, told: Callable[[float], None]) -> None:
        """As rows and weight allow; who is not ready yet is passed over and keeps its place.

        The best priority first; of equal ones those whose goal is not lost, of these those whose goal is at stake, and then first
        come, first served. Before all of them what was displaced in the moment in which it ended: it needs no room.
        """
        now = time.monotonic()
        turn = sorted(self.queue, key=lambda ticket: (not ticket.has_ended_outside, ticket.turn(now)))
        for ticket in turn:
            if not ticket.ready:
                continue
            if self.active and (ticket.alone or self.active[0].alone):
                return
            if not (ticket.has_ended_outside or self._fits_beside(self.active, ticket) or self._displace_for(ticket)):
                if self.displaces and ticket.yields:
                    continue  # however long it has waited, it holds nobody up
                return
            self.queue.remove(ticket)
            ticket.admitted = time.monotonic()
            self.runs.started(ticket.run_id, ticket)
            self.active.append(ticket)
            if not ticket.displaced:
                told(ticket.admitted - ticket.submitted)

    def _fits_beside(self, active: Sequence[Ticket[T]], ticket: Ticket[T]) -> bool:
        rows, weight = self._in_use(active)
        return rows + ticket.rows <= self.max_inflight and not (active and weight + ticket.weight > self.max_weight)

    def _displace_for(self, ticket: Ticket[T]) -> bool:
        """Put as many that yield back among the waiting as this one needs, the newest first; False where it yields, too."""
        if not self.displaces or ticket.yields:
            return False
        left = list(self.active)
        giving = [one for one in self.active if one.yields and not one.is_over]
        for other in sorted(giving, key=lambda one: one.submitted, reverse=True):
            left.remove(other)
            if self._fits_beside(left, ticket):
                break
        else:
            return False
        for other in [one for one in self.active if one not in left]:
            self.active.remove(other)
            other.displaced = True
            self.queue.append(other)
        return True

    def drop_lost(self) -> Iterator[tuple[Ticket[T], RequestError]]:
        """Let go of cancelled, overdue and unused tickets, waiting or active."""
        now = time.monotonic()
        for ticket in [*self.active, *self.queue]:
            if (error := ticket.lost(now)) is not None:
                self.remove(ticket, error)
                yield ticket, error

    def remove(self, ticket: Ticket[T], error: RequestError | None) -> bool:
        """Forget a ticket, but for how its run has ended; False where that has been done before."""
        for place in (self.active, self.queue):
            if ticket in place:
                place.remove(ticket)
                break
        else:
            return False
        self.runs.end(ticket.run_id, ticket, failed=error is not None)
        return True

    def _waiting(self) -> int:
        """Those in the queue for whom there is no room now; the others join as soon as they are ready."""
        rows, weight = self._in_use(self._in_the_way(self.active))
        waiting = 0
        for ticket in self._in_the_way(self.queue):
            rows, weight = rows + ticket.rows, weight + ticket.weight
            waiting += rows > self.max_inflight or weight > self.max_weight
        return waiting

    def _fits(self, rows: int, weight: float) -> bool:
        used, loaded = self._in_use(self._in_the_way([*self.active, *self.queue]))
        return used + rows <= self.max_inflight and loaded + weight <= self.max_weight

    def _in_the_way(self, tickets: Iterable[Ticket[T]]) -> list[Ticket[T]]:
        """Those that hold who comes up: not what gives its place up to him, or has."""
        return [one for one in tickets if not (self.displaces and one.yields and (one.displaced or one.admitted is not None))]

    @staticmethod
    def _in_use(tickets: Sequence[Ticket[T]]) -> tuple[int, float]:
        return sum(ticket.rows for ticket in tickets), sum(ticket.weight for ticket in tickets)

"""The calls of one page: those that wait, those that are out, what they have brought; decides nothing of the page."""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nereid.flow.call_threads import CallThreads
from nereid.flow.errors import LostError, QueueFullError
from nereid.flow.retry import call_again
from nereid.page.stages import Stage, Stages, Terms

log = logging.getLogger(__name__)

_FIRST = {Stage.PLAN: 0, Stage.LAYOUTS: 1, Stage.SECTIONS: 2, Stage.PICTURES: 3}
"""What goes first where fewer calls may be out than are ready: what lets others begin, or shows."""

_GRACE_SECONDS = 1.0
"""How much longer than the model the page waits, so that the model's own sentence arrives."""

Work = Callable[[Terms], Any]


class Piece(NamedTuple):
    """What a call makes: of which stage, for which section (0: the page), and which of the section's pictures."""

    stage: Stage
    section: int = 0
    slot: int = 0

    @property
    def rank(self) -> tuple[int, int, int]:
        return (_FIRST[self.stage], self.section, self.slot)


@dataclass(frozen=True, slots=True)
class Done:
    """What a call has brought, and when it began and ended, in seconds since the page was asked for."""

    piece: Piece
    seconds: tuple[float, float]
    result: Any = None
    error: Exception | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class Pieces:
    """Used by the thread that makes the page; the calls, and cancellations, wait in `threads`, for some are never answered.

    `due` and `end` are seconds since the page was asked for: when what is not there is done without, and when the page is given
    up. `patience` is how long what is full, or has died, is asked again; `longest` is what a call may take: one to a process that
    has died may never be answered.
    """

    stages: Stages
    threads: CallThreads
    at_once: int
    priority: int
    patience: float
    longest: float
    due: float
    end: float
    begun: float = field(default_factory=time.monotonic)
    _ready: list[tuple[Piece, Work, int]] = field(default_factory=list)
    _out: dict[Piece, tuple[str, float]] = field(default_factory=dict)
    _inbox: queue.SimpleQueue[Done] = field(default_factory=queue.SimpleQueue)
    _over: threading.Event = field(default_factory=threading.Event)

    def now(self) -> float:
        """Seconds since the page was asked for."""
        return time.monotonic() - self.begun

    @property
    def left(self) -> bool:
        """Whether anything waits or is out."""
        return bool(self._ready or self._out)

    def add(self, piece: Piece, work: Work, seed: int) -> None:
        self._ready.append((piece, work, seed))
        self._ready.sort(key=lambda ready: ready[0].rank)

    def send(self) -> None:
        """Send what is ready, as long as the page may have more calls out."""
        while self._ready and len(self._out) < self.at_once:
            piece, work, seed = self._ready.pop(0)
            run_id = secrets.token_urlsafe(18)
            self._out[piece] = (run_id, self.now())
            self.threads.submit(self._work, piece, work, run_id, seed)

    def wait(self, seconds: float) -> Done | None:
        """What the next call has brought that is still waited for; None where none has within these seconds."""
        try:
            done = self._inbox.get(timeout=max(seconds, 0.001))
        except queue.Empty:
            return self._unanswered()
        return done if self._out.pop(done.piece, None) is not None else None

    def arrived(self) -> Iterator[Done]:
        """What calls that are still waited for have brought by now."""
        while not self._inbox.empty():
            done = self._inbox.get()
            if self._out.pop(done.piece, None) is not None:
                yield done

    def _unanswered(self) -> Done | None:
        """A call that has been out for longer than one may be, and longer than its own limit."""
        now = self.now()
        for piece, (run_id, sent) in self._out.items():
            if now - sent > self.longest + _GRACE_SECONDS:
                del self._out[piece]
                self.threads.submit(self._cancel, [(piece.stage, run_id)])
                return Done(piece, (sent, now), error=LostError(f"no answer within {self.longest:g} s"))
        return None

    def drop(self) -> list[Piece]:
        """Cancel what is out, forget what waits; what both were, in order."""
        dropped = sorted([*self._out, *(piece for piece, _, _ in self._ready)], key=lambda piece: piece.rank)
        runs = [(piece.stage, run_id) for piece, (run_id, _) in self._out.items()]
        self._out.clear()
        self._ready.clear()
        if runs:
            self.threads.submit(self._cancel, runs)
        return dropped

    def stop(self) -> None:
        """Nobody waits any more."""
        self._over.set()
        self.drop()

    def _work(self, piece: Piece, work: Work, run_id: str, seed: int) -> None:
        if self._over.is_set():
            return
        begun = self.now()
        try:
            result = call_again(
                lambda: work(self._terms(run_id, seed)),
                lambda: self._over.is_set() or self.now() >= min(self.due, self.end),
                longest=self.patience,
                errors=(LostError, QueueFullError),
            )
        except Exception as error:
            self._inbox.put(Done(piece, (begun, self.now()), error=error))
        else:
            self._inbox.put(Done(piece, (begun, self.now()), result))

    def _terms(self, run_id: str, seed: int) -> Terms:
        now = self.now()
        goal = None if self.due == float("inf") else max(self.due - now, 0.01)
        seconds = max(min(self.due - now, self.end - now, self.longest), 0.01)
        return Terms(run_id=run_id, seed=seed, priority=self.priority, seconds=seconds, goal=goal)

    def _cancel(self, runs: list[tuple[Stage, str]]) -> None:
        for stage, run_id in runs:
            try:
                self.stages.cancel(stage, run_id)
            except Exception as error:
                log.info("a stage could not be told of its cancellation: %s", error)

"""Works batches off: all at once while nobody else waits for a model, and out of the way as soon as somebody does.

In a gap one request begins after the other, the more the longer it lasts: who comes in a short one finds few to be sent away, and
few prompts before his. A request of a batch that is under way when somebody comes is put back, and asked again in
the next gap, a few times at most; then it runs to its end, one at a time. Where there is no gap for long, one runs beside the
others. Knows no HTTP but the answers' statuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from nereid.serving.gateway.batches.asking import Answer
from nereid.serving.gateway.batches.files import STORAGE_FULL, StorageFullError
from nereid.serving.gateway.batches.lines import CheckedLines, Problem, checked, read_body
from nereid.serving.gateway.batches.load import Load
from nereid.serving.gateway.batches.states import State
from nereid.serving.gateway.batches.store import Batch, BatchStore

log = logging.getLogger("nereid.gateway")

PRIORITY = 9
"""Of a request that does not say: behind all others also within a model."""
UNLESS_SAID: dict[str, dict[str, Any]] = {"/v1/responses": {"store": False}}
"""By endpoint: an answer is in the batch's file; kept besides, a batch's would drive out those of conversations."""
MOST_PUT_BACK = 3
"""Times that a request is put back before it runs to its end, where no other one does."""
_POLL_SECONDS = 0.05
_LATER = {429, 499, 503}
"""Statuses of what may go well later."""
_LAST_PAUSE = 30.0
_REST_SECONDS = 10.0
"""Before a batch is tried again that failed as a whole."""
_SWEEP_SECONDS = 60.0
"""Between two looks for files whose time is over."""
_SHRINK = 0.9
_EXPIRED = {"code": "batch_expired", "message": "the completion window has passed before this request could be answered"}
_CANCELLED = {"code": "batch_cancelled", "message": "the batch was cancelled before this request was answered"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """A gap begins after `gap_seconds` without anybody; after `ramp_seconds` of it `at_once` requests run together, fewer before.

    One does after `starved_seconds` without a gap.
    """

    at_once: int = 8
    gap_seconds: float = 0.1
    ramp_seconds: float = 4.0
    starved_seconds: float = 10.0
    longest_gap_seconds: float = 2.0


@dataclass(slots=True, eq=False)
class _Running:
    task: asyncio.Task[Answer]
    batch: str
    place: int
    stays: bool
    """Whether it is not put back."""


@dataclass(slots=True, eq=False)
class BatchRunner:
    """One folder's; run by one process at a time. `ask` sends a path, a body, and the name of the batch's key."""

    store: BatchStore
    load: Load
    ask: Callable[[str, dict[str, Any], str], Awaitable[Answer]]
    pace: Pace = field(default_factory=Pace)
    put_back: int = 0
    """Requests, all in all."""
    _running: list[_Running] = field(default_factory=list)
    _put_back: dict[tuple[str, int], int] = field(default_factory=dict)
    _pause: float = 0.0
    _gap: float = field(init=False)
    """Grows where gaps turn out to be too short for the work that was begun in them, and shrinks where they do not."""
    _resume_at: float = 0.0
    _last_start: float = field(default_factory=time.monotonic)
    _resting: dict[tuple[str, State], float] = field(default_factory=dict)
    """Until when a batch is left alone, by its id and the state in which it could not be worked on."""
    _open: set[str] = field(default_factory=set)
    _sweep_at: float = 0.0

    def __post_init__(self) -> None:
        self._gap = self.pace.gap_seconds

    @property
    def running(self) -> int:
        """Requests that are under way."""
        return len(self._running)

    async def run(self) -> None:
        """Until it is cancelled; what is under way then is asked again by the next."""
        with (self.store.folder / "lock").open("w") as lock:
            while not _locked(lock.fileno()):  # the process before this one is still ending
                await asyncio.sleep(_POLL_SECONDS)
            try:
                await asyncio.to_thread(self.store.tidy)
            except Exception:  # what is left over harms nobody
                log.exception("what a process before this one has left could not be put in order")
            try:
                while True:
                    try:
                        busy = await self._round()
                    except Exception:
                        log.exception("a round of the batches has failed")
                        busy = False
                        await asyncio.sleep(1.0)
                    await self._wait(_POLL_SECONDS if busy else 5 * _POLL_SECONDS)
            finally:
                await self._stop(list(self._running))

    async def _wait(self, seconds: float) -> None:
        """Until something under way is done, somebody comes, or the time has passed."""
        coming = asyncio.ensure_future(self.load.came.wait())
        try:
            going = [coming, *(one.task for one in self._running)]
            await asyncio.wait(going, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            coming.cancel()
            self.load.came.clear()

    async def _round(self) -> bool:
        """Take in what is done, make room where somebody waits, begin what may begin; whether there is any work."""
        if self.load.inside:
            await self._make_room()
        await self._collect()
        if time.monotonic() >= self._sweep_at:
            await asyncio.to_thread(self.store.sweep)
            self._sweep_at = time.monotonic() + _SWEEP_SECONDS
        batches = await asyncio.to_thread(self.store.open_batches)
        self._forget_all_but({batch.id for batch in batches})
        for batch in batches:
            rest = batch.id, batch.status
            if time.monotonic() < self._resting.get(rest, 0.0):
                continue
            try:
                await self._move_on(batch)
                self._resting.pop(rest, None)
            except StorageFullError as error:
                log.warning("batch %s waits for room: %s", batch.id, error)
                self._resting[rest] = time.monotonic() + _REST_SECONDS
            except Exception:  # it is this batch's own: the others go on
                log.exception("batch %s cannot be worked on now; it is tried again in %g s", batch.id, _REST_SECONDS)
                self._resting[rest] = time.monotonic() + _REST_SECONDS
        return bool(batches)

    def _forget_all_but(self, opened: set[str]) -> None:
        """What is noted of batches that have ended, however that was."""
        if opened != self._open:
            self._open = opened
            self._resting = {rest: until for rest, until in self._resting.items() if rest[0] in opened}
            self._put_back = {request: times for request, times in self._put_back.items() if request[0] in opened}

    async def _move_on(self, batch: Batch) -> None:
        store, mine = self.store, [one for one in self._running if one.batch == batch.id]
        if batch.status is State.VALIDATING:
            try:
                found = await asyncio.to_thread(checked, store.path(batch.input_file), batch.endpoint)
            except OSError as error:
                log.error("batch %s: its file cannot be read", batch.id, exc_info=error)
                found = CheckedLines(problems=[Problem(message="the file cannot be read", param=None, line=None)])
            try:
                await asyncio.to_thread(store.begin, batch.id, found.lines, found.problems)
            except StorageFullError as error:
                full = Problem(message=str(error), param=None, line=None, code=STORAGE_FULL)
                await asyncio.to_thread(store.begin, batch.id, (), [full])
        elif batch.status is State.CANCELLING:
            await self._stop(mine)
            await asyncio.to_thread(store.finish, batch.id, State.CANCELLED, _CANCELLED)
        elif time.time() >= batch.expires_at and batch.completed + batch.failed < batch.total:
            await self._stop(mine)
            await asyncio.to_thread(store.finish, batch.id, State.EXPIRED, _EXPIRED)
        elif batch.completed + batch.failed == batch.total:
            await asyncio.to_thread(store.move, batch.id, State.FINALIZING, State.IN_PROGRESS)
            await asyncio.to_thread(store.finish, batch.id, State.COMPLETED, None)
        else:
            await self._begin(batch, [one.place for one in mine])

    # --- requests ---

    def _room(self) -> int:
        """Requests that may begin now."""
        now = time.monotonic()
        if now < self._resume_at:
            return 0
        gap = self.load.idle_seconds - self._gap
        if gap >= 0 and not self.load.inside:
            return self._together(gap) - len(self._running)
        starved = now - self._last_start >= self.pace.starved_seconds
        return 1 if starved and not self._running else 0

    def _together(self, gap: float) -> int:
        """Requests that may run together in a gap that has lasted so long: one or two in those that callers leave each other."""
        most, ramp = self.pace.at_once, self.pace.ramp_seconds
        return most if gap >= ramp else 1 + int((most - 1) * (gap / ramp) ** 2)

    async def _begin(self, batch: Batch, under_way: list[int]) -> None:
        room, beside = self._room(), self.load.inside > 0
        if room < 1:
            return
        await asyncio.to_thread(self.store.require_room, batch.owner)
        for place, start in await asyncio.to_thread(self.store.waiting, batch.id, room, under_way):
            body = await asyncio.to_thread(read_body, self.store.path(batch.input_file), start)
            for name, value in {"priority": PRIORITY, **UNLESS_SAID.get(batch.endpoint, {})}.items():
                if body.get(name) is None:
                    body[name] = value
            if self.load.inside and not beside:
                return  # somebody has come meanwhile
            often = self._put_back.get((batch.id, place), 0) >= MOST_PUT_BACK
            stays = beside or (often and not any(one.stays for one in self._running))
            task = asyncio.ensure_future(self.ask(batch.endpoint, body, batch.owner))
            self._running.append(_Running(task, batch.id, place, stays))
            self._last_start = time.monotonic()

    async def _make_room(self) -> None:
        """Somebody waits: what can be put back is."""
        going = [one for one in self._running if not (one.stays or one.task.done())]
        for one in going:
            key = one.batch, one.place
            self._put_back[key] = self._put_back.get(key, 0) + 1
        self.put_back += len(going)
        if going:
            self._gap = min(2 * self._gap, self.pace.longest_gap_seconds)
        await self._stop(going)

    async def _stop(self, going: list[_Running]) -> None:
        """Cancel them, and wait until the server knows."""
        for one in going:
            one.task.cancel()
        await asyncio.gather(*(one.task for one in going), return_exceptions=True)
        await self._collect()

    async def _collect(self) -> None:
        for one in [one for one in self._running if one.task.done()]:
            self._running.remove(one)
            if one.task.cancelled():
                continue
            if (error := one.task.exception()) is not None:
                log.error("a request of batch %s has failed", one.batch, exc_info=error)
                await self._note(one, Answer(500, "", {"error": {"message": "internal error", "type": "server_error"}}))
            elif (answer := one.task.result()).status in _LATER:
                self._pause = min(max(2 * self._pause, 0.5), _LAST_PAUSE)
                self._resume_at = time.monotonic() + self._pause
            else:
                self._pause = 0.0
                if not one.stays:
                    self._gap = max(self._gap * _SHRINK, self.pace.gap_seconds)
                await self._note(one, answer)

    async def _note(self, one: _Running, answer: Answer) -> None:
        response = {"status_code": answer.status, "request_id": answer.request_id, "body": answer.body}
        told = {"response": response, "error": None}
        await asyncio.to_thread(self.store.answer, one.batch, one.place, told, ok=answer.status == 200)
        self._put_back.pop((one.batch, one.place), None)


def _locked(descriptor: int) -> bool:
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False

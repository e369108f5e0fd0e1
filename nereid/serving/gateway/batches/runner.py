"""Works batches off: all at once while nobody else waits for a model, and out of the way as soon as somebody does.

In a gap one request begins after the other, the more the longer it lasts: who comes in a short one finds few prompts before his.
While somebody waits, nothing begins, and those under way make room (nereid.serving.gateway.batches.under_way). Where there is no
gap for long, one runs beside the others. Knows no HTTP but the answers' statuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from nereid.flow.tickets import USUAL_PRIORITY
from nereid.serving.gateway.batches.asking import Answer
from nereid.serving.gateway.batches.files import STORAGE_FULL, StorageFullError
from nereid.serving.gateway.batches.lines import Problem, read_body
from nereid.serving.gateway.batches.load import Load
from nereid.serving.gateway.batches.pace import Pace
from nereid.serving.gateway.batches.states import State
from nereid.serving.gateway.batches.store import Batch, BatchStore
from nereid.serving.gateway.batches.trouble import TroubleLog
from nereid.serving.gateway.batches.under_way import Request, UnderWay, yields_of
from nereid.serving.gateway.batches.validating import Validating

log = logging.getLogger("nereid.gateway")

PRIORITY = 9
"""Of a request that does not say: behind all others also within a model."""
UNLESS_SAID: dict[str, dict[str, Any]] = {"/v1/responses": {"store": False}}
"""By endpoint: an answer is in the batch's file; kept besides, a batch's would drive out those of conversations."""
_PICTURES = "/v1/images/"
"""Endpoints of models that set nothing aside."""
_POLL_SECONDS = 0.05
_LOOK_SECONDS = 0.5
"""Between two looks at the store while somebody waits for a model: what is found can hardly be acted on."""
_REST_SECONDS = 10.0
"""Before a batch is tried again that failed as a whole."""
_AGAIN_SECONDS = 1.0
"""Before the folder is looked at again where that failed."""
_SWEEP_SECONDS = 60.0
"""Between two looks for files whose time is over."""
_TIDY_SECONDS = 3600.0
"""Between two looks for what a process that was killed has left: the next one begins while it is still new."""
_EXPIRED = {"code": "batch_expired", "message": "the completion window has passed before this request could be answered"}
_CANCELLED = {"code": "batch_cancelled", "message": "the batch was cancelled before this request was answered"}


@dataclass(slots=True, eq=False)
class BatchRunner:
    """One folder's; run by one process at a time. `ask` sends a path, a body, and the name of the batch's key.

    `text_model`: the Triton model of a language model's name, or of none where one is served; it sets requests aside that yield.
    """

    store: BatchStore
    load: Load
    ask: Callable[[str, dict[str, Any], str], Awaitable[Answer]]
    pace: Pace = field(default_factory=Pace)
    text_model: Callable[[object], str | None] = lambda name: None
    under_way: UnderWay = field(init=False)
    _validating: Validating = field(init=False)
    _trouble: TroubleLog = field(init=False)
    _last_start: float = field(default_factory=time.monotonic)
    _resting: dict[tuple[str, State], float] = field(default_factory=dict)
    """Until when a batch is left alone, by its id and the state in which it could not be worked on."""
    _open: set[str] = field(default_factory=set)
    _look_at: float = 0.0
    _sweep_at: float = 0.0
    _tidy_at: float = 0.0
    _has_forgotten: bool = True
    """Whether the last look for what is not needed any more could delete it."""

    def __post_init__(self) -> None:
        self._trouble = TroubleLog(self.store.folder)
        self.under_way = UnderWay(self.load, self.pace, self._note, self._trouble)
        self._validating = Validating(self.store)

    async def run(self) -> None:
        """Until it is cancelled; what is under way then is asked again by the next."""
        with await self._lock() as lock:
            while not _locked(lock.fileno()):  # the process before this one is still ending
                await asyncio.sleep(_POLL_SECONDS)
            attending = asyncio.ensure_future(self._attend())
            try:
                while True:
                    try:
                        busy = await self._round()
                    except Exception as error:
                        self._trouble.failed("batches are not worked on", error)
                        busy = False
                        await asyncio.sleep(_AGAIN_SECONDS)
                    await self._wait(_POLL_SECONDS if busy else 5 * _POLL_SECONDS)
            finally:
                attending.cancel()
                await asyncio.gather(attending, return_exceptions=True)
                await self.under_way.stop()

    async def _lock(self) -> IO[str]:
        """The file that is locked, once the folder has one."""
        while True:
            try:
                return self.store.lock_file.open("a")
            except OSError as error:
                self._trouble.failed("batches are not worked on", error)
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _attend(self) -> None:
        """Make room as soon as somebody comes, whatever a round is about."""
        while True:
            await self.load.came.wait()
            self.load.came.clear()
            try:
                if self.load.inside:
                    await self.under_way.make_room()
            except Exception:
                log.exception("requests of batches could not be put back")

    async def _wait(self, seconds: float) -> None:
        """Until something under way is done, or the time has passed; not at all where files are being looked at."""
        if self._validating and not self.load.inside:
            return
        if tasks := self.under_way.tasks:
            await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(seconds)

    async def _round(self) -> bool:
        """Take in what is done, begin what may begin; whether there is any work."""
        await self.under_way.collect()
        if self.load.inside:
            await self.under_way.make_room()
        if self.load.inside and time.monotonic() < self._look_at:
            return True
        self._look_at = time.monotonic() + _LOOK_SECONDS
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + _SWEEP_SECONDS
            await self._forget()
        batches = await asyncio.to_thread(self.store.open_batches)
        self._forget_all_but({batch.id for batch in batches})
        checked = {batch.id for batch in await self._validating.choose([b for b in batches if b.status is State.VALIDATING])}
        for batch in batches:
            rest = batch.id, batch.status
            if time.monotonic() < self._resting.get(rest, 0.0):
                continue
            try:
                if batch.status is not State.VALIDATING:
                    await self._move_on(batch)
                elif batch.id in checked:
                    await self._validate(batch)
                self._resting.pop(rest, None)
            except StorageFullError as error:
                log.warning("batch %s waits for room: %s", batch.id, error)
                self._resting[rest] = time.monotonic() + _REST_SECONDS
            except Exception as error:  # it is this batch's own: the others go on
                self._trouble.failed(f"batch {batch.id} cannot be worked on now", error)
                self._resting[rest] = time.monotonic() + _REST_SECONDS
        if self._has_forgotten and not self._resting and self.under_way.keeps_all:
            self._trouble.well()
        return bool(batches)

    async def _forget(self) -> None:
        """Files and batches whose time is over, and now and then what a process that was killed has left."""
        tidies = time.monotonic() >= self._tidy_at
        if tidies:
            self._tidy_at = time.monotonic() + _TIDY_SECONDS
        self._has_forgotten = True
        for forget in (self.store.sweep, self.store.forget_ended, *((self.store.tidy,) if tidies else ())):
            try:
                await asyncio.to_thread(forget)
            except Exception as error:  # it is tried again, and batches go on
                self._has_forgotten = False
                self._trouble.failed("what is not needed any more could not be deleted", error)

    def _forget_all_but(self, opened: set[str]) -> None:
        """What is noted of batches that have ended, however that was."""
        if opened != self._open:
            self._open = opened
            self._resting = {rest: until for rest, until in self._resting.items() if rest[0] in opened}
            self.under_way.forget_all_but(opened)

    async def _validate(self, batch: Batch) -> None:
        """Look at a part of its file; after the last one it begins, or has failed."""
        store = self.store
        if (found := await self._validating.go_on(batch)) is None:
            return
        try:
            await asyncio.to_thread(store.begin, batch.id, found.lines, found.problems)
        except StorageFullError as error:
            full = Problem(message=str(error), param=None, line=None, code=STORAGE_FULL)
            await asyncio.to_thread(store.begin, batch.id, (), [full])
        finally:
            self._validating.end(batch.id)

    async def _move_on(self, batch: Batch) -> None:
        store = self.store
        if batch.status is State.CANCELLING:
            await self.under_way.stop(batch.id)
            await asyncio.to_thread(store.finish, batch.id, State.CANCELLED, _CANCELLED)
        elif time.time() >= batch.expires_at and batch.completed + batch.failed < batch.total:
            await self.under_way.stop(batch.id)
            await asyncio.to_thread(store.finish, batch.id, State.EXPIRED, _EXPIRED)
        elif batch.completed + batch.failed == batch.total:
            await asyncio.to_thread(store.move, batch.id, State.FINALIZING, State.IN_PROGRESS)
            await asyncio.to_thread(store.finish, batch.id, State.COMPLETED, None)
        else:
            await self._begin(batch, self.under_way.places(batch.id))

    # --- requests ---

    def _room(self) -> int:
        """Requests that may begin now."""
        now = time.monotonic()
        if now < self.under_way.resume_at:
            return 0
        gap = self.load.idle_seconds - self.under_way.gap
        if gap >= 0 and not self.load.inside:
            return self.pace.together(gap) - len(self.under_way)
        starved = now - self._last_start >= self.pace.starved_seconds
        return 1 if starved and not self.under_way else 0

    async def _begin(self, batch: Batch, under_way: Sequence[int]) -> None:
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
            asked, model = self.ask(batch.endpoint, body, batch.owner), self._sets_aside(batch.endpoint, body)
            self.under_way.begin((batch.id, place), asked, model, beside=beside)
            self._last_start = time.monotonic()

    def _sets_aside(self, endpoint: str, body: Mapping[str, Any]) -> str | None:
        """The model that does so with this request while callers are inside; None: it is put back."""
        is_text = not endpoint.startswith(_PICTURES)
        return self.text_model(body.get("model")) if is_text and yields_of(body, USUAL_PRIORITY) else None

    async def _note(self, request: Request, answer: Answer) -> None:
        response = {"status_code": answer.status, "request_id": answer.request_id, "body": answer.body}
        told = {"response": response, "error": None}
        await asyncio.to_thread(self.store.answer, *request, told, ok=answer.status == 200)


def _locked(descriptor: int) -> bool:
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False

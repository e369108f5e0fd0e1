"""Requests of batches that are under way, and how they get out of the way of callers.

A language model sets them aside by itself while callers of its own are inside: nothing is sent for it, and nothing computed
again. Whatever else a caller asks, requests are put back: cancelled, and asked again in the next gap, a few times at most; then
one of them at a time runs to its end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nereid.serving.gateway.batches.asking import Answer
from nereid.serving.gateway.batches.load import Load
from nereid.serving.gateway.batches.pace import Pace
from nereid.serving.gateway.batches.trouble import TroubleLog

log = logging.getLogger("nereid.gateway")

MOST_PUT_BACK = 3
"""Times that a request is put back before it runs to its end, where no other one does."""
_LATER = {429, 499, 503}
"""Statuses of what may go well later."""
_TIMEOUT = 504
_LAST_PAUSE = 30.0
_SHRINK = 0.9

Request = tuple[str, int]
"""A batch's id, and a request's place in it."""


@dataclass(slots=True, eq=False)
class _One:
    task: asyncio.Task[Answer]
    request: Request
    stays: bool
    """Whether it is not put back."""
    model: str | None
    """The one that sets it aside while callers are inside; None: it is put back."""
    taken: bool = False
    """Whether its answer is being noted."""

    @property
    def is_ending(self) -> bool:
        """Whether it is done, or is being cancelled."""
        return self.task.done() or self.task.cancelling() > 0


@dataclass(slots=True, eq=False)
class UnderWay:
    """Used by one event loop. `note` keeps an answer."""

    load: Load
    pace: Pace
    note: Callable[[Request, Answer], Awaitable[None]]
    trouble: TroubleLog
    put_back: int = 0
    """Requests, all in all."""
    gap: float = field(init=False)
    """Grows where gaps turn out to be too short for the work that was begun in them, and shrinks where they do not."""
    resume_at: float = 0.0
    """Until when the server is asked nothing, for it could take no more."""
    _going: list[_One] = field(default_factory=list)
    _times: dict[Request, int] = field(default_factory=dict)
    """How often a request was put back."""
    _unkept: set[Request] = field(default_factory=set)
    """Those whose last answer the folder has not taken."""
    _pause: float = 0.0
    _collecting: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.gap = self.pace.gap_seconds

    def __len__(self) -> int:
        return len(self._going)

    @property
    def keeps_all(self) -> bool:
        """Whether no answer waits for a folder that takes it."""
        return not self._unkept

    @property
    def tasks(self) -> list[asyncio.Task[Answer]]:
        return [one.task for one in self._going if not one.taken]

    def places(self, batch: str) -> list[int]:
        """Of a batch's requests."""
        return [one.request[1] for one in self._going if one.request[0] == batch]

    def begin(self, request: Request, asked: Awaitable[Answer], model: str | None, *, beside: bool) -> None:
        """Ask one; `beside` callers: it is not put back."""
        often = self._times.get(request, 0) >= MOST_PUT_BACK
        stays = beside or (often and not any(one.stays for one in self._going))
        self._going.append(_One(asyncio.ensure_future(asked), request, stays, model))

    async def make_room(self) -> None:
        """Somebody waits: what is in his way is put back."""
        going = [one for one in self._going if not (one.stays or one.is_ending or self._is_set_aside(one))]
        for one in going:
            self._times[one.request] = self._times.get(one.request, 0) + 1
        self.put_back += len(going)
        if going:
            self.gap = min(2 * self.gap, self.pace.longest_gap_seconds)
        await self._stop(going)

    def _is_set_aside(self, one: _One) -> bool:
        return one.model is not None and not self.load.elsewhere(one.model)

    async def stop(self, batch: str | None = None) -> None:
        """Cancel those of a batch, or all, and wait until the server knows."""
        await self._stop([one for one in self._going if batch in (None, one.request[0])])

    async def _stop(self, going: Sequence[_One]) -> None:
        for one in going:
            one.task.cancel()
        await asyncio.gather(*(one.task for one in going), return_exceptions=True)
        await self.collect()

    async def collect(self) -> None:
        """Take in what is done. What is being noted is under way until it has been."""
        async with self._collecting:  # who stops a batch waits for the answers that another notes just now
            for one in [one for one in self._going if one.task.done()]:
                one.taken = True
                try:
                    await self._collect(one)
                finally:
                    self._going.remove(one)

    async def _collect(self, one: _One) -> None:
        if one.task.cancelled():
            return
        if (error := one.task.exception()) is not None:
            log.error("a request of batch %s has failed", one.request[0], exc_info=error)
            answer = Answer(500, "", {"error": {"message": "internal error", "type": "server_error"}})
        elif (answer := one.task.result()).status in _LATER:
            self._pause_a_while()
            return
        elif answer.status == _TIMEOUT and self._times.get(one.request, 0) < MOST_PUT_BACK:
            self._times[one.request] = self._times.get(one.request, 0) + 1  # it has waited for callers, perhaps
            return
        elif not one.stays:
            self.gap = max(self.gap * _SHRINK, self.pace.gap_seconds)
        try:
            await self.note(one.request, answer)
        except Exception as error:  # no space is left, say: it is asked again, and so would be all begun before there is some
            self._unkept.add(one.request)
            self.trouble.failed(f"an answer of batch {one.request[0]} cannot be kept, its request is asked again later", error)
            self._pause_a_while()
            return
        self._pause = 0.0
        self._unkept.discard(one.request)
        self._times.pop(one.request, None)

    def _pause_a_while(self) -> None:
        """Longer than the last time; those that run together and fail together count once."""
        if time.monotonic() >= self.resume_at:
            self._pause = min(max(2 * self._pause, 0.5), _LAST_PAUSE)
            self.resume_at = time.monotonic() + self._pause

    def forget_all_but(self, batches: set[str]) -> None:
        """What is noted of batches that have ended, however that was."""
        self._times = {request: times for request, times in self._times.items() if request[0] in batches}
        self._unkept = {request for request in self._unkept if request[0] in batches}


def yields_of(body: Mapping[str, Any], usual: int) -> bool:
    """Whether a request's priority puts it behind those of callers who say nothing."""
    priority = body.get("priority")
    return isinstance(priority, int) and priority > usual

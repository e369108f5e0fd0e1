"""Requests that are drawn now, by key: how far they are, and how they are interrupted; knows no HTTP.

Each picture is watched as a stream, so that progress is the run's own steps. Pictures of a batch are drawn together, batches one
after another.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from numpy.typing import NDArray

from nereid.serving.gateway.images import Drawing
from nereid.serving.gateway.waiting import all_of
from nereid_client import AsyncClient, ImageResult
from nereid_client.errors import ServerError


@dataclass(frozen=True, slots=True)
class Preview:
    """uint8 height x width x 3; one of its pixels is `scale` of the picture's wide."""

    pixels: NDArray
    scale: int


@dataclass(slots=True, eq=False)
class Job:
    """One request of so many `batches`, of which `batch` is under way; used by one event loop."""

    batches: int
    batch: int = 0
    interrupted: bool = False
    skipped: bool = False
    """Whether the batch under way has been ended; the next ones are drawn."""
    preview: Preview | None = None
    begun: float = field(default_factory=time.monotonic)
    began_at: float = field(default_factory=time.time)
    _steps: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Of the batch's pictures: steps done, and steps in all."""
    _tasks: list[asyncio.Task[ImageResult]] = field(default_factory=list)

    @property
    def step(self) -> tuple[int, int]:
        """Steps done, and in all, of the picture of this batch that is behind all others; none in all: not begun."""
        if not self._tasks or len(self._steps) < len(self._tasks):
            return 0, max((steps for _, steps in self._steps.values()), default=0)
        return min(self._steps.values(), key=lambda item: item[0] / max(1, item[1]))

    @property
    def share(self) -> float:
        """How much of all is done, 0 to 1."""
        done, steps = self.step
        return (self.batch + (done / steps if steps else 0.0)) / self.batches

    async def draw(self, client: AsyncClient, batches: Sequence[Sequence[Drawing]], request_id: str) -> list[ImageResult]:
        """All pictures but those that were not done when they were skipped, or all were interrupted.

        Raises NereidError; cancelling it cancels all runs.
        """
        made: list[ImageResult] = []
        for number, drawings in enumerate(batches):
            if self.interrupted:
                break
            self.batch, self._steps, self.skipped = number, {}, False
            self._tasks = [
                asyncio.ensure_future(self._one(client, place, drawing, request_id)) for place, drawing in enumerate(drawings)
            ]
            try:
                made += await all_of(self._tasks)
            except asyncio.CancelledError:
                if _is_cancelled() or not (self.interrupted or self.skipped):
                    raise
                made += [task.result() for task in self._tasks if not task.cancelled() and task.exception() is None]
        return made

    async def _one(self, client: AsyncClient, place: int, drawing: Drawing, request_id: str) -> ImageResult:
        made: ImageResult | None = None
        stream = client.stream_image(drawing.prompt, request_id=request_id, **drawing.options)
        async with contextlib.aclosing(stream) as answers:
            async for answer in answers:  # to its end: a stream that is left cancels its run
                if isinstance(answer, ImageResult):
                    made = answer
                    _, steps = self._steps.get(place, (0, 1))
                    self._steps[place] = steps, steps
                else:
                    self._steps[place] = drawing.steps(answer)
                    self.preview = Preview(answer.preview, answer.preview_scale)
        if made is None:
            raise ServerError("the stream ended without its image")
        return made

    def interrupt(self) -> None:
        """End the runs that are under way; no further ones begin."""
        self.interrupted = True
        self._end()

    def skip(self) -> None:
        """End the batch that is under way, where there is one."""
        self.skipped = bool(self._tasks)
        self._end()

    def _end(self) -> None:
        for task in self._tasks:
            task.cancel()


def _is_cancelled() -> bool:
    """Whether somebody has cancelled this task itself, and not only what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@dataclass(slots=True, eq=False)
class Jobs:
    """Those under way, oldest first, by the name of the key that they came with."""

    _by_owner: dict[str, list[Job]] = field(default_factory=dict)

    @contextlib.contextmanager
    def running(self, owner: str, job: Job) -> Iterator[None]:
        """It can be seen and interrupted for as long as this lasts."""
        self._by_owner.setdefault(owner, []).append(job)
        try:
            yield
        finally:
            self._by_owner[owner].remove(job)
            if not self._by_owner[owner]:
                del self._by_owner[owner]

    def of(self, owner: str) -> list[Job]:
        return list(self._by_owner.get(owner, ()))

"""Those who watch a run: told of its steps, with previews, and of its end; knows batcher and decoder only as callables."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.images import preview, to_pixels
from nereid.diffusion.state import ImageTask, Snapshot
from nereid.diffusion.vae_tiles import Array, decode_latents
from nereid.flow.errors import DeadlineError, RequestError
from nereid.flow.runs import RunState

log = logging.getLogger(__name__)

Outputs = Mapping[str, np.ndarray]

PreviewDecode = Callable[[Array, float], Array]
"""The tiny decoder: latents 1 x C x h x w, and the seconds that it may take, to an image 1 x 3 x H x W; raises RequestError."""

HOLD_SECONDS = 2.0
"""A watch is answered by then, with or without news: whoever watches sees from it that this process lives."""
PREVIEW_CALLS = 4
"""Threads that call the decoder: one at a time does, and others may wait for an answer that died with its process."""
PREVIEW_SECONDS = 1.0
"""Where a preview is not decoded by then, waiting for those before it included, it is made of the latents alone."""
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 2.0, 60.0
"""After a decoder that failed or was too slow, previews are made of the latents alone for so long; each time in a row doubles it:
what a call began goes on in the engine, whoever has given up waiting, and requests' pictures wait for it."""
_ENDED_BYTES, _ENDED_SECONDS = 64 * 2**20, 10.0
"""What the last steps of ended runs, kept for their watchers, may hold together, and for how long they are kept."""


@dataclass(slots=True, eq=False)
class _Watch:
    run_id: str
    after_step: int
    reply: Callable[[Outputs], None]
    answer_by: float


@dataclass(slots=True, eq=False)
class Watchers:
    """`state` and `find` ask for a run by its id. Answers are made and sent on threads of their own.

    Previews are decoded one at a time by `decode`, where there is one, and made of the latents alone where that fails.
    """

    state: Callable[[str], RunState]
    find: Callable[[str], ImageTask | None]
    latents_to_rgb: Sequence[Sequence[float]]
    vae_scale_factor: int = 8
    decode: PreviewDecode | None = None
    _decode_from: float = 0.0
    _failures: int = 0
    _open: list[_Watch] = field(default_factory=list)
    _ended: OrderedDict[str, tuple[float, ImageTask]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _news: threading.Event = field(default_factory=threading.Event)
    _stopping: bool = False
    _senders: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "denoise-watch"))
    _painter: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "denoise-preview"))
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._answer_forever, name="denoise-watchers", daemon=True)
        self._thread.start()

    @property
    def decodes(self) -> bool:
        """Whether previews are decoded."""
        return self.decode is not None

    def ask(self, run_id: str, after_step: int | None, reply: Callable[[Outputs], None]) -> None:
        """Answer at once, or (with `after_step`) when the run is beyond that step, has ended, or nothing was new for long."""
        if after_step is None:
            self._senders.submit(reply, state_outputs(self.state(run_id)))
            return
        if (task := self.find(run_id)) is not None:
            task.watched = True
        with self._lock:
            self._open.append(_Watch(run_id, after_step, reply, time.monotonic() + HOLD_SECONDS))
        self._news.set()

    def notice(self) -> None:
        """Something has moved or ended; cheap, for the tick thread."""
        if self._open:
            self._news.set()

    def ended(self, task: ImageTask) -> None:
        """A run is over: its last steps are kept a while, for those who watch are told of each."""
        now = time.monotonic()
        if task.watched:
            with self._lock:
                self._ended[task.request.run_id] = (now, task)
                self._drop(now)
            self._news.set()
        self.notice()

    def _drop(self, now: float) -> None:
        """Forget ended runs whose time is over, and the oldest where they hold too much; the newest stays."""
        held = sum(task.snapshot_bytes for _, task in self._ended.values())
        for run_id, (ended, task) in list(self._ended.items()):
            if ended >= now - _ENDED_SECONDS and (held <= _ENDED_BYTES or len(self._ended) == 1):
                return
            del self._ended[run_id]
            held -= task.snapshot_bytes

    def stop(self) -> None:
        self._stopping = True
        self._news.set()
        self._thread.join()
        self._painter.shutdown(wait=True)
        self._senders.shutdown(wait=True)

    def _answer_forever(self) -> None:
        while not self._stopping:
            self._news.wait(0.1 if self._open else _ENDED_SECONDS if self._ended else None)
            self._news.clear()
            with self._lock:
                self._drop(time.monotonic())
                watches, self._open = self._open, []
            kept = [watch for watch in watches if not self._answer(watch)]
            with self._lock:
                self._open.extend(kept)
        for watch in self._open:
            watch.reply(state_outputs(RunState.UNKNOWN))

    def _answer(self, watch: _Watch) -> bool:
        """True where there was something to say."""
        state = self.state(watch.run_id)
        task = self.find(watch.run_id) or self._ended.get(watch.run_id, (0.0, None))[1]
        snapshot = task.snapshot_after(watch.after_step) if task is not None else None
        if task is not None and snapshot is not None:
            # Who watches a stream waits for the picture after the last step, and not for a preview of it.
            if self.decode is not None and snapshot.step < task.end:
                self._painter.submit(self._decoded, self.decode, watch, state, task, snapshot, time.monotonic() + PREVIEW_SECONDS)
            else:
                self._senders.submit(self._show, watch, state, task, snapshot)
        elif state in (RunState.DONE, RunState.FAILED) or time.monotonic() >= watch.answer_by:
            self._senders.submit(watch.reply, state_outputs(state))
        else:
            return False
        return True

    def _decoded(
        self, decode: PreviewDecode, watch: _Watch, state: RunState, task: ImageTask, snapshot: Snapshot, until: float
    ) -> None:
        def proceed() -> None:
            if time.monotonic() >= until:
                raise DeadlineError("there was no time left for it")

        def call(latents: Array) -> Array:
            return decode(latents, until - time.monotonic())

        picture = None
        if time.monotonic() >= self._decode_from:
            try:
                picture = to_pixels(decode_latents(snapshot.sample[None], task.request.tiling, call, proceed))[0]
                self._failures = 0
            except DeadlineError:
                pass  # many are watched, or the picture is large
            except RequestError as error:
                if not self._failures:
                    log.warning("a preview could not be decoded (%s); for a while they are made of the latents alone", error)
                self._decode_from = time.monotonic() + min(PAUSE_SECONDS * 2**self._failures, LONGEST_PAUSE_SECONDS)
                self._failures += 1
            except Exception:
                log.exception("a preview could not be decoded")
        self._senders.submit(self._show, watch, state, task, snapshot, picture)

    def _show(
        self, watch: _Watch, state: RunState, task: ImageTask, snapshot: Snapshot, decoded: NDArray[np.uint8] | None = None
    ) -> None:
        picture = preview(snapshot.sample, self.latents_to_rgb) if decoded is None else decoded
        watch.reply(
            {
                **state_outputs(state),
                "step": np.array([[snapshot.step]], np.int32),
                "num_inference_steps": np.array([[task.end]], np.int32),
                "preview": picture[None],
                "preview_scale": np.array([[self.vae_scale_factor if decoded is None else 1]], np.int32),
            }
        )


def state_outputs(state: RunState) -> dict[str, np.ndarray]:
    return {"run_state": np.array([[state.encode()]], np.object_)}

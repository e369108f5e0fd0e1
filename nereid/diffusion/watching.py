"""Those who watch a run: told of its steps, with previews, and of its end; knows the batcher only as somebody to ask."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from nereid.diffusion.images import preview
from nereid.diffusion.state import ImageTask, Snapshot
from nereid.flow.runs import RunState

Outputs = Mapping[str, np.ndarray]

HOLD_SECONDS = 2.0
"""A watch is answered by then, with or without news: whoever watches sees from it that this process lives."""
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
    """`state` and `find` ask for a run by its id. Answers are made and sent on threads of their own."""

    state: Callable[[str], RunState]
    find: Callable[[str], ImageTask | None]
    latents_to_rgb: Sequence[Sequence[float]]
    _open: list[_Watch] = field(default_factory=list)
    _ended: OrderedDict[str, tuple[float, ImageTask]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _news: threading.Event = field(default_factory=threading.Event)
    _stopping: bool = False
    _senders: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "denoise-watch"))
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._answer_forever, name="denoise-watchers", daemon=True)
        self._thread.start()

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
            self._senders.submit(self._show, watch, state, task, snapshot)
        elif state in (RunState.DONE, RunState.FAILED) or time.monotonic() >= watch.answer_by:
            self._senders.submit(watch.reply, state_outputs(state))
        else:
            return False
        return True

    def _show(self, watch: _Watch, state: RunState, task: ImageTask, snapshot: Snapshot) -> None:
        picture = preview(snapshot.sample, self.latents_to_rgb)
        watch.reply(
            {
                **state_outputs(state),
                "step": np.array([[snapshot.step]], np.int32),
                "num_inference_steps": np.array([[task.end]], np.int32),
                "preview": picture[None],
            }
        )


def state_outputs(state: RunState) -> dict[str, np.ndarray]:
    return {"run_state": np.array([[state.encode()]], np.object_)}

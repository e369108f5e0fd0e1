"""Which ended runs are still being decoded elsewhere: for whoever asks or cancels, such a run has not ended yet.

A large picture is decoded by many tiles after its run is done. `image_output` says so between two of them. A process of
`image_output` that dies takes its late answers with it: the runs that were done while it lived are unknown from then on, so
that who waits for their pictures asks anew; so are those that were sent while no such process lived, once one does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from nereid.flow.runs import RunState

HELD_SECONDS = 120.0
"""Nothing said for so long, which is more than a tile takes: the decoding has ended, one way or the other."""


@dataclass(slots=True)
class _Picture:
    """`told`: `image_output` has said that it is at it."""

    said: float
    decoders: frozenset[int]
    told: bool = False
    cancelled: bool = False


@dataclass(slots=True, eq=False)
class PicturesDecoded:
    """Given a run's id and the state that the batcher has for it, its state for others. Safe to use from several threads.

    `decoders` are the processes that live of the model that decodes.
    """

    decoders: Callable[[], frozenset[int]]
    clock: Callable[[], float] = time.monotonic
    _held: dict[str, _Picture] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, run_id: str) -> None:
        """The run is done, and its latents are on their way to the decoder."""
        if run_id:
            with self._lock:
                self._drop()
                self._held[run_id] = _Picture(self.clock(), self.decoders())

    def goes_on(self, run_id: str, state: RunState) -> RunState:
        """Its picture is being decoded: RUNNING, or FAILED where it was cancelled meanwhile."""
        with self._lock:
            self._drop()
            if state is not RunState.DONE:
                return state  # given up, or begun anew by its caller
            held = self._held.setdefault(run_id, _Picture(self.clock(), frozenset()))
            held.said, held.told, held.decoders = self.clock(), True, self.decoders()
            return RunState.FAILED if held.cancelled else RunState.RUNNING

    def forget(self, run_id: str) -> None:
        """A run of this id begins anew."""
        with self._lock:
            self._held.pop(run_id, None)

    def cancel(self, run_id: str, state: RunState) -> RunState:
        """What the run was until now."""
        before = self.state(run_id, state)
        with self._lock:
            if state is RunState.DONE and before is RunState.RUNNING and run_id in self._held:
                self._held[run_id].cancelled = True
        return before

    def state(self, run_id: str, state: RunState) -> RunState:
        with self._lock:
            self._drop()
            held = self._held.get(run_id)
            if state is not RunState.DONE or held is None:
                return state
            if held.cancelled:
                return RunState.FAILED
            alive = self.decoders()
            # Sent while none lived, it went to a process that was dead already: Triton may never answer that either.
            if held.decoders - alive or (alive and not held.decoders):
                return RunState.UNKNOWN
            return RunState.RUNNING if held.told else RunState.DONE

    def _drop(self) -> None:
        now = self.clock()
        self._held = {name: held for name, held in self._held.items() if held.said + HELD_SECONDS >= now}

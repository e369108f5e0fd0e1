"""An engine in a process of its own, called with arrays, each call a future; knows neither what it computes nor who asks.

For models whose calls are so short that a hop through Triton would cost as much as a call. The process is a Worker's: a native
crash ends it alone, and it is replaced.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nereid.engines.channel import Message
from nereid.engines.worker import Worker, WorkerOptions
from nereid.flow.errors import EngineError, LostError, RequestError
from nereid.flow.state_folder import set_worker_down
from nereid_protocol.errors import WireError

CALL, MADE, FAILED = "call", "made", "failed"

Arrays = Mapping[str, np.ndarray]


@dataclass(slots=True, eq=False)
class EngineProcess:
    """Started when made; `wait_ready` raises ValueError where it cannot be. `call` is safe from several threads.

    `told_death` is called for each process that was lost, on a thread of the worker's.
    """

    options: WorkerOptions
    told_death: Callable[[], None] = lambda: None
    down_since: float | None = None
    """On the monotonic clock, since when there has been no process; None while there is one."""
    _worker: Worker = field(init=False)
    _open: dict[int, Future[Arrays]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.down_since = time.monotonic()
        self._worker = Worker(self.options, self)

    @property
    def pid(self) -> int | None:
        return self._worker.pid

    def wait_ready(self) -> None:
        """Wait for the first process; raises ValueError with its sentence, after which there is none."""
        try:
            self._worker.wait_ready()
        except ValueError:
            self._worker.stop()
            raise

    def call(self, inputs: Arrays, outputs: Sequence[str], graph: str = "") -> Future[Arrays]:
        """A future of the wanted outputs, of one of its `others` by `graph`'s name.

        It fails with the engine's RequestError, with LostError where the process is gone.
        """
        future: Future[Arrays] = Future()
        with self._lock:
            if self.down_since is not None:
                future.set_exception(LostError(f"{self.options.name}: its engine's process is being replaced"))
                return future
            number = next(self._numbers)
            self._open[number] = future
            try:
                self._worker.send(Message(CALL, {"number": number, "outputs": list(outputs), "graph": str(graph)}, inputs))
            except ValueError as error:  # it is too large
                del self._open[number]
                future.set_exception(EngineError(f"{self.options.name}: {error}"))
        return future

    def stop(self) -> None:
        """End the process; calls that are out fail."""
        self._worker.stop()
        self._fail("has been stopped")

    # --- the worker's keeper tells ---

    def ready(self, facts: Mapping[str, Any]) -> None:
        with self._lock:
            self.down_since = None
        set_worker_down(self.options.name, False)

    def message(self, message: Message) -> None:
        with self._lock:
            future = self._open.pop(int(message.body["number"]), None)
        if future is None:
            return
        if message.kind == MADE:
            future.set_result(message.arrays)
            return
        wire = WireError.parse(message.body["error"])
        future.set_exception(LostError(message.body["error"]) if wire is None else RequestError.of_wire(wire))

    def died(self, reason: str) -> None:
        set_worker_down(self.options.name, True)
        self._fail(reason)
        self.told_death()

    def _fail(self, reason: str) -> None:
        with self._lock:
            self.down_since = time.monotonic() if self.down_since is None else self.down_since
            lost, self._open = list(self._open.values()), {}
        for future in lost:
            future.set_exception(LostError(f"{self.options.name}: the engine's process {reason}"))

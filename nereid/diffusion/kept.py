"""Finished latents, kept a while by run id: when a later step of the ensemble dies, only that step is done again."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

KEPT_SECONDS = 60.0
KEPT_BYTES = 64 * 2**20

Outputs = Mapping[str, np.ndarray]


@dataclass(slots=True, eq=False)
class KeptResults:
    """Found again only by the same id with the same request (its digest). Safe between threads."""

    seconds: float = KEPT_SECONDS
    most_bytes: int = KEPT_BYTES
    _kept: OrderedDict[tuple[str, bytes], tuple[float, Outputs]] = field(default_factory=OrderedDict)
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, run_id: str, digest: bytes, outputs: Outputs) -> None:
        if not run_id:
            return
        with self._lock:
            self._drop((run_id, digest))
            self._kept[run_id, digest] = (time.monotonic(), outputs)
            self._bytes += _size(outputs)
            while self._kept and (self._bytes > self.most_bytes or self._oldest() + self.seconds < time.monotonic()):
                self._drop(next(iter(self._kept)))

    def find(self, run_id: str, digest: bytes) -> Outputs | None:
        with self._lock:
            found = self._kept.get((run_id, digest))
            return found[1] if found is not None and found[0] + self.seconds >= time.monotonic() else None

    def _oldest(self) -> float:
        return next(iter(self._kept.values()))[0]

    def _drop(self, key: tuple[str, bytes]) -> None:
        before = self._kept.pop(key, None)
        if before is not None:
            self._bytes -= _size(before[1])


def _size(outputs: Outputs) -> int:
    return sum(value.nbytes for value in outputs.values())

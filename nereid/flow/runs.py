"""Runs by the ids their callers chose: whether one is known, waits, runs or has ended, and its cancellation; knows no answers."""

from __future__ import annotations

import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np

from nereid.flow.errors import InvalidRequestError

REMEMBERED = 4096
"""Ended runs whose end can still be asked for, and cancellations whose runs have not come yet."""
EARLY_SECONDS = 10.0
"""So long before its run may a cancellation come: it is read at once, and a request only after others."""

_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")


class RunState(StrEnum):
    UNKNOWN = "unknown"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Run(Protocol):
    """What is known of a run that has not ended."""

    cancelled: bool


def read_id(inputs: Mapping[str, np.ndarray], name: str) -> str | None:
    """An id from a BYTES input, None where it is absent."""
    if name not in inputs:
        return None
    values = np.asarray(inputs[name]).reshape(-1)
    raw = values[0] if len(values) == 1 else b""
    raw = raw.encode() if isinstance(raw, str) else bytes(raw)
    if not _ID.fullmatch(raw):
        raise InvalidRequestError.of(name, raw.decode("utf-8", "replace"), "one id of 1 to 64 characters of A-Z a-z 0-9 _ -")
    return raw.decode()


@dataclass(slots=True, eq=False)
class Runs:
    """Safe to use from several threads."""

    _open: dict[str, tuple[Run, RunState]] = field(default_factory=dict)
    _ended: OrderedDict[str, RunState] = field(default_factory=OrderedDict)
    _early: OrderedDict[str, float] = field(default_factory=OrderedDict)
    """When unknown runs were cancelled."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, name: str, run: Run) -> None:
        """A run of this id; an older one of the same id was given up by its caller, who asks again, and is cancelled."""
        with self._lock:
            before = self._open.get(name)
            if before is not None:
                before[0].cancelled = True
            self._ended.pop(name, None)
            self._open[name] = (run, RunState.WAITING)
            run.cancelled |= time.monotonic() - self._early.pop(name, -math.inf) <= EARLY_SECONDS

    def started(self, name: str, run: Run) -> None:
        with self._lock:
            if name in self._open and self._open[name][0] is run:
                self._open[name] = (run, RunState.RUNNING)

    def end(self, name: str, run: Run, *, failed: bool) -> None:
        with self._lock:
            if name not in self._open or self._open[name][0] is not run:
                return
            del self._open[name]
            self._ended[name] = RunState.FAILED if failed else RunState.DONE
            while len(self._ended) > REMEMBERED:
                self._ended.popitem(last=False)

    def find(self, name: str) -> Run | None:
        """The run of this id that has not ended."""
        with self._lock:
            found = self._open.get(name)
            return None if found is None else found[0]

    def state(self, name: str) -> RunState:
        with self._lock:
            found = self._open.get(name)
            return found[1] if found is not None else self._ended.get(name, RunState.UNKNOWN)

    def cancel(self, name: str) -> RunState:
        """Mark the run as cancelled; its state as it was. One that is not known yet is cancelled when it comes."""
        with self._lock:
            found = self._open.get(name)
            if found is not None:
                found[0].cancelled = True
                return found[1]
            if name in self._ended:
                return self._ended[name]
            self._early[name] = time.monotonic()
            self._early.move_to_end(name)
            while len(self._early) > REMEMBERED:
                self._early.popitem(last=False)
            return RunState.UNKNOWN

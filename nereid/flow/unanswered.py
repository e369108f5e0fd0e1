"""How many requests a process has taken on to answer later: a word in shared memory that outlives it. Knows nothing of Triton.

Triton 24.10 never ends requests whose late answers died with their process. Whether there were any decides if the server has
to be restarted for their callers' sake; nobody but the process itself knows it.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from nereid.flow.state_folder import process_file, process_files, state_file

_KIND = "unanswered"
_WORD = struct.Struct("q")


@dataclass(slots=True, eq=False)
class Unanswered:
    """The count of one process. Safe to use from several threads; without a state folder nothing is kept."""

    _memory: mmap.mmap | None = None
    _count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, model: str) -> Unanswered:
        """This process's, which serves this model."""
        file = process_file(_KIND, model)
        if file is None:
            return cls()
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(handle, _WORD.size)
            return cls(mmap.mmap(handle, _WORD.size))
        finally:
            os.close(handle)

    def hold(self) -> Callable[[], None]:
        """One more. Call what is returned once it has been answered; a second call does nothing."""
        self._add(1)
        once = iter((True,))

        def answered() -> None:
            if next(once, False):
                self._add(-1)

        return answered

    def _add(self, change: int) -> None:
        with self._lock:
            self._count += change
            if self._memory is not None:
                _WORD.pack_into(self._memory, 0, self._count)


def processes_of(model: str) -> frozenset[int]:
    """The processes of this model that live; none where there is no state folder, or the model has no process of its own."""
    file = state_file(_KIND)
    if file is None:
        return frozenset()
    return frozenset(pid for pid, name, _ in process_files(file.parent, _KIND) if name == model and _lives(pid))


def _lives(pid: int) -> bool:
    """A process that has ended may still be listed, until its parent has looked at it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def take_unanswered(folder: Path, models: Collection[str]) -> list[str]:
    """Those of these models, all of whose processes have ended, that held requests; asked again, nothing is known any more."""
    held = set()
    for _, model, file in process_files(folder, _KIND):
        if model not in models:
            continue
        word = file.read_bytes()
        file.unlink(missing_ok=True)
        if len(word) == _WORD.size and _WORD.unpack(word)[0] > 0:
            held.add(model)
    return sorted(held)

"""What one `serve` leaves while it runs, and how the next one finds and removes it where a serve has died.

A private folder (mode 0700) with a lock that only a living supervisor holds, a mark that every process of the serve has in
its environment, and what the names of its shared memory begin with. Knows nothing of Triton.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from nereid.flow.state_folder import STATE_FOLDER
from nereid.serving.child import SERVE_ID
from nereid.serving.errors import ServingError
from nereid.serving.keeper import REGIONS, remove_shared_memory

PREFIX = "nereid-serve-"
_LOCK = "lock"


@dataclass(slots=True)
class ServeFolder:
    """The private folder of one living serve."""

    path: Path
    serve_id: str
    _lock: int

    @classmethod
    def create(cls) -> ServeFolder:
        """Make and lock it; raises ServingError where the temporary folder does not take it."""
        serve_id = secrets.token_hex(8)
        try:
            path = Path(tempfile.mkdtemp(prefix=PREFIX))
            lock = os.open(path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            os.write(lock, f"{serve_id} {os.getpid()}\n".encode())
            fcntl.flock(lock, fcntl.LOCK_EX)
            (path / "state").mkdir(mode=0o700)
            # At once: who cleans up may be another process, and this one may die before it has seen any.
            (path / REGIONS).write_text(f"{_regions_of(serve_id)}\n")
        except OSError as error:
            raise ServingError(
                f"{tempfile.gettempdir()}: a temporary folder cannot be made there ({error.strerror}); "
                "free some space, or set TMPDIR to another folder"
            ) from None
        return cls(path, serve_id, lock)

    @property
    def state(self) -> Path:
        """For what Triton's processes want to find again after a restart."""
        return self.path / "state"

    def mark(self, part: str) -> str:
        """What the processes of one part of this serve (Triton, the gateway) carry in their environment."""
        return f"{self.serve_id}/{part}"

    def environment(self, part: str) -> dict[str, str]:
        """The variables by which a part's processes are known and find their state."""
        return {SERVE_ID: self.mark(part), STATE_FOLDER: str(self.state)}

    @property
    def regions(self) -> str:
        """What the names of this serve's shared memory begin with."""
        return _regions_of(self.serve_id)

    def remove_regions(self) -> None:
        remove_shared_memory(self.path)

    def remove(self) -> None:
        """End what still carries this serve's mark, and leave nothing."""
        end_marked(self.serve_id)
        self.remove_regions()
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.close(self._lock)
        self._lock = -1


def _regions_of(serve_id: str) -> str:
    return f"nereid_{serve_id}_"


def end_marked(mark: str, seconds: float = 5.0) -> int:
    """Kill every process of this user whose mark begins so; returns how many there were."""
    found = [process for process in _others() if _mark_of(process).startswith(mark)]
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(found, timeout=seconds)
    return len(found)


def _others() -> Iterator[psutil.Process]:
    """Not psutil's own iterator, which remembers processes: one whose number is used again would not be killed."""
    for pid in psutil.pids():
        if pid != os.getpid():
            with contextlib.suppress(psutil.Error):
                yield psutil.Process(pid)


def _mark_of(process: psutil.Process) -> str:
    try:
        return process.environ().get(SERVE_ID, "")
    except (psutil.Error, OSError):
        return ""


def reclaim() -> list[str]:
    """Remove what serves that have died have left, one sentence for each; living ones hold their lock and are let be."""
    said = []
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        try:
            ours = folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.getuid()
            sentence = _reclaim(folder) if ours else None
        except OSError:  # another start is removing it at this moment
            continue
        if sentence:
            said.append(sentence)
    return said


def _reclaim(folder: Path) -> str | None:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # being made just now, or of an earlier version, which may be alive
        return None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        words = os.read(lock, 256).decode(errors="replace").split()
        # A word of 16 hexadecimal digits and nothing else: an empty mark would fit every process.
        ended = end_marked(words[0]) if words and len(words[0]) == 16 else 0
        remove_shared_memory(folder)
        shutil.rmtree(folder, ignore_errors=True)
        pid = words[1] if len(words) > 1 else "?"
        return f"an earlier serve (pid {pid}) died; {ended} processes that it left behind were killed"
    finally:
        os.close(lock)

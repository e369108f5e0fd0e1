"""The file that a batch's answers are appended to: one run at a time, and what one before has answered stays.

A run goes on where another has ended only in a file that can be read again; a device or a pipe cannot, and must not be replaced.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nereid_client.batch_errors import BatchError
from nereid_protocol.json_lines import json_line, without_mark

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@dataclass(slots=True, eq=False)
class AnswerFile:
    """One run's, until it is closed; `answered` are the requests whose good answers it has."""

    answered: set[str]
    _opened: IO[bytes]

    @classmethod
    def at(cls, path: Path) -> AnswerFile:
        """Without lines that were cut and answers that were errors. Raises BatchError, also while another run writes to it."""
        if path.exists() and not path.is_file():
            raise BatchError(f"{path}: it is no regular file; answers must have one, which the next run reads")
        path = path.resolve()  # of a link what it leads to is kept, and not the link
        opened = _ours(path)
        try:
            good = list(_good(path))
            answered = {name for name, _ in good}
            size = sum(stop - start for _, (start, stop) in good)
            if size != path.stat().st_size or len(answered) != len(good):
                opened = _rewritten(path, opened, good)
        except BaseException:
            opened.close()
            raise
        return cls(answered, opened)

    def write(self, line: dict[str, Any]) -> None:
        self._opened.write(json_line(line).encode() + b"\n")
        self._opened.flush()

    def close(self) -> None:
        """What was written is on the disk."""
        with self._opened:
            os.fsync(self._opened.fileno())


def _ours(path: Path) -> IO[bytes]:
    """The file to append to, which no other run has."""
    while True:
        opened = path.open("ab")
        if not _lock(opened):
            opened.close()
            raise BatchError(f"{path}: another run writes its answers to it")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(opened.fileno()), path.stat()):
                return opened
        opened.close()  # it has been replaced meanwhile


def _lock(opened: IO[bytes]) -> bool:
    """Whether it is nobody else's; where the system or its disk knows no locks, it is taken for that."""
    if fcntl is not None:
        try:
            fcntl.flock(opened.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
    return True


Place = tuple[int, int]


def _good(path: Path) -> Iterator[tuple[str, Place]]:
    """Whose good answers there are, and where each begins and ends: with pictures they are too large to be held together."""
    start = 0
    with path.open("rb") as opened:
        for raw in opened:
            stop = start + len(raw)
            if (name := _answered(raw)) is not None:
                yield name, (start, stop)
            start = stop


def _answered(raw: bytes) -> str | None:
    try:
        value = json.loads(without_mark(raw))
        ok = raw.endswith(b"\n") and value["response"]["status_code"] == 200
        return str(value["custom_id"]) if ok else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _rewritten(path: Path, opened: IO[bytes], good: list[tuple[str, Place]]) -> IO[bytes]:
    """The same with one good answer of each request and nothing else, whole at any time."""
    part = path.with_name(path.name + ".part")
    fresh = part.open("wb")
    try:
        _lock(fresh)  # before it can be found
        with path.open("rb") as old:
            for start, stop in dict(good).values():
                old.seek(start)
                fresh.write(old.read(stop - start))
        fresh.flush()
        os.fsync(fresh.fileno())
        shutil.copymode(path, part)
        if fcntl is None:  # a file that is open is not replaced there
            opened.close()
            fresh.close()
            part.replace(path)
            return path.open("ab")
        part.replace(path)
    except BaseException:
        fresh.close()
        with suppress(OSError):
            part.unlink()
        raise
    opened.close()
    return fresh

"""Atomic publication: a repository is built beside its place under a lock, then exchanged with what stands there."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from nereid_export.errors import ExportError

HEADROOM_BYTES = 64 * 2**20
_FULL_BYTES = 2**20
"""A disk with less is full: blocks that are still free are too few for the next write."""
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def destination(out: Path) -> Path:
    """The folder that `out` means, links followed; raises ExportError where no folder can be exchanged with another."""
    with readable_failures(out):
        try:
            place = out.resolve()
        except RuntimeError:  # Python 3.11 has this for links in a circle
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if place.is_mount():
            raise ExportError(f"{out} cannot be written: a file system is mounted there; name a folder in it")
    return place


@contextmanager
def locked(out: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Only one export writes to `out` at a time; `waiting` is called once where another one is at it."""
    with readable_failures(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out.parent / f".{out.name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
    try:
        with readable_failures(out):
            _finish_exchange(out)
        yield
    finally:
        lock.release()


def staging_folder(out: Path) -> Path:
    """Where the export of `out` is built; on the same file system, so that renaming is enough."""
    return out.parent / f".{out.name}.staging"


def require_space(folder: Path, needed: int) -> None:
    """Raise ExportError where the file system has less than `needed` bytes and some headroom free."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed + HEADROOM_BYTES:
        raise ExportError(
            f"{folder}: the export needs about {(needed + HEADROOM_BYTES) / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free"
        )


@contextmanager
def readable_failures(out: Path) -> Iterator[None]:
    """Turn what the file system refuses into one sentence."""
    try:
        yield
    except OSError as error:
        code, said = error.errno, error.strerror
        if isinstance(error, shutil.Error):  # of a folder's copy, with a line for each file: [source, target, what was wrong]
            said = str(error.args[0][-1][-1])
            code = next((known for known in (errno.ENOSPC, errno.EDQUOT) if os.strerror(known) in said), None)
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise ExportError(f"{out}: the disk is full; nothing was published") from None
        if code in (errno.ENOTDIR, errno.EEXIST):
            raise ExportError(f"{out} cannot be written: a file stands in its way") from None
        raise ExportError(f"{out} cannot be written: {(said or str(error) or type(error).__name__).lower()}") from None


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Raise what Python raises of a full disk, where a library that writes to `folder` has failed with words of its own."""
    try:
        yield
    except Exception as error:
        full = os.strerror(errno.ENOSPC)
        if full in str(error) or shutil.disk_usage(folder).free < _FULL_BYTES:
            raise OSError(errno.ENOSPC, full) from error
        raise


def publish(new: Path, out: Path) -> None:
    """Put `new` in the place of `out` in one step; what stood there is removed afterwards."""
    if not out.exists():
        new.rename(out)
        return
    _exchange(new, out)
    shutil.rmtree(new)


def _exchange(first: Path, second: Path) -> None:
    """Swap two folders atomically (renameat2 of Linux); in two steps where the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    if hasattr(libc, "renameat2") and libc.renameat2(*arguments) == 0:
        return
    aside = _aside(second)
    shutil.rmtree(aside, ignore_errors=True)
    second.rename(aside)
    first.rename(second)
    aside.rename(first)


def _finish_exchange(out: Path) -> None:
    """Bring back what an exchange in two steps has put aside, if it was interrupted between them."""
    if _aside(out).is_dir() and not out.exists():
        _aside(out).rename(out)


def _aside(out: Path) -> Path:
    return out.with_name(f".{out.name}.old")


def adopt(existing: Path, new: Path, replaced: set[str]) -> None:
    """Carry the other pipelines' models of a published repository over into its successor, by hard links."""
    if not existing.is_dir():
        return
    for model in sorted(existing.iterdir()):
        if model.is_dir() and model.name not in replaced and not (new / model.name).exists():
            shutil.copytree(model, new / model.name, copy_function=link_or_copy)


def link_or_copy(source: str, target: str) -> None:
    """A file's content at a second place, by a hard link where the file system has them."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

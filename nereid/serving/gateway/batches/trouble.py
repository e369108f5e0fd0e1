"""Why the folder of files and batches cannot be used, in a sentence, and that told once; knows no HTTP."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import pwd
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger("nereid.gateway")

FOLDER_ERRORS = (OSError, sqlite3.Error)
"""What the use of the folder raises; not all of it is the folder's fault, see `trouble_of`."""
_OTHERS = (ConnectionError, TimeoutError)


class NewerDatabaseError(sqlite3.DatabaseError):
    """The database is of a later release; the sentence says so."""


class ExchangedDatabaseError(sqlite3.DatabaseError):
    """The database is not the one that was opened; the sentence says so."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """`reason` goes on after "the folder cannot be used:", and names no path."""

    reason: str
    is_full: bool = False


_FULL = Trouble("no space is left on its disk", is_full=True)
_QUOTA = Trouble("the disk quota of its user is used up", is_full=True)
_READ_ONLY = Trouble("its file system is read-only")
_HELD = Trouble("its database is held by another process")
_GONE = Trouble("it is not there, or not all of it")


def trouble_of(error: Exception, folder: Path) -> Trouble | None:
    """What an error says of the folder; None where it says something else, of this program."""
    if isinstance(error, NewerDatabaseError | ExchangedDatabaseError):
        return Trouble(str(error))
    if isinstance(error, sqlite3.Error):
        return _of_database(error, folder)
    if isinstance(error, OSError) and not isinstance(error, _OTHERS):
        return _of_system(error, folder)
    return None


def _of_system(error: OSError, folder: Path) -> Trouble:
    match error.errno:
        case errno.ENOSPC:
            return _FULL
        case errno.EDQUOT:
            return _QUOTA
        case errno.ENOENT:
            return _GONE
        case errno.EROFS:
            return _READ_ONLY
        case errno.EACCES | errno.EPERM:
            return _no_right(folder)
    return Trouble(f"the system says: {error.strerror or error}")


def _of_database(error: sqlite3.Error, folder: Path) -> Trouble | None:
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_FULL:
            return _FULL
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_PROTOCOL:
            return _HELD
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return Trouble(f"its database is damaged ({error})")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_IOERR | sqlite3.SQLITE_PERM:
            return _of_disk(folder) or Trouble(f"its database cannot be used ({error})")
    return None


def _of_disk(folder: Path) -> Trouble | None:
    """What SQLite does not say."""
    with contextlib.suppress(OSError):
        disk = os.statvfs(folder)
        if disk.f_flag & os.ST_RDONLY:
            return _READ_ONLY
        if not disk.f_bavail:
            return _FULL
        for path in (folder, *folder.glob("batches.sqlite*")):
            if not os.access(path, os.W_OK, effective_ids=True):
                return _no_right(folder)
    return None


def _no_right(folder: Path) -> Trouble:
    owner = "another user"
    with contextlib.suppress(OSError):
        owner = _user(folder.stat().st_uid)
    return Trouble(f"{_user(os.geteuid())} has no right to write all of it; it belongs to {owner}")


def _user(number: int) -> str:
    with contextlib.suppress(KeyError):
        return f"user {pwd.getpwuid(number).pw_name}"
    return f"user {number}"


@dataclass(slots=True, eq=False)
class TroubleLog:
    """What could not be done over one folder: a sentence where that is the folder's fault, not again until it is over."""

    folder: Path
    _told: str = field(default="", init=False)

    def failed(self, what: str, error: Exception) -> None:
        """All else is told with its traceback."""
        trouble = trouble_of(error, self.folder)
        if trouble is None:
            log.error("%s", what, exc_info=error)
        elif trouble.reason != self._told:
            self._told = trouble.reason
            log.warning("%s: the folder of files and batches cannot be used: %s; it is tried again", what, trouble.reason)

    def well(self) -> None:
        if self._told:
            self._told = ""
            log.warning("the folder of files and batches can be used again")

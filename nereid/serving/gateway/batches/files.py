"""Files on disk: what is known of them in SQLite, what they hold in a folder; knows no batch's course, no HTTP and no model."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nereid.serving.errors import ServingError
from nereid.serving.gateway.batches.schema import prepare
from nereid.serving.gateway.batches.states import OPEN_STATES
from nereid.serving.gateway.batches.trouble import FOLDER_ERRORS, ExchangedDatabaseError, trouble_of
from nereid.serving.gateway.paging import Part

log = logging.getLogger("nereid.gateway")

SMALLEST_BYTES = 4096
"""What a file, or a batch that is not done, counts for at least: a disk gives no less."""
STORAGE_FULL = "storage_limit_exceeded"
"""The code of errors where there is no room."""
OPEN = f"status IN ({', '.join(repr(str(state)) for state in OPEN_STATES)})"
"""In SQL, of a batch that is not done."""
_PRESENT = "(expires_at IS NULL OR expires_at > ?)"
ALL = Part(2**31)
"""Of a list, the newest first."""


class StorageFullError(Exception):
    """There is no room for more; the sentence says whose it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageLimits:
    """Bytes that files, and the requests and answers of batches that are not done, may take: of each key, and of all keys."""

    key_bytes: int = 10 * 2**30
    total_bytes: int = 50 * 2**30

    def check(self, owner: str, own: int, together: int) -> None:
        """Raises StorageFullError where these are more."""
        if own > self.key_bytes:
            whose = f"of key {owner}" if owner else "of those without a key"
            raise StorageFullError(f"the files {whose} would take {own} bytes; they may take {self.key_bytes}")
        if together > self.total_bytes:
            raise StorageFullError(f"the files of all keys together may take {self.total_bytes} bytes, and would take more")


@dataclass(frozen=True, slots=True)
class StoredFile:
    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int | None = None


_COLUMNS = ", ".join(column.name for column in fields(StoredFile))
"""By name: a later gateway that shares the folder may have added others."""


@dataclass(slots=True, eq=False)
class FileStore:
    """One folder's; safe between threads. Owners are the names of keys: nobody sees what another's key has brought."""

    folder: Path
    limits: StorageLimits = field(default_factory=StorageLimits)
    patient: bool = False
    """Whether a folder that cannot be used is waited for: until it can, what is asked of it raises what it did."""
    _connection: sqlite3.Connection | None = field(default=None, init=False)
    _opened: tuple[int, int] | None = field(default=None, init=False)
    """Which file the database was when it was opened."""
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        """Raises ServingError for a folder that cannot be used, where it is not waited for."""
        try:
            self._connected()
        except FOLDER_ERRORS as error:
            trouble = trouble_of(error, self.folder)
            sentence = f"--openai-batches: {self.folder} cannot be used: {error if trouble is None else trouble.reason}"
            if not self.patient:
                raise ServingError(sentence) from None
            log.error("%s; all else is served, and it is tried again", sentence)

    def _connected(self) -> sqlite3.Connection:
        """What is written to a database that has gone, or that another one stands in the place of, would be lost: raises OSError,
        ExchangedDatabaseError. It may come back.
        """
        with self._lock:
            if self._connection is None:
                self._connection = self._open()
                self._opened = self._database_there()
            elif not self._connection.in_transaction and self._database_there() != self._opened:
                sentence = "another database stands in the place of its own; put that back, or start the gateway again"
                raise ExchangedDatabaseError(sentence)
            return self._connection

    def _database_there(self) -> tuple[int, int]:
        """Which file it is."""
        found = self.database.stat()
        return found.st_dev, found.st_ino

    def _open(self) -> sqlite3.Connection:
        """Whatever will be written later is written now, so that a folder which does not take it is known."""
        self.contents.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = self.draft()
        try:
            probe.write_bytes(b"probe")
        finally:
            probe.unlink(missing_ok=True)
        self.lock_file.open("a").close()
        connection = sqlite3.connect(self.database, check_same_thread=False, isolation_level=None)
        try:
            prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def contents(self) -> Path:
        return self.folder / "files"

    @property
    def database(self) -> Path:
        return self.folder / "batches.sqlite"

    @property
    def lock_file(self) -> Path:
        """Held by the process that works batches off."""
        return self.folder / "lock"

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            connection = self._connected()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # SQLite ends some that fail itself
                    connection.execute("ROLLBACK")
                raise

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._connected().execute(query, values).fetchall()

    def path(self, file_id: str) -> Path:
        return self.contents / file_id

    def draft(self) -> Path:
        """A place for a file that is being written; `add_file` puts it among the others."""
        return self.contents / f"{uuid.uuid4().hex}.part"

    def add_file(
        self, draft: Path, owner: str, filename: str, purpose: str, seconds: int | None = None, *, bounded: bool = False
    ) -> StoredFile:
        """It is there for `seconds`, or until it is dropped. Raises StorageFullError where it is bounded and finds no room."""
        made = new_file(draft, owner, filename, purpose, seconds)
        with self._adding(made) as connection:
            if bounded:
                self.require_room(owner, made.bytes)
            self._place(connection, draft, made)
        return made

    @contextmanager
    def _adding(self, *made: StoredFile) -> Iterator[sqlite3.Connection]:
        """A transaction in which these are placed, all or none: a file that nobody knows of would count for nobody."""
        try:
            with self._transaction() as connection:
                yield connection
        except BaseException:
            for file in made:
                self.path(file.id).unlink(missing_ok=True)
            raise

    def _place(self, connection: sqlite3.Connection, draft: Path, made: StoredFile) -> None:
        """On the disk first: what the database knows is there, whatever ends."""
        _on_disk(draft)
        draft.rename(self.path(made.id))
        _on_disk(self.contents)
        connection.execute(
            f"INSERT INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (made.id, made.owner, made.filename, made.purpose, made.bytes, made.created_at, made.expires_at),
        )

    def file(self, owner: str, file_id: str) -> StoredFile | None:
        """None too for one whose time is over."""
        query = f"SELECT {_COLUMNS} FROM files WHERE id = ? AND owner = ? AND {_PRESENT}"
        rows = self._rows(query, file_id, owner, int(time.time()))
        return StoredFile(*rows[0]) if rows else None

    def files(self, owner: str, part: Part = ALL, purpose: str | None = None) -> list[StoredFile]:
        """Of a part one more than it has, where there are more; raises ApiError where none has the id that it begins behind."""
        where, values = f"owner = ? AND {_PRESENT}", [owner, int(time.time())]
        if purpose is not None:
            where, values = f"{where} AND purpose = ?", [*values, purpose]
        return [StoredFile(*row) for row in self._part("files", _COLUMNS, where, values, part)]

    def _part(self, table: str, columns: str, where: str, values: Sequence[object], part: Part) -> list[tuple[Any, ...]]:
        """Of a key with very many rows no more are read than are told: all of them take long, and keep others waiting."""
        if part.after is not None:
            rows = self._rows(f"SELECT rowid FROM {table} WHERE id = ? AND {where}", part.after, *values)
            if not rows:
                raise part.not_there()
            where, values = f"{where} AND rowid {'>' if part.ascending else '<'} ?", [*values, rows[0][0]]
        order = f"ORDER BY rowid {'ASC' if part.ascending else 'DESC'} LIMIT ?"
        return self._rows(f"SELECT {columns} FROM {table} WHERE {where} {order}", *values, part.limit + 1)

    def drop_file(self, file_id: str) -> None:
        with self._transaction() as connection:
            connection.execute("DELETE FROM files WHERE id = ?", (file_id,))
        self.path(file_id).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Drop files whose time is over, but for those that a batch still reads."""
        read = f"SELECT input_file FROM batches WHERE {OPEN}"
        query = f"SELECT id FROM files WHERE expires_at <= ? AND id NOT IN ({read})"
        for (file_id,) in self._rows(query, int(time.time())):
            self.drop_file(file_id)

    def used(self, owner: str) -> tuple[int, int]:
        """Bytes of a key, and of all: files, and the rows of batches that are not done."""
        parts = f"SELECT owner, max(bytes, {SMALLEST_BYTES}) AS size FROM files"
        parts += f" UNION ALL SELECT owner, max(answer_bytes, {SMALLEST_BYTES}) FROM batches WHERE {OPEN}"
        query = f"SELECT coalesce(sum(CASE WHEN owner = ? THEN size END), 0), coalesce(sum(size), 0) FROM ({parts})"
        ((own, together),) = self._rows(query, owner)
        return own, together

    def require_room(self, owner: str, more: int = 0) -> None:
        """Raises StorageFullError where a file of `more` bytes finds no room beside what is kept."""
        own, together = self.used(owner)
        size = max(more, SMALLEST_BYTES)
        self.limits.check(owner, own + size, together + size)


def new_file(draft: Path, owner: str, filename: str, purpose: str, seconds: int | None) -> StoredFile:
    now = int(time.time())
    expires = None if seconds is None else now + seconds
    return StoredFile(f"file-{uuid.uuid4().hex}", owner, filename, purpose, draft.stat().st_size, now, expires)


def _on_disk(path: Path) -> None:
    """Wait until a file's contents, or a folder's names, are there for good."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

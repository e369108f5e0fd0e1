"""Files, batches and their answers on disk: SQLite for what must not be lost, a folder for contents; knows no HTTP and no model.

An answer is one transaction: whatever ends the process, a request has been answered or it has not, and the next process goes on
with those that have not.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from nereid.serving.errors import ServingError
from nereid.serving.gateway.batches.answer_files import Answered, write_answers
from nereid.serving.gateway.batches.lines import Line, Problem
from nereid_protocol.json_lines import json_line

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
  id TEXT PRIMARY KEY, owner TEXT NOT NULL, filename TEXT NOT NULL, purpose TEXT NOT NULL, bytes INTEGER NOT NULL,
  created_at INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
  id TEXT PRIMARY KEY, owner TEXT NOT NULL, endpoint TEXT NOT NULL, input_file TEXT NOT NULL, status TEXT NOT NULL,
  created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, window TEXT NOT NULL, metadata TEXT,
  output_file TEXT, error_file TEXT, times TEXT NOT NULL DEFAULT '{}', problems TEXT NOT NULL DEFAULT '[]',
  total INTEGER NOT NULL DEFAULT 0, completed INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS requests (
  batch TEXT NOT NULL, place INTEGER NOT NULL, start INTEGER NOT NULL, custom_id TEXT NOT NULL, ok INTEGER, answer TEXT,
  PRIMARY KEY (batch, place)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS waiting ON requests (batch, place) WHERE ok IS NULL;
"""


ABANDONED_SECONDS = 3600.0
"""After which nobody writes to a file any more that is not among the others yet."""

_AT_ONCE = 32
"""Answers that are read together."""


class State(StrEnum):
    """OpenAI's words for how far a batch is."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


OPEN_STATES = (State.VALIDATING, State.IN_PROGRESS, State.FINALIZING, State.CANCELLING)
"""There is still something to be done."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created_at: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One row; `times` says when it came into which state, in seconds since the epoch."""

    id: str
    owner: str
    endpoint: str
    input_file: str
    status: State
    created_at: int
    expires_at: int
    window: str
    metadata: dict[str, str] | None
    output_file: str | None
    error_file: str | None
    times: dict[str, int]
    problems: list[dict[str, Any]]
    total: int
    completed: int
    failed: int


@dataclass(slots=True, eq=False)
class BatchStore:
    """One folder's; safe between threads. Owners are the names of keys: nobody sees what another's key has brought."""

    folder: Path
    _connection: sqlite3.Connection = field(init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        """Raises ServingError for a folder that cannot be used."""
        try:
            self.contents.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.folder / "batches.sqlite", check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise ServingError(f"--openai-batches: {self.folder} cannot be used ({error})") from None

    @property
    def contents(self) -> Path:
        return self.folder / "files"

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    # --- files ---

    def path(self, file_id: str) -> Path:
        return self.contents / file_id

    def draft(self) -> Path:
        """A place for a file that is being written; `add_file` puts it among the others."""
        return self.contents / f"{uuid.uuid4().hex}.part"

    def add_file(self, draft: Path, owner: str, filename: str, purpose: str) -> StoredFile:
        made = StoredFile(f"file-{uuid.uuid4().hex}", owner, filename, purpose, draft.stat().st_size, int(time.time()))
        draft.rename(self.path(made.id))
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)",
                (made.id, owner, filename, purpose, made.bytes, made.created_at),
            )
        return made

    def file(self, owner: str, file_id: str) -> StoredFile | None:
        rows = self._rows("SELECT * FROM files WHERE id = ? AND owner = ?", file_id, owner)
        return StoredFile(*rows[0]) if rows else None

    def files(self, owner: str) -> list[StoredFile]:
        """The newest first."""
        return [StoredFile(*row) for row in self._rows("SELECT * FROM files WHERE owner = ? ORDER BY rowid DESC", owner)]

    def in_use(self, file_id: str) -> bool:
        """Whether a batch that is not done reads it."""
        return any(batch.input_file == file_id for batch in self.open_batches())

    def drop_file(self, file_id: str) -> None:
        with self._transaction() as connection:
            connection.execute("DELETE FROM files WHERE id = ?", (file_id,))
        self.path(file_id).unlink(missing_ok=True)

    # --- batches ---

    def add_batch(
        self, owner: str, endpoint: str, input_file: str, window: str, seconds: int, metadata: dict[str, str] | None
    ) -> Batch:
        batch_id, now = f"batch_{uuid.uuid4().hex}", int(time.time())
        told = None if metadata is None else json.dumps(metadata)
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO batches (id, owner, endpoint, input_file, status, created_at, expires_at, window, metadata) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (batch_id, owner, endpoint, input_file, State.VALIDATING, now, now + seconds, window, told),
            )
        found = self.batch(batch_id)
        assert found is not None
        return found

    def batch(self, batch_id: str, owner: str | None = None) -> Batch | None:
        rows = self._rows("SELECT * FROM batches WHERE id = ? AND owner = coalesce(?, owner)", batch_id, owner)
        return _batch(rows[0]) if rows else None

    def batches(self, owner: str) -> list[Batch]:
        """The newest first."""
        return [_batch(row) for row in self._rows("SELECT * FROM batches WHERE owner = ? ORDER BY rowid DESC", owner)]

    def open_batches(self) -> list[Batch]:
        """The oldest first."""
        query = f"SELECT * FROM batches WHERE status IN ({', '.join('?' * len(OPEN_STATES))}) ORDER BY rowid"
        return [_batch(row) for row in self._rows(query, *OPEN_STATES)]

    def move(self, batch_id: str, state: State, *since: State) -> bool:
        """Into another state, noting when; False where it is in none of `since` any more."""
        with self._transaction() as connection:
            return _move(connection, batch_id, state, since)

    def begin(self, batch_id: str, lines: Sequence[Line], problems: Sequence[Problem]) -> None:
        """A checked batch: its requests wait from now on, or it has failed."""
        with self._transaction() as connection:
            state = State.FAILED if problems else State.IN_PROGRESS
            if not _move(connection, batch_id, state, (State.VALIDATING,)):
                return
            told = [{"code": p.code, "message": p.message, "param": p.param, "line": p.line} for p in problems]
            connection.execute(
                "UPDATE batches SET problems = ?, total = ? WHERE id = ?", (json.dumps(told), len(lines), batch_id)
            )
            if not problems:
                connection.executemany(
                    "INSERT INTO requests (batch, place, start, custom_id) VALUES (?, ?, ?, ?)",
                    [(batch_id, place, line.start, line.custom_id) for place, line in enumerate(lines)],
                )

    # --- requests ---

    def waiting(self, batch_id: str, most: int, without: Sequence[int] = ()) -> list[tuple[int, int]]:
        """Place, and start of the line, of requests that are not answered, in order; those at the places `without` left out."""
        query = "SELECT place, start FROM requests WHERE batch = ? AND ok IS NULL ORDER BY place LIMIT ?"
        found = self._rows(query, batch_id, most + len(without))
        return [(place, start) for place, start in found if place not in without][:most]

    def answer(self, batch_id: str, place: int, answer: dict[str, Any], *, ok: bool) -> bool:
        """Note a request's answer, once; False where it has one."""
        with self._transaction() as connection:
            query = "UPDATE requests SET ok = ?, answer = ? WHERE batch = ? AND place = ? AND ok IS NULL"
            changed = connection.execute(query, (int(ok), json_line(answer), batch_id, place)).rowcount == 1
            if changed:
                name = "completed" if ok else "failed"
                connection.execute(f"UPDATE batches SET {name} = {name} + 1 WHERE id = ?", (batch_id,))
            return changed

    def finish(self, batch_id: str, state: State, unanswered: dict[str, str] | None) -> None:
        """Write the files of answers, and end the batch in this state; `unanswered` is the error of requests without one."""
        batch = self.batch(batch_id)
        assert batch is not None
        drafts = {True: self.draft(), False: self.draft()}
        made: dict[bool, str | None] = {True: None, False: None}
        try:
            written = write_answers(self._answers(batch_id), drafts, unanswered)
            for ok in (ok for ok, count in written.items() if count):
                name = f"{batch_id}_{'output' if ok else 'error'}.jsonl"
                made[ok] = self.add_file(drafts[ok], batch.owner, name, "batch_output").id
            with self._transaction() as connection:
                connection.execute(
                    "UPDATE batches SET output_file = ?, error_file = ? WHERE id = ?", (made[True], made[False], batch_id)
                )
                _move(connection, batch_id, state, OPEN_STATES)
                connection.execute("DELETE FROM requests WHERE batch = ?", (batch_id,))
        except BaseException:  # it is tried again: each time would leave files
            for file_id in made.values():
                if file_id is not None:
                    self.drop_file(file_id)
            raise
        finally:
            for draft in drafts.values():
                draft.unlink(missing_ok=True)

    def _answers(self, batch_id: str) -> Iterator[Answered]:
        """Custom id, outcome and answer of every request in order, few at a time: answers with pictures are megabytes each."""
        query = "SELECT place, custom_id, ok, answer FROM requests WHERE batch = ? AND place > ? ORDER BY place LIMIT ?"
        place = -1
        while rows := self._rows(query, batch_id, place, _AT_ONCE):
            yield from ((custom_id, ok, answer) for _, custom_id, ok, answer in rows)
            place = rows[-1][0]

    def tidy(self) -> None:
        """Forget what a process that ended midway has left: files half written, and those that no batch has come to name."""
        named = {name for (name,) in self._rows("SELECT output_file FROM batches UNION SELECT error_file FROM batches")}
        for file_id, purpose in self._rows("SELECT id, purpose FROM files"):
            if purpose == "batch_output" and file_id not in named:
                self.drop_file(file_id)
        known = {file_id for (file_id,) in self._rows("SELECT id FROM files")}
        for path in self.contents.iterdir():
            if path.name not in known and time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink(missing_ok=True)


def _move(connection: sqlite3.Connection, batch_id: str, state: State, since: Sequence[State]) -> bool:
    row = connection.execute("SELECT status, times FROM batches WHERE id = ?", (batch_id,)).fetchone()
    if row is None or row[0] not in since:
        return False
    times = json.dumps({**json.loads(row[1]), state: int(time.time())})
    connection.execute("UPDATE batches SET status = ?, times = ? WHERE id = ?", (state, times, batch_id))
    return True


def _batch(row: tuple[Any, ...]) -> Batch:
    made = list(row)
    made[4] = State(made[4])
    made[8] = None if made[8] is None else json.loads(made[8])
    made[11], made[12] = json.loads(made[11]), json.loads(made[12])
    return Batch(*made)

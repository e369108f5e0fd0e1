"""Batches and their answers beside the files they are made of, in SQLite; knows no HTTP and no model.

An answer is one transaction: whatever ends the process, a request has been answered or it has not, and the next process goes on
with those that have not.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from nereid.serving.gateway.batches.answer_files import Answered, write_answers
from nereid.serving.gateway.batches.files import ALL, OPEN, FileStore, StoredFile, new_file
from nereid.serving.gateway.batches.lines import Line, Problem
from nereid.serving.gateway.batches.numbers import BatchNumbers
from nereid.serving.gateway.batches.retention import DAY_SECONDS, Forgotten, forget
from nereid.serving.gateway.batches.states import OPEN_STATES, State
from nereid.serving.gateway.launch import Rules
from nereid.serving.gateway.paging import Part
from nereid_protocol.json_lines import json_line

ABANDONED_SECONDS = 3600.0
"""After which nobody writes to a file any more that is not among the others yet."""

MOST_OPEN = 1000
"""Batches of one key that are not done: all of them are looked at in every round."""
ROW_BYTES = 120
"""What the row of a request takes beside its custom_id, with its place in the index (measured)."""
_AT_ONCE = 32
"""Answers that are read together."""


class TooManyBatchesError(Exception):
    """A key has as many batches as it may; the sentence says how many."""


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
    output_seconds: int | None = None
    """How long its files of answers stay; None: until they are deleted."""
    answer_bytes: int = 0
    """What its answers and the rows of its requests take until it is done."""
    usage: dict[str, Any] | None = None
    """Tokens of all its answers, once it is done."""
    model: str | None = None
    """The one that has answered, where it is one."""


_COLUMNS = ", ".join(column.name for column in fields(Batch))
"""By name: a later gateway that shares the folder may have added others."""


@dataclass(slots=True, eq=False)
class BatchStore(FileStore):
    """Files, and what is made of them; a batch that has ended is known for so many `days`."""

    days: int = Rules().batches_days

    def in_use(self, file_id: str) -> bool:
        """Whether a batch that is not done reads it."""
        return bool(self._rows(f"SELECT 1 FROM batches WHERE input_file = ? AND {OPEN} LIMIT 1", file_id))

    # --- batches ---

    def add_batch(
        self,
        owner: str,
        endpoint: str,
        input_file: str,
        window: str,
        seconds: int,
        metadata: dict[str, str] | None,
        output_seconds: int | None = None,
    ) -> Batch:
        """Raises StorageFullError where there is no room for its answers, TooManyBatchesError."""
        batch_id, now = f"batch_{uuid.uuid4().hex}", int(time.time())
        told = None if metadata is None else json.dumps(metadata)
        with self._transaction() as connection:
            ((count,),) = self._rows(f"SELECT count(*) FROM batches WHERE owner = ? AND {OPEN}", owner)
            if count >= MOST_OPEN:
                raise TooManyBatchesError(f"{count} batches are not done, and no more are taken")
            self.require_room(owner)
            connection.execute(
                "INSERT INTO batches (id, owner, endpoint, input_file, status, created_at, expires_at, window, metadata, "
                "output_seconds) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (batch_id, owner, endpoint, input_file, State.VALIDATING, now, now + seconds, window, told, output_seconds),
            )
        found = self.batch(batch_id)
        assert found is not None
        return found

    def batch(self, batch_id: str, owner: str | None = None) -> Batch | None:
        rows = self._rows(f"SELECT {_COLUMNS} FROM batches WHERE id = ? AND owner = coalesce(?, owner)", batch_id, owner)
        return _batch(rows[0]) if rows else None

    def batches(self, owner: str, part: Part = ALL) -> list[Batch]:
        """As `files` does."""
        return [_batch(row) for row in self._part("batches", _COLUMNS, "owner = ?", [owner], part)]

    def open_batches(self) -> list[Batch]:
        """The oldest first."""
        return [_batch(row) for row in self._rows(f"SELECT {_COLUMNS} FROM batches WHERE {OPEN} ORDER BY rowid")]

    def move(self, batch_id: str, state: State, *since: State) -> bool:
        """Into another state, noting when; False where it is in none of `since` any more."""
        with self._transaction() as connection:
            return _move(connection, batch_id, state, since)

    def begin(self, batch_id: str, lines: Sequence[Line], problems: Sequence[Problem]) -> None:
        """A checked batch: its requests wait from now on, or it has failed. Raises StorageFullError where they find no room."""
        size = sum(ROW_BYTES + len(line.custom_id.encode()) for line in lines)
        with self._transaction() as connection:
            state = State.FAILED if problems else State.IN_PROGRESS
            if not _move(connection, batch_id, state, (State.VALIDATING,)):
                return
            told = [{"code": p.code, "message": p.message, "param": p.param, "line": p.line} for p in problems]
            connection.execute(
                "UPDATE batches SET problems = ?, total = ? WHERE id = ?", (json.dumps(told), len(lines), batch_id)
            )
            if not problems:
                ((owner,),) = self._rows("SELECT owner FROM batches WHERE id = ?", batch_id)
                self.require_room(owner, size)
                connection.execute("UPDATE batches SET answer_bytes = ? WHERE id = ?", (size, batch_id))
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
            written = json_line(answer)
            changed = connection.execute(query, (int(ok), written, batch_id, place)).rowcount == 1
            if changed:
                name = "completed" if ok else "failed"
                query = f"UPDATE batches SET {name} = {name} + 1, answer_bytes = answer_bytes + ? WHERE id = ?"
                connection.execute(query, (len(written.encode()), batch_id))
            return changed

    def finish(self, batch_id: str, state: State, unanswered: dict[str, str] | None) -> None:
        """Write the files of answers, and end the batch in this state; `unanswered` is the error of requests without one."""
        batch = self.batch(batch_id)
        assert batch is not None
        drafts = {True: self.draft(), False: self.draft()}
        try:
            written, used = write_answers(self._answers(batch_id), drafts, unanswered)
            made: dict[bool, StoredFile] = {}
            for ok in (ok for ok, count in written.items() if count):
                name = f"{batch_id}_{'output' if ok else 'error'}.jsonl"
                made[ok] = new_file(drafts[ok], batch.owner, name, "batch_output", batch.output_seconds)
            with self._adding(*made.values()) as connection:
                for ok, file in made.items():
                    self._place(connection, drafts[ok], file)
                named = [made[ok].id if ok in made else None for ok in (True, False)]
                told = used.told()
                more = None if told is None else json.dumps(told), used.model
                query = "UPDATE batches SET output_file = ?, error_file = ?, usage = ?, model = ? WHERE id = ?"
                connection.execute(query, (*named, *more, batch_id))
                _move(connection, batch_id, state, OPEN_STATES)
                connection.execute("DELETE FROM requests WHERE batch = ?", (batch_id,))
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

    def numbers(self) -> BatchNumbers:
        """Of all keys."""
        query = "SELECT status, count(*), sum(total), sum(completed), sum(failed) FROM batches GROUP BY status"
        states, outcomes, waiting = dict.fromkeys(map(str, State), 0), asdict(self._forgotten()), 0
        for status, batches, total, completed, failed in self._rows(query):
            states[status] = batches
            outcomes["completed"] += completed
            outcomes["failed"] += failed
            left = total - completed - failed
            if status in OPEN_STATES:
                waiting += left
            elif status != State.FAILED:  # whose requests have never been any
                outcomes["unanswered"] += left
        ((files,),) = self._rows("SELECT count(*) FROM files")
        return BatchNumbers(states=states, outcomes=outcomes, waiting=waiting, files=files, bytes=self.used("")[1])

    def _forgotten(self) -> Forgotten:
        ((completed, failed, unanswered),) = self._rows("SELECT completed, failed, unanswered FROM forgotten")
        return Forgotten(completed, failed, unanswered)

    def forget_ended(self) -> int:
        """Delete what is known of batches that have ended long ago, but for their files; how many they were."""
        with self._transaction() as connection:
            return forget(connection, int(time.time()) - self.days * DAY_SECONDS)

    def tidy(self) -> None:
        """Delete what a process that ended midway has left: files that are half written, or that nobody has come to know of."""
        known = {file_id for (file_id,) in self._rows("SELECT id FROM files")}
        for path in self.contents.iterdir():
            with contextlib.suppress(FileNotFoundError):  # one that was being sent may be whole by now, and elsewhere
                if path.name not in known and time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    path.unlink()


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
    made[18] = None if made[18] is None else json.loads(made[18])
    return Batch(*made)

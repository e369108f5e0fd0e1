"""How long a batch that has ended is known: its row goes, what it counted stays; its files have times of their own."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from nereid.serving.gateway.batches.states import OPEN_STATES, State

DAY_SECONDS = 86_400
TOTALS = """
CREATE TABLE IF NOT EXISTS forgotten (
  one INTEGER PRIMARY KEY CHECK (one = 1), completed INTEGER NOT NULL, failed INTEGER NOT NULL, unanswered INTEGER NOT NULL);
INSERT OR IGNORE INTO forgotten (one, completed, failed, unanswered) VALUES (1, 0, 0, 0);
"""
"""What requests of batches that are not known any more have come to: counters over restarts never go back."""
_OPEN = ", ".join(repr(str(state)) for state in OPEN_STATES)
_OLD = f"status NOT IN ({_OPEN}) AND coalesce(json_extract(times, '$.' || status), created_at) <= ?"
_UNANSWERED = f"CASE WHEN status = '{State.FAILED}' THEN 0 ELSE total - completed - failed END"


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Requests of batches that are not known any more."""

    completed: int
    failed: int
    unanswered: int


def forget(connection: sqlite3.Connection, before: int) -> int:
    """Within a transaction: delete batches that ended then, in seconds since the epoch, or earlier; how many."""
    counted = ", ".join(f"coalesce(sum({what}), 0)" for what in ("completed", "failed", _UNANSWERED))
    found = connection.execute(f"SELECT {counted} FROM batches WHERE {_OLD}", (before,)).fetchone()
    added = "UPDATE forgotten SET completed = completed + ?, failed = failed + ?, unanswered = unanswered + ?"
    connection.execute(added, found)
    return connection.execute(f"DELETE FROM batches WHERE {_OLD}", (before,)).rowcount

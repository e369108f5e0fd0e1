"""The tables of files and batches, and how those of an older folder become the same.

Columns are only ever added, each with a default, and every INSERT names its own: so an older release goes on beside a newer one
that has added some meanwhile, as while one replaces the other. What a database has is counted in its `user_version`. One that has
more than this release knows is not begun with: what the more means would be ignored, and missing in what is written.
"""

from __future__ import annotations

import sqlite3

from nereid.serving.gateway.batches.retention import TOTALS
from nereid.serving.gateway.batches.trouble import NewerDatabaseError

_TABLES = """
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
CREATE INDEX IF NOT EXISTS files_of ON files (owner);
CREATE INDEX IF NOT EXISTS batches_of ON batches (owner);
"""

_LATER = (
    ("files", "expires_at", "INTEGER"),
    ("batches", "output_seconds", "INTEGER"),
    ("batches", "answer_bytes", "INTEGER NOT NULL DEFAULT 0"),
    ("batches", "usage", "TEXT"),
    ("batches", "model", "TEXT"),
)
"""Columns that the first tables did not have, in the order in which they came: more may be added, null or with a default."""

SCHEMA = len(_LATER)
"""What `PRAGMA user_version` is of a database with all of these; 0 of those of releases that did not count."""


def prepare(connection: sqlite3.Connection) -> None:
    """Make the tables, or bring those that are there up to date; raises sqlite3.Error, NewerDatabaseError before any change."""
    _require_known(connection)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.executescript(_TABLES)
    connection.executescript(TOTALS)
    connection.execute("BEGIN IMMEDIATE")  # of gateways that begin together one looks and adds at a time
    _require_known(connection)
    for table, column, kind in _LATER:
        if column not in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
    if _version(connection) < SCHEMA:
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _require_known(connection: sqlite3.Connection) -> None:
    if (found := _version(connection)) > SCHEMA:
        raise NewerDatabaseError(
            f"its database is of a later release (schema {found}, and this one knows {SCHEMA}); "
            "use that release, or another folder"
        )

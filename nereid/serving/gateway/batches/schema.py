"""The tables of files and batches, and how those of an older folder become the same."""

from __future__ import annotations

import sqlite3

from nereid.serving.gateway.batches.retention import TOTALS

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
"""Columns that the first tables did not have, in the order in which they came."""


def prepare(connection: sqlite3.Connection) -> None:
    """Make the tables, or bring those that are there up to date; raises sqlite3.Error."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.executescript(_TABLES)
    connection.executescript(TOTALS)
    connection.execute("BEGIN IMMEDIATE")  # of gateways that begin together one looks and adds at a time
    for table, column, kind in _LATER:
        if column not in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
    connection.execute("COMMIT")

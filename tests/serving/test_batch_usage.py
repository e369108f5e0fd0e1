"""What a batch tells of its answers' tokens, whatever their endpoint calls them; and folders of before that was told."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from nereid.serving.gateway.batches.schema import prepare
from nereid.serving.gateway.batches.states import State
from nereid.serving.gateway.batches.store import BatchStore
from nereid.serving.gateway.batches.usage import BatchUsage

from batch_gateway import line, stored

CHAT = {
    "prompt_tokens": 5,
    "completion_tokens": 2,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
RESPONSE = {
    "input_tokens": 10,
    "output_tokens": 20,
    "total_tokens": 30,
    "input_tokens_details": {"cached_tokens": 3},
    "output_tokens_details": {"reasoning_tokens": 6},
}


def test_tokens_of_all_endpoints_are_added_up() -> None:
    used = BatchUsage()
    assert (used.told(), used.model) == (None, None)
    for usage in (
        CHAT,
        RESPONSE,
        {"prompt_tokens": 100, "total_tokens": 100},
        None,
    ):  # the last are an embedding's and a picture's
        used.add({"model": "llm", "usage": usage})
    used.add("no object")
    assert used.told() == {
        "input_tokens": 115,
        "input_tokens_details": {"cached_tokens": 7},
        "output_tokens": 22,
        "output_tokens_details": {"reasoning_tokens": 7},
        "total_tokens": 137,
    }
    assert used.model == "llm"
    used.add({"model": "other"})
    assert used.model is None


def test_a_batch_that_ended_before_tokens_were_told_is_still_read(tmp_path: Path) -> None:
    store, batch = stored(tmp_path, line("a"))
    store.close()
    older = sqlite3.connect(tmp_path / "batches.sqlite")
    for column in ("usage", "model"):
        older.execute(f"ALTER TABLE batches DROP COLUMN {column}")
    older.commit()
    older.close()
    found = BatchStore(tmp_path).batch(batch)
    assert found is not None
    assert (found.status, found.usage, found.model) == (State.VALIDATING, None, None)
    again = sqlite3.connect(tmp_path / "batches.sqlite")
    prepare(again)  # once more changes nothing
    again.close()


def test_a_folder_that_a_later_gateway_has_changed_is_still_read(tmp_path: Path) -> None:
    """Two releases share it while one replaces the other."""
    store, batch = stored(tmp_path, line("a"))
    later = sqlite3.connect(tmp_path / "batches.sqlite")
    for table in ("batches", "files"):
        later.execute(f"ALTER TABLE {table} ADD COLUMN unknown TEXT")
    later.close()
    found = store.batch(batch)
    assert found is not None
    assert store.file(found.owner, found.input_file) is not None
    assert store.batches(found.owner) == [found]


class Hurried(sqlite3.Connection):
    """Before it adds a column, another process tries to."""

    def execute(self, query: str, *values: Any) -> sqlite3.Cursor:
        if query.startswith("ALTER"):
            other = sqlite3.connect(self.execute("PRAGMA database_list").fetchone()[2], timeout=0)
            with contextlib.suppress(sqlite3.OperationalError):
                other.execute(query)
            other.close()
        return super().execute(query, *values)


def test_gateways_that_begin_together_add_a_column_once(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "batches.sqlite", isolation_level=None, factory=Hurried)
    prepare(connection)
    prepare(connection)
    assert not connection.in_transaction
    connection.close()

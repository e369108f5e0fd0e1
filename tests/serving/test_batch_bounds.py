"""Batches that are begun are bounded, by number and by what their requests take; a disk without space harms nothing for long."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import openai
import pytest
from test_batches_apart import add, answered, problems, status
from test_batches_apart import line as asked

from nereid.serving.gateway.batches import runner
from nereid.serving.gateway.batches import store as stores
from nereid.serving.gateway.batches.files import SMALLEST_BYTES, StorageLimits
from nereid.serving.gateway.batches.store import ROW_BYTES, BatchStore, State, TooManyBatchesError
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.paging import Part

from batch_gateway import URL, Model, begin, ended, line, serving, work


def test_a_key_has_so_many_batches_that_are_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MOST_OPEN", 2)
    model = Model()
    with serving(tmp_path, model) as client:
        try:
            done = ended(client, begin(client, line("a")))
            assert done.status == "completed"
            slow = [begin(client, line("a", "slow")) for _ in range(2)]
            with pytest.raises(openai.RateLimitError, match="2 batches are not done, and no more are taken") as refused:
                begin(client, line("a"))
            error: Any = refused.value.body
            assert (error["code"], refused.value.response.headers["retry-after"]) == ("rate_limit_exceeded", "60")
        finally:
            model.release.set()
        assert [ended(client, batch).status for batch in slow] == ["completed"] * 2
        assert ended(client, begin(client, line("a"))).status == "completed"


def test_another_keys_batches_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MOST_OPEN", 1)
    store = BatchStore(tmp_path)
    for owner in ("one", "two"):
        store.add_batch(owner, URL, "file", "24h", 60, None)
        with pytest.raises(TooManyBatchesError):
            store.add_batch(owner, URL, "file", "24h", 60, None)


def test_a_batch_is_refused_where_its_key_has_no_room_left(tmp_path: Path) -> None:
    with serving(tmp_path, Model(), files_megabytes=1) as client:
        file = client.files.create(file=("asked.jsonl", line("a").encode()), purpose="batch")
        for _ in range(3):
            client.files.create(file=("a", b"x" * 290_000), purpose="batch")
        client.files.create(file=("a", b"x" * (2**20 - 3 * 290_000 - SMALLEST_BYTES)), purpose="batch")
        with pytest.raises(openai.BadRequestError, match="delete files that are not needed any more") as refused:
            client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
        error: Any = refused.value.body
        assert (error["code"], error["param"]) == ("storage_limit_exceeded", "input_file_id")


def test_the_requests_of_a_batch_count_until_it_is_done_and_fail_it_where_they_find_no_room(tmp_path: Path) -> None:
    store = BatchStore(tmp_path)
    lines = [asked(f"{number:0100}") for number in range(50)]
    batch = add(store, *lines)
    (kept,) = store.files("")
    work(store, answered, lambda: status(store, batch) == State.IN_PROGRESS)
    assert store.used("")[0] >= kept.bytes + 50 * (ROW_BYTES + 100)
    work(store, answered, lambda: status(store, batch) == State.COMPLETED)
    assert store.used("")[0] == sum(max(file.bytes, SMALLEST_BYTES) for file in store.files(""))
    store.limits = StorageLimits(key_bytes=store.used("")[0] + kept.bytes + 4 * SMALLEST_BYTES)
    full, other = add(store, *lines), add(store, asked("a"))
    work(store, answered, lambda: status(store, full) == State.FAILED and status(store, other) == State.COMPLETED)
    assert [(item["code"], item["line"]) for item in problems(store, full)] == [("storage_limit_exceeded", None)]
    assert "the files of those without a key would take" in problems(store, full)[0]["message"]


def test_the_rows_of_requests_are_as_large_as_they_count(tmp_path: Path) -> None:
    store = BatchStore(tmp_path)
    batch = add(store, *(asked(f"request-{number}") for number in range(5000)))
    before = _pages(store)
    work(store, answered, lambda: status(store, batch) == State.IN_PROGRESS)
    found = store.batch(batch)
    assert found is not None
    assert 0.7 < (_pages(store) - before) / found.answer_bytes < 1.3


def test_a_disk_without_space_is_named_and_the_next_change_is_made(tmp_path: Path) -> None:
    store = BatchStore(tmp_path)
    add(store, asked("a"))
    (pages,) = store._rows("PRAGMA page_count")[0]
    store._rows(f"PRAGMA max_page_count = {pages}")
    long = {"a": "x" * 2**20}
    with pytest.raises(sqlite3.OperationalError, match="database or disk is full"):
        store.add_batch("", URL, "file", "24h", 60, long)
    store._rows("PRAGMA max_page_count = 1000000")
    assert store.add_batch("", URL, "file", "24h", 60, long).metadata == long


def test_a_file_that_cannot_be_noted_is_not_left(tmp_path: Path) -> None:
    store = BatchStore(tmp_path)
    store._rows(f"PRAGMA max_page_count = {store._rows('PRAGMA page_count')[0][0]}")
    draft = store.draft()
    draft.write_text("{}")
    with pytest.raises(sqlite3.OperationalError, match="database or disk is full"):
        store.add_file(draft, "", "a" * 2**20, "batch")
    draft.unlink(missing_ok=True)
    assert list(store.contents.iterdir()) == []


def test_an_end_of_a_change_that_fails_undoes_it(tmp_path: Path) -> None:
    store = BatchStore(tmp_path)
    store._rows("PRAGMA foreign_keys = ON")
    store._rows("CREATE TABLE parents (id INTEGER PRIMARY KEY)")
    store._rows("CREATE TABLE children (parent INTEGER REFERENCES parents DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(sqlite3.IntegrityError), store._transaction() as connection:
        connection.execute("INSERT INTO children VALUES (1)")  # refused when the change is to be committed
    assert store._rows("SELECT * FROM children") == []
    add(store, asked("a"))


def test_a_file_that_goes_while_leftovers_are_looked_at_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BatchStore(tmp_path)
    (store.contents / "sent.part").symlink_to(tmp_path / "nowhere")
    store.tidy()
    monkeypatch.setattr(BatchStore, "tidy", lambda self: 1 / 0)
    batch = add(store, asked("a"))
    work(store, answered, lambda: status(store, batch) == State.COMPLETED)


def test_what_a_process_that_was_killed_has_left_goes_once_it_is_old_without_another_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that comes soon finds it too new, and it stayed (https://github.com/OctopusDeploy/Issues/issues/4457)."""
    for name in ("_SWEEP_SECONDS", "_TIDY_SECONDS"):
        monkeypatch.setattr(runner, name, 0.0)
    store = BatchStore(tmp_path)
    left, sent = store.draft(), store.draft()
    left.write_text("half of it")
    sent.write_text("coming")
    looks = 0

    def gone() -> bool:
        nonlocal looks
        looks += 1
        if looks == 20:
            assert left.exists()
            os.utime(left, (0, 0))
        return not left.exists()

    work(store, answered, gone)
    assert sent.exists()


def _pages(store: BatchStore) -> int:
    """Bytes of the database."""
    (pages,), (size,) = store._rows("PRAGMA page_count")[0], store._rows("PRAGMA page_size")[0]
    return int(pages) * int(size)


def test_of_very_many_files_and_batches_no_more_are_read_than_a_page_has(tmp_path: Path) -> None:
    """Lists without a bound hold up everybody (https://github.com/mozilla-ai/otari/issues/786)."""
    store = BatchStore(tmp_path)
    rows = [(f"file-{i}", "one" if i % 2 else "two", "a", "batch", 1, 1, None) for i in range(3000)]
    with store._transaction() as connection:
        connection.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    made = [add(store, line("a")) for _ in range(5)]
    asked: list[str] = []
    store._connection.set_trace_callback(asked.append)
    assert [file.id for file in store.files("one", Part(2))] == ["file-2999", "file-2997", "file-2995"]
    assert [file.id for file in store.files("one", Part(1, ascending=True, after="file-7"), "batch")] == ["file-9", "file-11"]
    assert store.files("one", Part(1), "batch_output") == []
    assert [batch.id for batch in store.batches("", Part(1, after=made[3]))] == [made[2], made[1]]
    store._connection.set_trace_callback(None)
    for part in (Part(1, after="file-8"), Part(1, after="file-none")):  # one of another key is none
        with pytest.raises(ApiError, match="it must be the id of one in the list"):
            store.files("one", part)
    for query in asked:
        plan = " ".join(row[3] for row in store._connection.execute(f"EXPLAIN QUERY PLAN {query}"))
        assert "SEARCH" in plan, (query, plan)
        assert "TEMP B-TREE" not in plan, (query, plan)

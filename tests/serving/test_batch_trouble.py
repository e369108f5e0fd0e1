"""While a folder of batches cannot be used: that it can again is said when it can, and another database is not written beside."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from nereid.serving.gateway.batches import runner
from nereid.serving.gateway.batches.asking import Answer
from nereid.serving.gateway.batches.states import State
from nereid.serving.gateway.batches.store import BatchStore
from nereid.serving.gateway.batches.trouble import ExchangedDatabaseError

from batch_gateway import add, line, status, work

AGAIN = "the folder of files and batches can be used again"


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Sentences of the folder."""
    told = [record.getMessage() for record in caplog.records]
    return [sentence for sentence in told if "the folder of files and batches" in sentence]


async def answered(path: str, body: dict[str, Any], owner: str) -> Answer:
    return Answer(200, "id", {"text": body["prompt"]})


def test_while_answers_find_no_space_nothing_says_that_the_folder_can_be_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = BatchStore(tmp_path)
    batch = add(store, line("a"))
    asked: list[str] = []

    async def long(path: str, body: dict[str, Any], owner: str) -> Answer:
        asked.append(path)
        (pages,) = store._rows("PRAGMA page_count")[0]
        store._rows(f"PRAGMA max_page_count = {pages if len(asked) < 3 else 1_000_000}")
        return Answer(200, "id", {"text": "x" * 100_000})

    with caplog.at_level(logging.INFO):
        work(store, long, lambda: status(store, batch) == State.COMPLETED and AGAIN in caplog.text)
    assert len(asked) == 3
    refused, again = said(caplog)
    assert refused.startswith(f"an answer of batch {batch} cannot be kept, its request is asked again later: ")
    assert again == AGAIN


def test_while_nothing_can_be_deleted_nothing_says_that_the_folder_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runner, "_SWEEP_SECONDS", 0.0)
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.001)
    store, rounds = BatchStore(tmp_path), 0
    store._rows("PRAGMA query_only = 1")
    sweep = BatchStore.sweep

    def swept(self: BatchStore) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 10:
            store._rows("PRAGMA query_only = 0")
        sweep(self)

    monkeypatch.setattr(BatchStore, "sweep", swept)
    with caplog.at_level(logging.INFO):
        work(store, answered, lambda: AGAIN in caplog.text)
    assert rounds >= 10
    assert len(said(caplog)) == 2


def test_a_folder_that_went_and_came_back_is_used_again_and_none_is_made_in_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "batches"
    store = BatchStore(folder)
    batch = add(store, line("a"))
    folder.rename(tmp_path / "away")
    folder.mkdir()
    for call in (store.open_batches, lambda: store.files(""), lambda: add(store, line("b")), store.tidy):
        with pytest.raises(FileNotFoundError):
            call()
    assert list(folder.iterdir()) == []
    folder.rmdir()
    (tmp_path / "away").rename(folder)
    work(store, answered, lambda: status(store, batch) == State.COMPLETED)


def test_a_database_in_the_place_of_another_is_told_and_not_written_beside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, other = BatchStore(tmp_path / "one"), BatchStore(tmp_path / "other")
    batch = add(store, line("a"))
    other.close()
    own = tmp_path / "own"
    store.database.rename(own)
    (tmp_path / "other" / "batches.sqlite").rename(store.database)
    with caplog.at_level(logging.INFO):
        work(store, answered, lambda: "stands in the place of its own" in caplog.text)
    with pytest.raises(ExchangedDatabaseError):
        store.move(batch, State.CANCELLING, State.VALIDATING)
    own.rename(store.database)
    work(store, answered, lambda: status(store, batch) == State.COMPLETED)
    assert "Traceback" not in caplog.text


def test_a_folder_that_is_gone_is_told_in_a_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = BatchStore(tmp_path / "batches")
    shutil.rmtree(tmp_path / "batches")
    with caplog.at_level(logging.INFO):
        work(store, answered, lambda: "cannot be used" in caplog.text)
    (sentence,) = said(caplog)
    assert sentence.endswith(
        "the folder of files and batches cannot be used: it is not there, or not all of it; it is tried again"
    )
    assert "Traceback" not in caplog.text

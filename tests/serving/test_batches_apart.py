"""One batch that cannot be worked on harms no other: what is wrong with it is its own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from nereid.serving.gateway.batches import runner
from nereid.serving.gateway.batches.asking import Answer
from nereid.serving.gateway.batches.load import Load
from nereid.serving.gateway.batches.pace import Pace
from nereid.serving.gateway.batches.runner import BatchRunner
from nereid.serving.gateway.batches.store import BatchStore, State

from batch_gateway import add, status, work
from waiting import reach

URL = "/v1/completions"


def line(name: str) -> str:
    return json.dumps({"custom_id": name, "method": "POST", "url": URL, "body": {"prompt": "w"}})


def problems(store: BatchStore, batch: str) -> list[dict[str, Any]]:
    found = store.batch(batch)
    assert found is not None
    return found.problems


async def answered(path: str, body: dict[str, Any], owner: str) -> Answer:
    return Answer(200, "id", {"text": body["prompt"]})


def test_an_id_that_can_be_kept_nowhere_is_a_wrong_line(tmp_path: Path) -> None:
    store = BatchStore(tmp_path)
    odd, other = add(store, line("a"), line("\ud800")), add(store, line("b"))
    work(store, answered, lambda: status(store, other) == State.COMPLETED)
    assert status(store, odd) == State.FAILED
    assert [(item["line"], item["param"]) for item in problems(store, odd)] == [(2, "custom_id")]
    assert "surrogate" in problems(store, odd)[0]["message"]


def test_a_file_that_cannot_be_read_fails_its_batch_alone(tmp_path: Path) -> None:
    store = BatchStore(tmp_path)
    lost, other = add(store, line("a")), add(store, line("b"))
    found = store.batch(lost)
    assert found is not None
    store.path(found.input_file).unlink()
    work(store, answered, lambda: status(store, other) == State.COMPLETED)
    assert status(store, lost) == State.FAILED
    assert problems(store, lost)[0]["message"] == "the file cannot be read"


def test_a_batch_that_fails_as_a_whole_rests_while_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_REST_SECONDS", 0.05)
    store = BatchStore(tmp_path)
    broken, other = add(store, line("a")), add(store, line("b"))
    begin = store.begin
    tried: list[str] = []

    def begins(batch_id: str, *more: Any) -> None:
        if batch_id == broken and len(tried) < 3:
            tried.append(batch_id)
            raise OSError("no space is left")
        begin(batch_id, *more)

    monkeypatch.setattr(BatchStore, "begin", lambda self, *given: begins(*given))
    work(store, answered, lambda: status(store, other) == State.COMPLETED and status(store, broken) == State.COMPLETED)
    assert len(tried) == 3


def test_nothing_is_noted_of_a_batch_that_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BatchStore(tmp_path)
    lost, other = add(store, line("a")), add(store, line("b"))
    finish = store.finish

    def fails_afterwards(self: BatchStore, batch_id: str, *more: Any) -> None:
        finish(batch_id, *more)
        if batch_id == lost:
            raise OSError("the disk has gone")

    monkeypatch.setattr(BatchStore, "finish", fails_afterwards)
    worker = BatchRunner(store, Load(), answered, Pace(gap_seconds=0.0))
    worker.under_way._times[lost, 0] = 2
    store.move(lost, State.CANCELLING, State.VALIDATING)

    async def go() -> None:
        task = asyncio.ensure_future(worker.run())
        await reach(lambda: status(store, other) == State.COMPLETED and not (worker._resting or worker.under_way._times))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(go())
    assert status(store, lost) == State.CANCELLED


def test_an_end_that_fails_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BatchStore(tmp_path)
    batch = add(store, line("a"), line("b"))
    work(store, answered, lambda: status(store, batch) == State.IN_PROGRESS)
    told = {"response": {"status_code": 400, "request_id": "", "body": {}}, "error": None}
    store.answer(batch, 0, told, ok=True)
    store.answer(batch, 1, told, ok=False)
    before = sorted(path.name for path in store.contents.iterdir())
    place = BatchStore._place
    calls: list[Any] = []

    def second_fails(self: BatchStore, *given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise OSError("no space is left")
        return place(self, *given)

    monkeypatch.setattr(BatchStore, "_place", second_fails)
    with pytest.raises(OSError, match="no space"):
        store.finish(batch, State.COMPLETED, None)
    assert sorted(path.name for path in store.contents.iterdir()) == before
    assert [file.purpose for file in store.files("")] == ["batch"]
    store.finish(batch, State.COMPLETED, None)
    assert status(store, batch) == State.COMPLETED
    assert len(store.files("")) == 3

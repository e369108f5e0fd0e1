"""How long a batch that has ended is known, and that nothing else goes with it; metrics when the store cannot be read."""

from __future__ import annotations

import base64
import json
import logging
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from typer.testing import CliRunner

from nereid.serving.errors import ServingError
from nereid.serving.gateway.batches import lines
from nereid.serving.gateway.batches.asking import Answer
from nereid.serving.gateway.batches.retention import DAY_SECONDS
from nereid.serving.gateway.batches.states import State
from nereid.serving.gateway.batches.store import BatchStore
from nereid.serving.gateway.launch import Rules
from nereid.serving.gateway.metrics import GatewayMetrics
from nereid.serving.gateway.service import GatewayOptions
from nereid.serving.options import ServeOptions
from nereid_client.main import app

from batch_gateway import URL, Model, answers, begin, ended, line, serving, work
from drawing_models import Drawers, drawing_repository
from gateway_before import gateway
from picture_calls import BLUE, EDIT, pixels, png
from small_servers import grpc_server
from waiting import until


def later(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """As if so much time had passed."""
    now = time.time
    monkeypatch.setattr("nereid.serving.gateway.batches.store.time.time", lambda: now() + days * DAY_SECONDS)


async def answered(path: str, body: dict[str, Any], owner: str) -> Answer:
    return Answer(200 if body["prompt"] != "wrong" else 400, "id", {"text": body["prompt"]})


def add(store: BatchStore, *asked: str) -> str:
    draft = store.draft()
    draft.write_text("\n".join(asked))
    return store.add_batch("", URL, store.add_file(draft, "", "asked", "batch").id, "24h", 10**9, None).id


def done(store: BatchStore, batch: str) -> bool:
    found = store.batch(batch)
    return found is not None and found.status in (State.COMPLETED, State.FAILED)


def test_a_batch_is_known_for_so_many_days_after_its_end_and_its_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BatchStore(tmp_path, days=3)
    old, wrong = add(store, line("a"), line("b", "wrong")), add(store, "{")
    work(store, answered, lambda: done(store, old) and done(store, wrong))
    waiting = add(store, line("c"))
    files, numbers = store.files(""), store.numbers()
    later(monkeypatch, 2.9)
    assert store.forget_ended() == 0
    young = add(store, line("d"))
    work(store, answered, lambda: done(store, young), None)
    later(monkeypatch, 0.2)
    assert store.forget_ended() == 2
    assert store.batch(old) is store.batch(wrong) is None
    assert store.batch(young) is not None
    assert store.batch(waiting) is not None
    store.tidy()
    kept = store.files("")
    assert [file for file in kept if file in files] == files
    output = next(file for file in kept if file.filename == f"{old}_output.jsonl")
    assert json.loads(store.path(output.id).read_text())["custom_id"] == "a"
    assert {**numbers.outcomes, "completed": store.numbers().outcomes["completed"]} == store.numbers().outcomes
    assert store.numbers().outcomes["completed"] >= numbers.outcomes["completed"] + 1
    store.close()
    again = BatchStore(tmp_path, days=3)
    assert again.numbers().outcomes["completed"] >= numbers.outcomes["completed"] + 1


def test_what_was_not_answered_of_a_batch_that_is_forgotten_is_counted_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BatchStore(tmp_path)
    batch = add(store, line("a"), line("b"))
    work(store, answered, lambda: done(store, batch))
    cancelled = add(store, line("a"), line("b"))
    checked = lines.checked(store.path(store.open_batches()[0].input_file), URL)
    store.begin(cancelled, checked.lines, [])
    store.finish(cancelled, State.CANCELLED, {"code": "batch_cancelled", "message": "it was"})
    before = store.numbers().outcomes
    assert before == {"completed": 2, "failed": 0, "unanswered": 2}
    later(monkeypatch, 31)
    assert store.forget_ended() == 2
    assert store.numbers().outcomes == before
    assert store.numbers().states["completed"] == 0


def test_the_gateway_forgets_by_itself_and_the_batch_is_not_found_any_more(tmp_path: Path) -> None:
    model = Model()
    with serving(tmp_path, model, batches_days=1) as client:
        batch = ended(client, begin(client, line("a")))
    store = BatchStore(tmp_path / "batches")
    store._rows("UPDATE batches SET times = ?", json.dumps({"completed": int(time.time() - 1.1 * DAY_SECONDS)}))
    store.close()
    with serving(tmp_path, model, batches_days=1) as client:
        until(lambda: not list(client.batches.list()))
        with pytest.raises(openai.NotFoundError):
            client.batches.retrieve(batch.id)
        assert list(answers(client, batch.output_file_id)) == ["a"]


def test_days_are_an_option_with_bounds(tmp_path: Path) -> None:
    helped = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    assert "--openai-batches-days" in helped
    for days in (0, 3651):
        with pytest.raises(ServingError, match=f"--openai-batches-days: {days} is not allowed; it must be 1 to 3650"):
            GatewayOptions(port=1, rules=Rules(batches_days=days)).check(ServeOptions(repository=tmp_path))


def test_files_of_answers_and_the_end_of_their_batch_are_one_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends between them, the next process finds neither or both."""
    store = BatchStore(tmp_path)
    batch = add(store, line("a"))
    work(store, answered, lambda: done(store, batch))
    again = add(store, line("a"))
    found = lines.checked(store.path(store.open_batches()[0].input_file), URL)
    store.begin(again, found.lines, [])
    before = store.files("")
    monkeypatch.setattr("nereid.serving.gateway.batches.store._move", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.finish(again, State.COMPLETED, None)
    assert store.files("") == before
    assert {path.name for path in store.contents.iterdir()} == {file.id for file in before}


# --- metrics ---


def test_a_store_that_cannot_be_read_is_left_out_of_the_metrics_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics, fails = GatewayMetrics(), [False]
    store_numbers = BatchStore(tmp_path).numbers()

    def read() -> Any:
        if fails[0]:
            raise sqlite3.OperationalError("disk I/O error")
        return store_numbers

    metrics.watch_batches(read)
    metrics.ended("POST /v1/completions", 200, 0.1, "id")
    for failing, told in ((True, 1), (True, 1), (False, 1), (True, 2)):
        fails[0] = failing
        with caplog.at_level(logging.WARNING, "nereid.gateway"):
            page = metrics.page("", "http://127.0.0.1:9/metrics")[0].decode()
        assert ("nereid_gateway_batches{" in page) is not failing
        assert "nereid_gateway_requests_total{" in page
        warned = [record for record in caplog.records if "cannot be counted" in record.getMessage()]
        assert len(warned) == told
        assert "disk I/O error" in warned[0].getMessage()


# --- pictures ---


def test_pictures_in_json_are_edited_in_a_batch(tmp_path: Path, drawers: Drawers) -> None:
    address = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    asked = {
        "one": {"prompt": "a box", "images": [{"image_url": address}]},
        "two": {"prompt": "a box", "image": address, "priority": 3},
        "wrong": {"prompt": "a box", "images": [{"image_url": "https://example.org/a.png"}]},
    }
    repository = drawing_repository(tmp_path / "repository")
    with (
        grpc_server(drawers.all()) as (port, _),
        gateway(repository, port, rules=Rules(batches=str(tmp_path / "batches"))) as running,
    ):
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        lines = [json.dumps({"custom_id": name, "method": "POST", "url": EDIT, "body": body}) for name, body in asked.items()]
        batch = ended(client, begin(client, *lines, endpoint=EDIT))
        assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 2, 1)
        for item in answers(client, batch.output_file_id).values():
            made = pixels(base64.b64decode(item["response"]["body"]["data"][0]["b64_json"]))
            assert (made[..., :3] == 255 - pixels(png(BLUE.convert("RGB")))).all()
        error = answers(client, batch.error_file_id)["wrong"]["response"]
        assert (error["status_code"], error["body"]["error"]["param"]) == (400, "images.0.image_url")
        assert sorted(int(np.ravel(inputs["priority"])[0]) for inputs in drawers.asked) == [3, 9]


def test_a_line_with_a_picture_may_be_as_large_as_such_a_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MOST_LINE_BYTES", 300)
    monkeypatch.setattr(lines, "MOST_PICTURE_LINE_BYTES", 600)
    file = tmp_path / "asked"
    for url, largest in ((URL, 300), (EDIT, 600)):
        file.write_text(line("a", "x" * 400, url=url))
        assert [problem.message for problem in lines.checked(file, url).problems] == (
            ["the line is larger than 300 bytes"] if largest == 300 else []
        )


def test_forms_of_pictures_are_still_no_batch(tmp_path: Path) -> None:
    with serving(tmp_path, Model()) as client:
        sent = httpx.post(
            f"{client.base_url}batches",
            json={"input_file_id": "f", "endpoint": "/v1/images/variations", "completion_window": "24h"},
        )
        assert (sent.status_code, sent.json()["error"]["param"]) == (400, "endpoint")

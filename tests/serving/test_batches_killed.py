"""A process that is killed while it ends a batch, and a disk that is full: the next one finds all, and no more than once."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nereid.serving.gateway.batches.asking import Answer
from nereid.serving.gateway.batches.lines import checked
from nereid.serving.gateway.batches.load import Load
from nereid.serving.gateway.batches.pace import Pace
from nereid.serving.gateway.batches.states import State
from nereid.serving.gateway.batches.store import BatchStore

from batch_gateway import URL, Server, line, running, state, stored, work
from waiting import reach

END = """
import os, signal, sys
from pathlib import Path
from nereid.serving.gateway.batches import answer_files, files, store as stores
from nereid.serving.gateway.batches.states import State

def die(*_): os.kill(os.getpid(), signal.SIGKILL)

place, drop, json_line = stores.BatchStore._place, stores._move, answer_files.json_line
lines, placed = [], []
def written(value):
    lines.append(value)
    return json_line(value) if len(lines) < 2 else die()
def second(self, *given):
    placed.append(given)
    place(self, *given)
    len(placed) == 2 and die()
match sys.argv[3]:
    case "writing": answer_files.json_line = written
    case "placing": stores.BatchStore._place = second
    case "moving": stores._move = die
store = stores.BatchStore(Path(sys.argv[1]))
store.finish(sys.argv[2], State.COMPLETED, None)
die()
"""


def ready_to_end(folder: Path) -> tuple[BatchStore, str]:
    store, batch = stored(folder, line("a"), line("b"), line("c"))
    store.begin(batch, checked(store.path(store.open_batches()[0].input_file), URL).lines, [])
    for place, status in enumerate((200, 400, 200)):
        response = {"status_code": status, "request_id": "", "body": {}}
        assert store.answer(batch, place, {"response": response, "error": None}, ok=status == 200)
    return store, batch


@pytest.mark.parametrize("where", ["writing", "placing", "moving", "afterwards"])
def test_whenever_a_process_is_killed_at_the_end_of_a_batch_the_next_one_ends_it(tmp_path: Path, where: str) -> None:
    store, batch = ready_to_end(tmp_path)
    store.close()
    ended = subprocess.run([sys.executable, "-c", END, str(tmp_path), batch, where], check=False)
    assert ended.returncode == -signal.SIGKILL
    again = BatchStore(tmp_path)
    assert state(again, batch)[0] == ("completed" if where == "afterwards" else "in_progress")
    assert len(again.files("")) == (3 if where == "afterwards" else 1)

    async def nothing(path: str, body: dict[str, Any], owner: str) -> Answer:
        raise AssertionError("it is answered")

    work(again, nothing, lambda: state(again, batch)[0] == State.COMPLETED)
    files = {file.filename.rpartition("_")[2]: again.path(file.id).read_text() for file in again.files("")}
    read = {name: [json.loads(raw)["custom_id"] for raw in files[name].splitlines()] for name in ("output.jsonl", "error.jsonl")}
    assert read == {"output.jsonl": ["a", "c"], "error.jsonl": ["b"]}
    assert len(again.files("")) == 3
    found = again.batch(batch)
    assert found is not None
    assert {found.output_file, found.error_file} <= {file.id for file in again.files("")}


def test_answers_that_cannot_be_kept_are_asked_for_again_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, batch = stored(tmp_path, *(line(f"r{i}") for i in range(4)))
    answer, tried, asked = BatchStore.answer, list[float](), list[float]()

    class Timed(Server):
        async def __call__(self, path: str, body: dict[str, Any], owner: str) -> Answer:
            asked.append(time.monotonic())
            return await super().__call__(path, body, owner)

    def fails_at_first(self: BatchStore, batch_id: str, place: int, told: Any, *, ok: bool) -> bool:
        tried.append(time.monotonic())
        if len(tried) <= 4:
            raise OSError("no space is left on the device")
        return answer(self, batch_id, place, told, ok=ok)

    monkeypatch.setattr(BatchStore, "answer", fails_at_first)

    async def play() -> None:
        server = Timed()
        async with running(store, Load(), server, Pace(at_once=4, gap_seconds=0.0, ramp_seconds=0.0)):
            await reach(lambda: server.inside == 4)
            server.hold.set()
            await reach(lambda: state(store, batch)[0] == State.COMPLETED)
        assert asked[4] - tried[0] >= 0.5  # nothing is computed that could not be kept either

    asyncio.run(play())
    assert state(store, batch) == ("completed", 4, 4, 0)

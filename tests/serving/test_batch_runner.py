"""When requests of batches run, and that none is lost or answered twice, whatever ends."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from nereid.serving.gateway.batches import runner
from nereid.serving.gateway.batches.lines import checked, read_body
from nereid.serving.gateway.batches.load import Load
from nereid.serving.gateway.batches.pace import Pace
from nereid.serving.gateway.batches.store import BatchStore, State

from batch_gateway import URL, Server, line, running, state, stored
from waiting import reach


def test_requests_run_together_in_a_gap_and_are_put_back_when_somebody_comes(tmp_path: Path) -> None:
    store, batch = stored(tmp_path, *(line(f"r{i}", f"p{i}") for i in range(6)))

    async def play() -> None:
        load, server = Load(), Server()
        async with running(store, load, server, Pace(at_once=4, gap_seconds=0.02, ramp_seconds=0.1, starved_seconds=60)):
            await reach(lambda: server.inside == 4)
            load.enter()
            await reach(lambda: server.inside == 0)
            assert sorted(server.gone) == ["p0", "p1", "p2", "p3"]
            await asyncio.sleep(0.3)
            assert len(server.asked) == 4  # nothing begins while somebody waits
            load.leave()
            server.hold.set()
            await reach(lambda: state(store, batch)[0] == State.COMPLETED)
            assert server.most == 4

    asyncio.run(play())
    assert state(store, batch) == ("completed", 6, 6, 0)


def test_a_request_that_was_put_back_often_runs_to_its_end(tmp_path: Path) -> None:
    store, batch = stored(tmp_path, line("a", "p"))

    async def play() -> None:
        load, server = Load(), Server()
        async with running(store, load, server, Pace(at_once=4, gap_seconds=0.01, starved_seconds=60)):
            for _ in range(3):
                await reach(lambda: server.inside == 1)
                load.enter()
                await reach(lambda: server.inside == 0)
                load.leave()
            await reach(lambda: server.inside == 1)
            load.enter()
            await asyncio.sleep(0.3)
            assert (server.inside, len(server.gone)) == (1, 3)
            server.hold.set()
            await reach(lambda: state(store, batch)[0] == State.COMPLETED)

    asyncio.run(play())


def test_of_requests_that_were_put_back_often_one_at_a_time_runs_to_its_end(tmp_path: Path) -> None:
    store, batch = stored(tmp_path, *(line(f"r{i}", f"p{i}") for i in range(4)))

    async def play() -> None:
        load, server = Load(), Server()
        async with running(store, load, server, Pace(at_once=4, gap_seconds=0.01, ramp_seconds=0.1, starved_seconds=60)):
            for left in (0, 0, 0, 1, 1):
                await reach(lambda: server.inside == 4)
                load.enter()
                await reach(lambda left=left: server.inside == left)
                await asyncio.sleep(0.2)
                assert server.inside == left
                load.leave()
            assert "p0" not in server.gone[12:]  # the first in the file is the first to stay
            server.hold.set()
            await reach(lambda: state(store, batch)[0] == State.COMPLETED)

    asyncio.run(play())


def test_more_requests_run_together_the_longer_a_gap_lasts(tmp_path: Path) -> None:
    store, _ = stored(tmp_path, *(line(f"r{i}") for i in range(9)))

    async def play() -> None:
        load, server = Load(), Server()
        load.enter()
        async with running(store, load, server, Pace(at_once=5, gap_seconds=0.0, ramp_seconds=2.0, starved_seconds=60)):
            await asyncio.sleep(0.3)
            begun = time.monotonic()
            load.leave()
            for together in (1, 2, 3, 4, 5):
                await reach(lambda together=together: server.inside >= together)
                assert time.monotonic() - begun >= 2.0 * ((server.inside - 1) / 4) ** 0.5
            await asyncio.sleep(0.1)
            assert server.inside == 5

    asyncio.run(play())


def test_nothing_begins_once_somebody_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = stored(tmp_path, *(line(f"r{i}", f"p{i}") for i in range(4)))
    load, reads = Load(), list[int]()

    def comes_meanwhile(file: Path, start: int) -> dict[str, Any]:
        reads.append(start)
        if len(reads) == 3:
            load.inside += 1
        return read_body(file, start)

    monkeypatch.setattr(runner, "read_body", comes_meanwhile)

    async def play() -> None:
        server = Server()
        async with running(store, load, server, Pace(at_once=4, gap_seconds=0.0, ramp_seconds=0.0, starved_seconds=60)):
            await reach(lambda: len(reads) == 3)
            await asyncio.sleep(0.3)
            assert sorted(server.asked) == sorted(server.gone) == ["p0", "p1"]
            assert len(reads) == 3

    asyncio.run(play())


def test_without_any_gap_one_at_a_time_runs(tmp_path: Path) -> None:
    store, batch = stored(tmp_path, *(line(f"r{i}") for i in range(3)))

    async def play() -> None:
        load, server = Load(), Server()
        load.enter()
        server.hold.set()
        async with running(store, load, server, Pace(at_once=4, gap_seconds=0.02, starved_seconds=0.05)):
            await reach(lambda: state(store, batch)[0] == State.COMPLETED)
        assert server.most == 1

    asyncio.run(play())


def test_what_the_server_cannot_take_now_is_asked_again(tmp_path: Path) -> None:
    store, batch = stored(tmp_path, line("a", "p"))

    async def play() -> None:
        load, server = Load(), Server(503, 429)
        server.hold.set()
        async with running(store, load, server, Pace(gap_seconds=0.0)):
            await reach(lambda: state(store, batch)[0] == State.COMPLETED)
        assert server.asked == ["p"] * 3

    asyncio.run(play())
    assert state(store, batch) == ("completed", 1, 1, 0)


def test_an_expired_batch_tells_which_requests_were_not_answered(tmp_path: Path) -> None:
    store, batch = stored(tmp_path, line("a"), line("b"))

    async def play() -> None:
        server = Server()
        async with running(store, Load(), server, Pace(at_once=1, gap_seconds=0.0)):
            await reach(lambda: server.inside == 1)
            store._rows("UPDATE batches SET expires_at = ?", int(time.time()) - 1)
            await reach(lambda: state(store, batch)[0] == State.EXPIRED)
            assert server.gone == ["w"]

    asyncio.run(play())
    found = store.batch(batch)
    assert found is not None
    assert found.error_file is not None
    told = [json.loads(raw) for raw in store.path(found.error_file).read_text().splitlines()]
    assert [(item["custom_id"], item["error"]["code"]) for item in told] == [("a", "batch_expired"), ("b", "batch_expired")]


def test_an_answer_is_noted_once_and_a_batch_that_was_nearly_done_is_finished(tmp_path: Path) -> None:
    store, batch = stored(tmp_path, line("a"))
    store.begin(batch, checked(store.path(store.open_batches()[0].input_file), URL).lines, [])
    told = {"response": {"status_code": 200, "request_id": "", "body": {}}, "error": None}
    assert store.answer(batch, 0, told, ok=True)
    assert not store.answer(batch, 0, told, ok=False)
    assert store.move(batch, State.FINALIZING, State.IN_PROGRESS)
    lost = store.path("file-of-a-process-that-ended")  # before anybody knew of it
    lost.write_text("{}")
    os.utime(lost, (1.0, 1.0))
    store.close()
    again = BatchStore(tmp_path)

    async def play() -> None:
        async with running(again, Load(), Server(), Pace()):
            await reach(lambda: state(again, batch)[0] == State.COMPLETED)

    asyncio.run(play())
    assert state(again, batch) == ("completed", 1, 1, 0)
    assert not lost.exists()


def test_every_answer_of_a_long_batch_is_written_in_the_order_of_the_lines(tmp_path: Path) -> None:
    names = [f"r{place}" for place in range(70)]
    store, batch = stored(tmp_path, *map(line, names))
    store.begin(batch, checked(store.path(store.open_batches()[0].input_file), URL).lines, [])
    for place in reversed(range(70)):
        told = {"response": {"status_code": 200, "request_id": "", "body": {"place": place}}, "error": None}
        assert store.answer(batch, place, told, ok=True)
    store.finish(batch, State.COMPLETED, None)
    found = store.batch(batch)
    assert found is not None
    assert found.output_file is not None
    lines = [json.loads(raw) for raw in store.path(found.output_file).read_text().splitlines()]
    assert [item["custom_id"] for item in lines] == names
    assert [item["response"]["body"]["place"] for item in lines] == [*range(70)]


def test_a_second_process_waits_for_the_first_to_end(tmp_path: Path) -> None:
    store, batch = stored(tmp_path, line("a"))
    other = BatchStore(tmp_path)

    async def play() -> None:
        first, second = Server(), Server()
        async with running(store, Load(), first, Pace(gap_seconds=0.0)):
            await reach(lambda: first.inside == 1)
            async with running(other, Load(), second, Pace(gap_seconds=0.0)):
                await asyncio.sleep(0.4)
                assert second.asked == []
                first.hold.set()
                await reach(lambda: state(other, batch)[0] == State.COMPLETED)
        assert (first.asked, second.asked) == (["w"], [])

    asyncio.run(play())

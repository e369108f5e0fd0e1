"""How batches get out of callers' way: set aside by the model itself where it can, put back elsewhere, and nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from nereid.serving.gateway.batches import runner
from nereid.serving.gateway.batches import store as stores
from nereid.serving.gateway.batches.asking import Answer
from nereid.serving.gateway.batches.load import Load
from nereid.serving.gateway.batches.pace import Pace
from nereid.serving.gateway.batches.states import State
from nereid.serving.gateway.batches.store import BatchStore
from nereid.serving.gateway.batches.trouble import TroubleLog
from nereid.serving.gateway.batches.under_way import Request, UnderWay

from batch_gateway import Model, Server, begin, ended, line, running, serving, state, stored
from waiting import reach, until

PACE = Pace(at_once=4, gap_seconds=0.0, ramp_seconds=0.0, starved_seconds=60)


@pytest.fixture
def model() -> Iterator[Model]:
    made = Model()
    yield made
    made.release.set()


def text_model(name: object) -> str | None:
    return "llm" if name == "llm" else None


def test_what_a_model_sets_aside_by_itself_is_left_to_it_and_nothing_begins(tmp_path: Path) -> None:
    store, batch = stored(tmp_path, *(line(f"r{i}", f"p{i}") for i in range(6)))

    async def play() -> None:
        load, server = Load(), Server()
        async with running(store, load, server, PACE, text_model):
            await reach(lambda: server.inside == 4)
            load.enter()
            load.reach("llm")
            await asyncio.sleep(0.3)
            assert (server.inside, server.gone, len(server.asked)) == (4, [], 4)
            load.leave("llm")
            server.hold.set()
            await reach(lambda: state(store, batch)[0] == State.COMPLETED)

    asyncio.run(play())
    assert state(store, batch) == ("completed", 6, 6, 0)


def test_who_waits_for_another_model_has_them_put_back(tmp_path: Path) -> None:
    store, _ = stored(tmp_path, *(line(f"r{i}", f"p{i}") for i in range(4)))

    async def play() -> None:
        load, server = Load(), Server()
        async with running(store, load, server, PACE, text_model):
            await reach(lambda: server.inside == 4)
            for there in ("llm", "denoise"):
                assert server.gone == []
                load.enter()
                load.reach(there)
                await asyncio.sleep(0.05)
            await reach(lambda: server.inside == 0)

    asyncio.run(play())


@pytest.mark.parametrize("body", [{"priority": 5}, {"priority": 2}, {"model": "other"}, {"model": None}], ids=str)
def test_a_request_that_its_model_would_not_set_aside_is_put_back(tmp_path: Path, body: dict[str, Any]) -> None:
    store, _ = stored(tmp_path, line("a", **body))

    async def play() -> None:
        load, server = Load(), Server()
        async with running(store, load, server, PACE, text_model):
            await reach(lambda: server.inside == 1)
            load.enter()
            await reach(lambda: server.inside == 0)

    asyncio.run(play())


def test_a_picture_of_no_models_name_is_put_back_where_texts_of_none_are_set_aside(tmp_path: Path) -> None:
    pictures = "/v1/images/generations"
    store, _ = stored(tmp_path, line("a", url=pictures, model=None), endpoint=pictures)

    async def play() -> None:
        load, server = Load(), Server()
        async with running(store, load, server, PACE, lambda name: None if name else "llm"):
            await reach(lambda: server.inside == 1)
            load.enter()
            await reach(lambda: server.inside == 0)

    asyncio.run(play())


def test_who_stops_a_batch_waits_for_the_answer_that_is_being_noted() -> None:
    """Else it would end without it."""
    noted, going_on = list[str](), asyncio.Event()

    async def note(request: Request, answer: Answer) -> None:
        await going_on.wait()
        noted.append("noted")

    async def answered() -> Answer:
        return Answer(200, "id", {})

    async def play() -> None:
        under_way = UnderWay(Load(), PACE, note, TroubleLog(Path()))
        under_way.begin(("batch", 0), answered(), None, beside=False)
        await asyncio.wait(under_way.tasks)
        collecting = asyncio.ensure_future(under_way.collect())
        await asyncio.sleep(0)
        stopping = asyncio.ensure_future(under_way.stop("batch"))
        await asyncio.sleep(0.05)
        assert not stopping.done()
        going_on.set()
        await stopping
        assert (noted, len(under_way)) == (["noted"], 0)
        await collecting

    asyncio.run(play())


def test_room_is_made_whatever_a_round_is_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, batch = stored(tmp_path, line("a"))
    file = store.open_batches()[0].input_file
    ending = store.add_batch("", "/v1/completions", file, "24h", 60, None).id
    blocked, finish = threading.Event(), BatchStore.finish
    writing = threading.Event()

    def slow(self: BatchStore, *given: Any) -> None:
        writing.set()
        assert blocked.wait(30)
        finish(self, *given)

    monkeypatch.setattr(stores.BatchStore, "finish", slow)

    async def play() -> None:
        load, server = Load(), Server()
        async with running(store, load, server, Pace(at_once=1, gap_seconds=0.0)):
            await reach(lambda: server.inside == 1)
            store.move(ending, State.CANCELLING, State.IN_PROGRESS, State.VALIDATING)
            await reach(writing.is_set)
            load.enter()
            await reach(lambda: server.inside == 0)
            assert server.gone == ["w"]
            blocked.set()

    asyncio.run(play())
    assert state(store, batch)[0] == State.IN_PROGRESS


def test_while_somebody_waits_the_store_is_hardly_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_LOOK_SECONDS", 60.0)
    store, _ = stored(tmp_path, line("a"))
    looks, opened = list[int](), BatchStore.open_batches

    def counted(self: BatchStore) -> Any:
        looks.append(1)
        return opened(self)

    monkeypatch.setattr(stores.BatchStore, "open_batches", counted)

    async def play() -> None:
        load, server = Load(), Server()
        async with running(store, load, server, PACE, text_model):
            await reach(lambda: server.inside == 1)
            load.enter()
            await asyncio.sleep(0.1)  # a round that was under way
            before = len(looks)
            for _ in range(20):
                load.enter()
                await asyncio.sleep(0.02)
            assert len(looks) <= before + 1

    asyncio.run(play())


def test_a_request_whose_time_ran_out_while_it_was_set_aside_is_asked_again_a_few_times(tmp_path: Path) -> None:
    store, batch = stored(tmp_path, line("a"))

    async def play() -> None:
        server = Server(*[504] * 9)
        server.hold.set()
        async with running(store, Load(), server, PACE):
            await reach(lambda: state(store, batch)[0] == State.COMPLETED)
        assert len(server.asked) == 4

    asyncio.run(play())
    assert state(store, batch) == ("completed", 1, 0, 1)


def test_a_chat_leaves_a_batch_of_its_model_alone_and_a_picture_does_not(tmp_path: Path, model: Model) -> None:
    with serving(tmp_path, model) as client:
        slow = begin(client, line("s", "slow"))
        until(lambda: "slow" in model.asked)
        client.completions.create(model="llm", prompt="hello")
        assert metric(client, "nereid_gateway_batch_requests_put_back_total") == 0
        client.images.generate(model="text_to_image", prompt="a box")
        until(lambda: metric(client, "nereid_gateway_batch_requests_put_back_total") == 1)
        model.release.set()
        assert ended(client, slow).request_counts.completed == 1


def metric(client: Any, name: str) -> float:
    page = httpx.get(f"{str(client.base_url).removesuffix('/v1/')}/metrics").text
    return float(next(row.split()[1] for row in page.splitlines() if row.startswith(f"{name} ")))

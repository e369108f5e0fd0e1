"""Files of batches are looked at a part at a time, several together: a large one holds no other up, whatever is in it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from nereid.serving.gateway.batches import lines as module
from nereid.serving.gateway.batches.lines import Checking, checked, read_body
from nereid.serving.gateway.batches.load import Load
from nereid.serving.gateway.batches.pace import Pace
from nereid.serving.gateway.batches.states import State
from nereid.serving.gateway.batches.store import Batch, BatchStore
from nereid.serving.gateway.batches.validating import AT_ONCE, Validating

from batch_gateway import URL, Server, add, line, running, status
from waiting import reach


@pytest.mark.parametrize("part", [1, 100, 333, 2**20])
def test_whatever_the_parts_the_same_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    file = tmp_path / "asked"
    lines = [line(f"r{place}", "ä" * place) for place in range(20)]
    file.write_text("\n\n".join([*lines, "{", line("r3"), "", line("r20")]))
    whole = checked(file, URL)
    monkeypatch.setattr(module, "PART_BYTES", part)
    assert checked(file, URL) == whole
    assert [read_body(file, found.start)["prompt"] for found in whole.lines] == [*("ä" * place for place in range(20)), "w"]
    assert [(problem.line, problem.code) for problem in whole.problems] == [
        (41, "invalid_json_line"),
        (43, "duplicate_custom_id"),
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_what_is_not_utf_8_is_told_as_such(tmp_path: Path, encoding: str) -> None:
    # https://github.com/mkht/PSOpenAI/issues/19, https://github.com/MicrosoftDocs/PowerShell-Docs/issues/7489
    file = tmp_path / "asked"
    mark = "" if encoding in ("utf-16", "latin-1") else "\ufeff"
    text = "".join(f"{line(f'r{place}', 'é')}\r\n".replace("\\u00e9", "é") for place in range(3))
    file.write_bytes(f"{mark}{text}".encode(encoding))
    found = checked(file, URL)
    assert found.lines == []
    assert found.problems[0].message == "the line is not UTF-8 text"


def test_a_mark_of_bytes_order_may_stand_before_all(tmp_path: Path) -> None:
    file = tmp_path / "asked"
    for before in ("", "\n", "\r\n\n"):
        file.write_text(f"{before}{line('r1', 'é')}\r\n", encoding="utf-8-sig")
        found = checked(file, URL)
        assert found.problems == []
        assert read_body(file, found.lines[0].start)["prompt"] == "é"


@pytest.mark.parametrize(
    ("method", "taken"), [(None, True), ("post", True), ("POST", True), ("GET", False), ("", False), (1, False)]
)
def test_a_method_is_post_or_absent(tmp_path: Path, method: object, taken: bool) -> None:
    file = tmp_path / "asked"
    file.write_text(line("r1").replace('"POST"', json.dumps(method)))
    found = checked(file, URL)
    assert (len(found.lines), [problem.param for problem in found.problems]) == ((1, []) if taken else (0, ["method"]))


def test_a_file_of_empty_lines_is_looked_at_in_parts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_BYTES", 100)
    file = tmp_path / "asked"
    file.write_text("\n" * 1000)
    check, parts = Checking(file, URL), 1
    while not check.go_on():
        parts += 1
    assert parts == 10
    assert check.found.problems[0].code == "empty_file"


def test_a_large_file_holds_no_smaller_one_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_BYTES", 200)
    store = BatchStore(tmp_path)
    large = [add(store, *(line(f"r{place}") for place in range(5000))) for _ in range(2)]
    small = add(store, line("a"))

    async def play() -> None:
        async with running(store, Load(), Server(), Pace(gap_seconds=0.0)):
            await reach(lambda: status(store, small) != State.VALIDATING)
            assert [status(store, batch) for batch in large] == [State.VALIDATING] * 2

    asyncio.run(play())


def test_of_many_the_oldest_and_the_smallest_are_looked_at_and_what_is_begun_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_BYTES", 100)
    store = BatchStore(tmp_path)
    batches = [add(store, *(line(f"r{place}") for place in range(size))) for size in (50, 40, 30, 20, 10, 5)]
    validating = Validating(store)

    async def chosen(waiting: Sequence[Batch]) -> list[int]:
        found = [batch.id for batch in await validating.choose(waiting)]
        return [batches.index(batch) for batch in found]

    async def play() -> None:
        opened = store.open_batches()
        assert len(opened) > AT_ONCE
        assert await chosen(opened) == [0, 5, 4, 3]
        for place in (0, 5, 4, 3):
            await validating.go_on(opened[place])
        assert sorted(await chosen(opened)) == [0, 3, 4, 5]
        validating.end(batches[0])
        validating.end(batches[5])
        assert await chosen(opened[1:5]) == [1, 2, 3, 4]
        newest = add(store, line("a"))
        batches.append(newest)
        assert sorted(await chosen(store.open_batches()[1:5] + store.open_batches()[6:])) == [1, 3, 4, 6]

    asyncio.run(play())


def test_a_batch_that_is_cancelled_while_its_file_is_read_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_BYTES", 10)
    store = BatchStore(tmp_path)
    batch = add(store, *(line(f"r{place}") for place in range(30)))
    looks, cancelled, look = list[int](), threading.Event(), Checking.go_on

    def held(self: Checking) -> bool:
        looks.append(1)
        if len(looks) == 3:
            assert cancelled.wait(60)
        return look(self)

    monkeypatch.setattr(Checking, "go_on", held)

    async def play() -> None:
        server = Server()
        async with running(store, Load(), server, Pace(gap_seconds=0.0)):
            await reach(lambda: len(looks) == 3)
            assert store.move(batch, State.CANCELLING, State.VALIDATING)
            cancelled.set()
            await reach(lambda: status(store, batch) == State.CANCELLED)
        assert server.asked == []

    asyncio.run(play())
    assert len(looks) == 3
    found = store.batch(batch)
    assert found is not None
    assert (found.total, found.output_file, found.error_file) == (0, None, None)

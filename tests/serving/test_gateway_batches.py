"""Files and batches of the gateway: forms, states, counts, and that nothing is lost or answered twice, whatever ends."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from nereid.serving.errors import ServingError
from nereid.serving.gateway.batches import runner
from nereid.serving.gateway.batches.lines import checked, read_body
from nereid.serving.gateway.batches.load import Load
from nereid.serving.gateway.batches.pace import Pace
from nereid.serving.gateway.batches.runner import PRIORITY
from nereid.serving.gateway.batches.store import BatchStore, State
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.forms import MOST_PARTS, Keep, boundary_of, read_form

from batch_gateway import URL, Model, Server, answers, begin, ended, line, running, serving, state, stored
from gateway_before import gateway, small_repository
from waiting import reach, until

BEGIN = {"input_file_id": "f", "endpoint": URL, "completion_window": "24h"}


# --- over HTTP, as OpenAI's package does it ---


@pytest.fixture
def model() -> Iterator[Model]:
    made = Model()
    yield made
    made.release.set()


def test_a_batch_is_answered_as_openais_package_expects_it(tmp_path: Path, model: Model) -> None:
    with serving(tmp_path, model) as client:
        made = begin(client, *(line(f"r{i}", f"p{i}") for i in range(30)), line("bad", "wrong"), line("none", model="gone"))
        assert (made.status, made.metadata, made.object) == ("validating", {"a": "b"}, "batch")
        done = ended(client, made)
        assert (done.status, done.errors) == ("completed", None)
        assert (made.usage, made.model, done.model) == (None, None, "llm")
        assert done.usage is not None
        assert (done.usage.input_tokens, done.usage.output_tokens, done.usage.total_tokens) == (90, 30, 120)
        assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (32, 30, 2)
        found, wrong = answers(client, done.output_file_id), answers(client, done.error_file_id)
        assert [item["response"]["body"]["choices"][0]["text"] for item in found.values()] == [f"p{i}" for i in range(30)]
        assert {item["response"]["status_code"] for item in found.values()} == {200}
        assert wrong["bad"]["response"]["status_code"] == 400
        assert wrong["bad"]["response"]["body"]["error"]["param"] == "prompt"
        assert wrong["none"]["response"]["body"]["error"]["code"] == "model_not_found"
        assert sorted(model.asked) == sorted(["wrong", *(f"p{i}" for i in range(30))])
        assert set(model.priorities) == {PRIORITY}
        assert [item.id for item in client.batches.list()] == [made.id]
        assert {item.purpose for item in client.files.list()} == {"batch", "batch_output"}


def test_chats_and_images_are_batches_too_and_a_lines_own_priority_stands(tmp_path: Path, model: Model) -> None:
    with serving(tmp_path, model) as client:
        chat = {"custom_id": "c", "url": "/v1/chat/completions", "body": {"model": "llm", "priority": 2}}
        chat["body"]["messages"] = [{"role": "user", "content": "hello"}]  # type: ignore[index]
        picture = {"custom_id": "i", "url": "/v1/images/generations", "body": {"model": "text_to_image", "prompt": "a box"}}
        for asked in (chat, picture):
            done = ended(client, begin(client, json.dumps(asked), endpoint=asked["url"]))
            assert (done.status, done.request_counts.completed) == ("completed", 1), answers(client, done.error_file_id)
        assert model.priorities == [2]
        assert (done.usage, done.model) == (None, None)  # of pictures


def test_responses_are_a_batch_of_their_key_and_are_kept_only_where_that_is_said(tmp_path: Path, model: Model) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text('[one]\nkey = "first-long-key"\n[two]\nkey = "second-long-key"\n')
    url = "/v1/responses"

    def asked(name: str, **body: Any) -> str:
        return json.dumps({"custom_id": name, "url": url, "body": {"model": "llm", "input": name, **body}})

    with serving(tmp_path, model, keys=str(keys)) as client:
        one, two = client.with_options(api_key="first-long-key"), client.with_options(api_key="second-long-key")
        before = one.responses.create(model="llm", input="before")
        lines = asked("a"), asked("b", store=True), asked("c", previous_response_id=before.id)
        done = ended(one, begin(one, *lines, endpoint=url))
        assert (done.status, done.request_counts.completed) == ("completed", 3), answers(one, done.error_file_id)
        found = {name: item["response"]["body"] for name, item in answers(one, done.output_file_id).items()}
        assert {name: body["output"][0]["content"][0]["text"] for name, body in found.items()} == {
            "a": "a",
            "b": "b",
            "c": "beforebeforec",  # the template writes the conversation one after the other
        }
        assert (done.usage.input_tokens, done.usage.output_tokens) == (9, 3)
        assert {name: body["store"] for name, body in found.items()} == {"a": False, "b": True, "c": False}
        assert one.responses.retrieve(found["b"]["id"]).output_text == "b"
        for key, name in ((one, "a"), (two, "b")):
            with pytest.raises(openai.NotFoundError):
                key.responses.retrieve(found[name]["id"])
        refused = ended(two, begin(two, lines[2], endpoint=url))
        assert refused.request_counts.failed == 1  # another key's conversation
        assert set(model.priorities[1:]) == {PRIORITY}


def test_a_picture_of_a_batch_has_no_address(tmp_path: Path, model: Model) -> None:
    body = {"model": "text_to_image", "prompt": "a box", "response_format": "url"}
    asked = {"custom_id": "i", "url": "/v1/images/generations", "body": body}
    with serving(tmp_path, model) as client:
        done = ended(client, begin(client, json.dumps(asked), endpoint=asked["url"]))
        error = answers(client, done.error_file_id)["i"]["response"]["body"]["error"]
        assert error["param"] == "response_format"
        assert "a batch's; it must be b64_json" in error["message"]


def test_no_character_of_an_answer_ends_its_line(tmp_path: Path, model: Model) -> None:
    odd = "one\u2028two\x85three\u2029four"
    with serving(tmp_path, model) as client:
        done = ended(client, begin(client, line(odd, odd), line("bad", "wrong")))
        found = answers(client, done.output_file_id)
        assert found[odd]["response"]["body"]["choices"][0]["text"] == odd
        assert list(answers(client, done.error_file_id)) == ["bad"]


def test_a_file_with_wrong_lines_fails_and_says_which(tmp_path: Path, model: Model) -> None:
    with serving(tmp_path, model) as client:
        done = ended(client, begin(client, line("a"), "{", line("a"), line("b", stream=True), line("c", url="/v1/other")))
        assert done.status == "failed"
        told = [(item.line, item.param, item.code) for item in done.errors.data]
        assert told == [
            (2, None, "invalid_json_line"),
            (3, "custom_id", "duplicate_custom_id"),
            (4, "body.stream", "invalid_request"),
            (5, "url", "invalid_request"),
        ]
        assert model.asked == []


def test_a_cancelled_batch_keeps_what_was_answered(tmp_path: Path, model: Model) -> None:
    with serving(tmp_path, model) as client:
        made = begin(client, line("a", "one"), line("b", "slow"), line("c", "slow"))
        until(lambda: client.batches.retrieve(made.id).request_counts.completed == 1 and "slow" in model.asked)
        with pytest.raises(openai.ConflictError):
            client.files.delete(made.input_file_id)
        assert client.batches.cancel(made.id).status in ("cancelling", "cancelled")
        done = ended(client, made)
        assert done.status == "cancelled"
        assert list(answers(client, done.output_file_id)) == ["a"]
        assert [item["error"]["code"] for item in answers(client, done.error_file_id).values()] == ["batch_cancelled"] * 2
        again = client.batches.cancel(made.id)  # as OpenAI's: who has not heard the answer asks again
        assert (again.status, again.output_file_id) == ("cancelled", done.output_file_id)
        assert client.files.delete(made.input_file_id).deleted


def test_a_batch_that_is_done_cannot_be_cancelled(tmp_path: Path, model: Model) -> None:
    with serving(tmp_path, model) as client:
        made = begin(client, line("a"))
        ended(client, made)
        with pytest.raises(openai.ConflictError, match="is completed and cannot be cancelled"):
            client.batches.cancel(made.id)


def test_a_restart_loses_nothing_and_answers_nothing_twice(tmp_path: Path, model: Model) -> None:
    names = [f"p{i}" for i in range(12)]
    with serving(tmp_path, model) as client:
        made = begin(client, *(line(name, name) for name in names), line("held", "slow"))
        until(lambda: client.batches.retrieve(made.id).request_counts.completed == 12)
    model.release.set()
    with serving(tmp_path, model) as client:
        done = ended(client, made)
        assert (done.status, done.request_counts.completed) == ("completed", 13)
        assert sorted(answers(client, done.output_file_id)) == sorted([*names, "held"])
        assert [model.asked.count(name) for name in names] == [1] * 12


def test_keys_see_their_own_files_and_batches_alone(tmp_path: Path, model: Model) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text('[one]\nkey = "first-long-key"\n[two]\nkey = "second-long-key"\n')
    with serving(tmp_path, model, keys=str(keys)) as client:
        one, two = client.with_options(api_key="first-long-key"), client.with_options(api_key="second-long-key")
        made = begin(one, line("a"))
        ended(one, made)
        assert [len(list(who.batches.list())) for who in (one, two)] == [1, 0]
        assert len(list(two.files.list())) == 0
        for refused in (lambda: two.batches.retrieve(made.id), lambda: two.files.content(made.input_file_id)):
            with pytest.raises(openai.NotFoundError):
                refused()
        with pytest.raises(openai.BadRequestError):
            two.batches.create(input_file_id=made.input_file_id, endpoint=URL, completion_window="24h")
        with pytest.raises(openai.AuthenticationError):
            client.files.list()


@pytest.mark.parametrize(
    ("path", "sent", "status", "words"),
    [
        ("/v1/files", {"files": {"file": ("a", b"{}")}}, 400, "purpose: '' is not allowed; it must be batch"),
        ("/v1/files", {"files": {"file": ("a", b"{}")}, "data": {"purpose": "fine-tune"}}, 400, "purpose: 'fine-tune'"),
        ("/v1/files", {"files": {"other": ("a", b"{}")}, "data": {"purpose": "batch"}}, 400, "file: it is missing"),
        ("/v1/files", {"files": {"file": ("a", b"{}")}, "data": {"purpose": "batch", "later": "1"}}, 400, "later: this field"),
        ("/v1/files", {"json": {}}, 415, "content-type"),
        ("/v1/files", {"files": {"file": ("a", b"x" * 400_000)}, "data": {"purpose": "batch"}}, 413, "larger than 300000"),
        ("/v1/batches", {"json": {"endpoint": URL, "completion_window": "24h"}}, 400, "input_file_id"),
        (
            "/v1/batches",
            {"json": {"input_file_id": "f", "endpoint": URL, "completion_window": "24h"}},
            400,
            "there is no file 'f'",
        ),
        ("/v1/batches", {"json": {"input_file_id": "f", "endpoint": "/v1/x", "completion_window": "24h"}}, 400, "endpoint"),
        ("/v1/batches", {"json": {"input_file_id": "f", "endpoint": URL, "completion_window": "1h"}}, 400, "completion_window"),
        ("/v1/batches/none/cancel", {"json": {}}, 404, "there is no batch 'none'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_taken_is_refused_by_name(
    tmp_path: Path, model: Model, path: str, sent: dict[str, Any], status: int, words: str
) -> None:
    with serving(tmp_path, model) as client:
        answer = httpx.post(f"{str(client.base_url).removesuffix('/v1/')}{path}", **sent)
        assert answer.status_code == status, answer.text
        assert words in answer.json()["error"]["message"]
    assert list((tmp_path / "batches" / "files").iterdir()) == []


def test_lists_come_in_pages(tmp_path: Path, model: Model) -> None:
    with serving(tmp_path, model) as client:
        made = [client.files.create(file=(f"{i}", b"{}"), purpose="batch").id for i in range(5)]
        assert [item.id for item in client.files.list(limit=2)] == made[::-1]  # the package asks for one page after the other
        assert [item.id for item in client.files.list(order="asc", limit=3)] == made
        assert len(client.files.list(limit=10_000).data) == 5
        for limit in (0, 10_001, "1" * 7, "000001" + "9" * 5000):
            with pytest.raises(openai.BadRequestError, match="it must be 1 to 10000"):
                client.files.list(limit=limit)  # type: ignore[arg-type]
        with pytest.raises(openai.BadRequestError, match="it must be 1 to 100"):
            client.batches.list(limit=101)


def test_without_a_folder_there_are_no_batches(tmp_path: Path, model: Model) -> None:
    with gateway(small_repository(tmp_path / "repository"), 9) as running:
        assert httpx.get(f"{running.url}/v1/batches").status_code == 404


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServingError, match=r"--openai-batches: .*file.* cannot be used"):
        BatchStore(tmp_path / "file")


# --- the runner ---


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


# --- what is read ---


def test_lines_begin_where_they_are_read_again(tmp_path: Path) -> None:
    file = tmp_path / "asked"
    file.write_text("\n" + line("ä", "é") + "\r\n\n" + line("b", "x"))
    found = checked(file, URL)
    assert [item.custom_id for item in found.lines] == ["ä", "b"]
    assert [read_body(file, item.start)["prompt"] for item in found.lines] == ["é", "x"]
    file.write_text("\n")
    assert checked(file, URL).problems[0].code == "empty_file"


def test_a_line_that_is_too_long_is_told_and_those_behind_it_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nereid.serving.gateway.batches.lines.MOST_LINE_BYTES", 150)
    file = tmp_path / "asked"
    file.write_text("\n".join([line("a", "x" * 1000), line("b"), line("c", "x" * 1000)]))
    found = checked(file, URL)
    assert [(problem.line, problem.message) for problem in found.problems] == [
        (1, "the line is larger than 150 bytes"),
        (3, "the line is larger than 150 bytes"),
    ]
    assert [read_body(file, item.start)["prompt"] for item in found.lines] == ["w"]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_form_is_read_in_any_pieces(size: int) -> None:
    content = b"one\r\n--x\r\n--boundar\r\ntwo\r\n"
    head = b'Content-Disposition: form-data; name="%s"'
    sent = (
        b"--boundary\r\n" + head % b"purpose" + b"\r\n\r\nbatch\r\n"
        b"--boundary\r\n" + head % b"empty" + b"\r\n\r\n\r\n"
        b"--boundary\r\n"
        + head % b"file"
        + b'; filename="a b.jsonl"\r\nContent-Type: x/y\r\n\r\n'
        + content
        + b"\r\n--boundary--\r\n"
    )
    kept = bytearray()

    async def pieces(whole: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(whole), size):
            yield whole[start : start + size]

    names: list[str | None] = []

    def file_of(name: str, filename: str | None) -> Keep | None:
        names.append(filename)
        return kept.extend if name == "file" else None

    fields = asyncio.run(read_form(pieces(sent), boundary_of("multipart/form-data; boundary=boundary"), file_of))
    assert bytes(kept) == content
    assert (names, fields) == ([None, None, "a b.jsonl"], [("purpose", "batch"), ("empty", "")])
    with pytest.raises(ApiError, match="ends before its last boundary"):
        asyncio.run(read_form(pieces(sent[:-20]), b"boundary", file_of))
    many = b"--boundary\r\n" + (head % b"x" + b"\r\n\r\n\r\n--boundary\r\n") * (MOST_PARTS + 1)
    with pytest.raises(ApiError, match=f"more than {MOST_PARTS} parts"):
        asyncio.run(read_form(pieces(many), b"boundary", file_of))

"""Files that expire, room that ends, and what the gateway's metrics tell of files and batches."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from nereid.serving.errors import ServingError
from nereid.serving.gateway.batches import runner
from nereid.serving.gateway.batches.asking import Answer
from nereid.serving.gateway.batches.files import SMALLEST_BYTES, StorageFullError, StorageLimits
from nereid.serving.gateway.batches.pace import Pace
from nereid.serving.gateway.batches.states import State
from nereid.serving.gateway.batches.store import BatchStore
from nereid.serving.gateway.launch import Rules
from nereid.serving.gateway.service import GatewayOptions
from nereid.serving.options import ServeOptions
from nereid_client.main import app
from nereid_protocol.metrics import GATEWAY_BATCH_METRICS

from batch_gateway import URL, Model, answers, begin, ended, line, serving, work
from waiting import until

HOUR = 3600
CHAT = "/v1/chat/completions"


@pytest.fixture
def model() -> Iterator[Model]:
    made = Model()
    yield made
    made.release.set()


def add(store: BatchStore, content: str, *, owner: str = "", seconds: int | None = None, bounded: bool = False) -> str:
    draft = store.draft()
    draft.write_text(content)
    return store.add_file(draft, owner, "asked", "batch", seconds, bounded=bounded).id


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """As if so much time had passed for files."""
    now = time.time
    monkeypatch.setattr("nereid.serving.gateway.batches.files.time.time", lambda: now() + seconds)


# --- expiry ---


def test_a_file_and_the_answers_of_a_batch_expire_as_asked(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, model) as client:
        expiry: Any = {"anchor": "created_at", "seconds": HOUR}
        file = client.files.create(file=("asked.jsonl", line("a").encode()), purpose="batch", expires_after=expiry)
        assert file.expires_at == file.created_at + HOUR
        kept = client.files.create(file=("kept.jsonl", b"{}"), purpose="batch")
        assert kept.expires_at is None
        made = client.batches.create(
            input_file_id=file.id, endpoint=URL, completion_window="24h", output_expires_after={**expiry, "seconds": 2 * HOUR}
        )
        done = ended(client, made)
        assert list(answers(client, done.output_file_id)) == ["a"]
        output = client.files.retrieve(done.output_file_id)
        assert output.expires_at == output.created_at + 2 * HOUR
        later(monkeypatch, HOUR + 1)
        assert {item.id for item in client.files.list()} == {kept.id, output.id}
        for gone in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError):
                gone(file.id)
        with pytest.raises(openai.BadRequestError, match="there is no file"):
            client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
        later(monkeypatch, 2 * HOUR + 1)
        assert [item.id for item in client.files.list()] == [kept.id]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"anchor": "now", "seconds": "3600"}, "expires_after.anchor", "'now' is not allowed; it must be created_at"),
        ({"seconds": "3600"}, "expires_after.anchor", "it is missing; it must be created_at"),
        ({"anchor": "created_at"}, "expires_after.seconds", "it is missing; it must be 3600 to 2592000"),
        ({"anchor": "created_at", "seconds": "3599"}, "expires_after.seconds", "'3599' is not allowed"),
        ({"anchor": "created_at", "seconds": "2592001"}, "expires_after.seconds", "'2592001' is not allowed"),
        ({"anchor": "created_at", "seconds": "1e9"}, "expires_after.seconds", "'1e9' is not allowed"),
        ({"anchor": "created_at", "seconds": "9" * 5000}, "expires_after.seconds", "is not allowed"),
        ({"": "soon"}, "expires_after", "'soon' is not allowed; it must have anchor and seconds"),
        ({"": '{"anchor": "created_at", "seconds": 3600, "more": 1}'}, "expires_after", "it must have anchor and seconds"),
        ({"": '{"anchor": "created_at", "seconds": 1e4}'}, "expires_after.seconds", "'10000.0' is not allowed"),
        ({"anchor": "created_at", "seconds": "3600", "later": "1"}, "expires_after[later]", "this field is not supported"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_expiry_that_cannot_be_is_refused_by_name(
    tmp_path: Path, model: Model, fields: dict[str, str], param: str, words: str
) -> None:
    with serving(tmp_path, model) as client:
        data = {"purpose": "batch", **{f"expires_after[{name}]".replace("[]", ""): value for name, value in fields.items()}}
        answer = httpx.post(f"{client.base_url}files", data=data, files={"file": ("a", b"{}")})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert words in answer.json()["error"]["message"]
        for seconds in (3599, 2_592_001):
            after: Any = {"anchor": "created_at", "seconds": seconds}
            with pytest.raises(openai.BadRequestError, match=r"output_expires_after\.seconds"):
                client.batches.create(input_file_id="f", endpoint=URL, completion_window="24h", output_expires_after=after)
    assert list((tmp_path / "batches" / "files").iterdir()) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"expires_after[anchor]": "created_at", "expires_after[seconds]": "7200"},
        {"expires_after": '{"anchor": "created_at", "seconds": 7200}'},  # openai-ruby
        {"expires_after.anchor": "created_at", "expires_after.seconds": "7200"},  # gateways in Go
        {"expires_after": "7200"},  # Vercel's AI SDK
    ],
    ids=str,
)
def test_an_expiry_is_read_in_every_form_that_packages_write(tmp_path: Path, model: Model, fields: dict[str, str]) -> None:
    with serving(tmp_path, model) as client:
        sent = httpx.post(f"{client.base_url}files", data={"purpose": "batch", **fields}, files={"file": ("a", b"{}")})
        assert sent.status_code == 200, sent.text
        assert sent.json()["expires_at"] == sent.json()["created_at"] + 7200


# --- what clients of other servers send ---


@pytest.mark.parametrize(("endpoint", "url"), [("/chat/completions", "/chat/completions"), ("v1/chat/completions", CHAT)])
def test_paths_without_their_first_parts_are_those_of_this_api(tmp_path: Path, model: Model, endpoint: str, url: str) -> None:
    body = {"model": "llm", "messages": [{"role": "user", "content": "hello"}]}
    asked = b"\xef\xbb\xbf" + json.dumps({"custom_id": "c", "method": "POST", "url": url, "body": body}).encode() + b"\r\n\r\n"
    with serving(tmp_path, model) as client:
        file = client.files.create(file=("asked.jsonl", asked), purpose="batch")
        made: Any = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")  # type: ignore[arg-type]
        assert made.endpoint == CHAT
        done = ended(client, made)
        assert (done.status, done.request_counts.completed) == ("completed", 1), done.errors


def test_a_path_of_another_api_is_still_refused(tmp_path: Path, model: Model) -> None:
    with serving(tmp_path, model) as client:
        for endpoint in ("/v1/moderations", "/v2/chat/completions", "/openai/chat/completions", 3):
            begun = {"input_file_id": "f", "endpoint": endpoint, "completion_window": "24h"}
            sent = httpx.post(f"{client.base_url}batches", json=begun)
            assert (sent.status_code, sent.json()["error"]["param"]) == (400, "endpoint")


def test_metadata_is_bounded_as_openais_is(tmp_path: Path, model: Model) -> None:
    with serving(tmp_path, model) as client:
        begun = {"input_file_id": "f", "endpoint": URL, "completion_window": "24h"}
        for metadata in ({"a" * 65: "b"}, {"a": "b" * 513}, {str(number): "" for number in range(17)}, {"a": 1}):
            sent = httpx.post(f"{client.base_url}batches", json={**begun, "metadata": metadata})
            assert sent.status_code == 400
            assert sent.json()["error"]["param"].startswith("metadata")
            assert len(sent.text) < 1000
        sent = httpx.post(f"{client.base_url}batches", json={**begun, "metadata": {"a" * 64: "b" * 512}})
        assert sent.json()["error"]["param"] == "input_file_id"


def test_a_list_of_files_is_whole_where_no_limit_is_asked(tmp_path: Path, model: Model) -> None:
    store = BatchStore(tmp_path / "batches")
    for _ in range(25):
        add(store, "{}")
    store.close()
    with serving(tmp_path, model) as client:
        listed = httpx.get(f"{client.base_url}files").json()
        assert (len(listed["data"]), listed["has_more"]) == (25, False)


def test_a_file_whose_time_is_over_gives_its_room_back_once_no_batch_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BatchStore(tmp_path)
    read, unread = (add(store, line("a"), seconds=HOUR) for _ in range(2))
    batch = store.add_batch("", URL, read, "24h", 10 * HOUR, None)
    later(monkeypatch, HOUR)
    store.sweep()
    assert (store.path(read).exists(), store.path(unread).exists()) == (True, False)
    assert store.file("", read) is None

    async def answered(path: str, body: dict[str, Any], owner: str) -> Answer:
        return Answer(200, "id", {})

    monkeypatch.setattr(runner, "_SWEEP_SECONDS", 0.0)
    work(store, answered, lambda: not store.path(read).exists())
    found = store.batch(batch.id)
    assert found is not None
    assert (found.status, found.completed) == (State.COMPLETED, 1)


def test_a_folder_of_before_files_expired_is_read_on(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "file-a").write_text(line("a"))
    old = sqlite3.connect(tmp_path / "batches.sqlite")
    old.executescript(
        """
        CREATE TABLE files (id TEXT PRIMARY KEY, owner TEXT NOT NULL, filename TEXT NOT NULL, purpose TEXT NOT NULL,
          bytes INTEGER NOT NULL, created_at INTEGER NOT NULL);
        CREATE TABLE batches (id TEXT PRIMARY KEY, owner TEXT NOT NULL, endpoint TEXT NOT NULL, input_file TEXT NOT NULL,
          status TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, window TEXT NOT NULL, metadata TEXT,
          output_file TEXT, error_file TEXT, times TEXT NOT NULL DEFAULT '{}', problems TEXT NOT NULL DEFAULT '[]',
          total INTEGER NOT NULL DEFAULT 0, completed INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0);
        INSERT INTO files VALUES ('file-a', '', 'asked', 'batch', 10, 1);
        """
    )
    old.execute(
        "INSERT INTO batches (id, owner, endpoint, input_file, status, created_at, expires_at, window) VALUES (?,?,?,?,?,?,?,?)",
        ("batch_a", "", URL, "file-a", "validating", 1, int(time.time()) + HOUR, "24h"),
    )
    old.commit()
    old.close()

    async def answered(path: str, body: dict[str, Any], owner: str) -> Answer:
        return Answer(200, "id", {})

    for _ in range(2):  # the second finds the columns that the first has made
        store = BatchStore(tmp_path)
        assert [(file.id, file.expires_at) for file in store.files("") if file.purpose == "batch"] == [("file-a", None)]
        store.close()
    store = BatchStore(tmp_path)
    work(store, answered, lambda: (found := store.batch("batch_a")) is not None and found.status is State.COMPLETED)


# --- room ---


def test_a_key_that_fills_its_room_is_refused_and_others_are_not(tmp_path: Path, model: Model) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text('[one]\nkey = "first-long-key"\n[two]\nkey = "second-long-key"\n')
    big = b"x" * 270_000
    with serving(tmp_path, model, keys=str(keys), files_megabytes=1, files_total_megabytes=2) as client:
        one, two = client.with_options(api_key="first-long-key"), client.with_options(api_key="second-long-key")
        kept = [one.files.create(file=("a", big), purpose="batch").id for _ in range(3)]
        with pytest.raises(openai.BadRequestError) as refused:
            one.files.create(file=("a", big), purpose="batch")
        error: Any = refused.value.body
        assert (error["code"], error["param"], error["type"]) == ("storage_limit_exceeded", "file", "invalid_request_error")
        assert "the files of key one would take" in error["message"]
        assert "they may take 1048576; delete files that are not needed any more" in error["message"]
        of_two = [two.files.create(file=("a", big), purpose="batch").id for _ in range(3)]
        one.files.delete(kept.pop())
        kept.append(one.files.create(file=("a", big), purpose="batch").id)  # there is room again
        assert len(list((tmp_path / "batches" / "files").iterdir())) == len(kept) + len(of_two)


def test_all_keys_together_have_a_bound_and_small_files_count(tmp_path: Path) -> None:
    store = BatchStore(tmp_path, StorageLimits(key_bytes=3 * SMALLEST_BYTES, total_bytes=4 * SMALLEST_BYTES))
    for owner in ("one", "one", "two", "two"):
        add(store, "{}", owner=owner, bounded=True)
    for owner, words in (("one", "the files of all keys together may take 16384 bytes, and would take more"),):
        with pytest.raises(StorageFullError, match=words):
            add(store, "{}", owner=owner, bounded=True)
    assert store.used("one") == (2 * SMALLEST_BYTES, 4 * SMALLEST_BYTES)
    add(store, "{}", owner="one")  # the answers of a batch are never lost
    with pytest.raises(StorageFullError, match="the files of key one would take"):
        store.require_room("one")


def test_files_that_are_sent_at_once_are_bounded_together_before_they_are_whole(tmp_path: Path, model: Model) -> None:
    folder, seen = tmp_path / "batches" / "files", list[int]()

    async def send(http: httpx.AsyncClient, url: str, all_sent: asyncio.Event, sent: list[int]) -> int:
        head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'

        async def pieces() -> Any:
            yield head + b"x" * 280_000
            sent.append(1)
            if len(sent) == 6:
                all_sent.set()
            await all_sent.wait()
            await asyncio.sleep(0.5)
            seen.append(sum(path.stat().st_size for path in folder.iterdir()))
            yield b'\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--\r\n'

        kind = {"content-type": "multipart/form-data; boundary=b"}
        return (await http.post(url, content=pieces(), headers=kind)).status_code

    async def play(url: str) -> list[int]:
        event, sent = asyncio.Event(), list[int]()
        async with httpx.AsyncClient(timeout=60) as http:
            return await asyncio.gather(*(send(http, url, event, sent) for _ in range(6)))

    with serving(tmp_path, model, files_megabytes=1) as client:
        statuses = asyncio.run(play(f"{client.base_url}files"))
        assert statuses.count(200) <= 3
        assert set(statuses) == {200, 400}
        assert max(seen) <= 2**20
        client.files.create(file=("a", b"{}"), purpose="batch")  # those that were refused take nothing any more


def test_a_batch_whose_answers_find_no_room_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_REST_SECONDS", 0.05)
    store = BatchStore(tmp_path, StorageLimits(key_bytes=200_000))
    other = add(store, "x" * 50_000, owner="one")
    read = add(store, "\n".join(line(f"r{number}") for number in range(8)), owner="one")
    batch = store.add_batch("one", URL, read, "24h", HOUR, None).id
    asked: list[str] = []

    async def answered(path: str, body: dict[str, Any], owner: str) -> Answer:
        asked.append(owner)
        return Answer(200, "id", {"text": "y" * 40_000})

    since: list[float] = []

    def stays_full() -> bool:
        if not since and asked and store.used("one")[0] + SMALLEST_BYTES > 200_000:
            since.append(time.monotonic())
        return bool(since) and time.monotonic() > since[0] + 0.5

    work(store, answered, stays_full, Pace(at_once=1, gap_seconds=0.0))
    begun = len(asked)
    assert 3 <= begun <= 5
    found = store.batch(batch)
    assert found is not None
    assert (found.status, found.completed) == (State.IN_PROGRESS, begun)
    store.limits = StorageLimits(key_bytes=2**20)
    store.drop_file(other)
    work(store, answered, lambda: (now := store.batch(batch)) is not None and now.status is State.COMPLETED)
    assert len(asked) == 8
    assert store.used("one")[0] == sum(max(file.bytes, SMALLEST_BYTES) for file in store.files("one"))


def test_bounds_are_options_of_serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[GatewayOptions] = []
    monkeypatch.setattr("nereid.serving.cli._run", lambda options, gateway: seen.append(gateway))
    words = ["--openai-files-megabytes", "3", "--openai-files-total-megabytes", "4", "--openai-url-total-megabytes", "5"]
    assert CliRunner().invoke(app, ["serve", "--openai-port", "8080", *words]).exit_code == 0
    rules = seen[0].rules
    assert (rules.files_megabytes, rules.files_total_megabytes, rules.url_total_megabytes) == (3, 4, 5)
    for wrong in (Rules(files_megabytes=0), Rules(files_total_megabytes=0), Rules(url_total_megabytes=0)):
        with pytest.raises(ServingError, match=r"--openai-[a-z-]+-megabytes: 0 is not allowed; it must be at least 1"):
            GatewayOptions(port=8080, rules=wrong).check(ServeOptions(repository=tmp_path))


# --- metrics ---


def page(client: openai.OpenAI) -> dict[tuple[str, str], float]:
    text = httpx.get(f"{str(client.base_url).removesuffix('/v1/')}/metrics").text
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_tell_of_batches_their_requests_and_files(tmp_path: Path, model: Model) -> None:
    with serving(tmp_path, model) as client:
        before = page(client)
        assert before["nereid_gateway_batches", "completed"] == before["nereid_gateway_files", ""] == 0
        ended(client, begin(client, line("a"), line("b", "wrong"), line("c")))
        ended(client, begin(client, "{"))
        slow = begin(client, line("s", "slow"), line("t", "slow"), line("u", "slow"))
        until(lambda: page(client)["nereid_gateway_batch_requests_running", ""] >= 1)
        found = page(client)
        assert {metric.name for metric in GATEWAY_BATCH_METRICS} <= {name for name, _ in found}
        states = {state: found["nereid_gateway_batches", state] for state in map(str, State)}
        assert {state: count for state, count in states.items() if count} == {"completed": 1, "failed": 1, "in_progress": 1}
        assert found["nereid_gateway_batch_requests_waiting", ""] == 3
        assert found["nereid_gateway_batch_requests_total", "completed"] == 2
        assert found["nereid_gateway_batch_requests_total", "failed"] == 1
        assert found["nereid_gateway_files", ""] == 5
        assert found["nereid_gateway_file_bytes", ""] >= 5 * SMALLEST_BYTES
        client.images.generate(model="text_to_image", prompt="a box")
        until(lambda: page(client)["nereid_gateway_batch_requests_put_back_total", ""] >= 1)
        client.batches.cancel(slow.id)
        ended(client, slow)
        assert page(client)["nereid_gateway_batch_requests_total", "unanswered"] == 3
    with serving(tmp_path, model) as client:  # a restart forgets none of it
        assert page(client)["nereid_gateway_batch_requests_total", "completed"] == 2
        assert json.loads((tmp_path / "batches" / "files" / client.files.list().data[-1].id).read_text().splitlines()[0])


def test_a_file_whose_contents_have_gone_is_not_there(tmp_path: Path, model: Model) -> None:
    """Deleted between its look-up and its first byte: Starlette makes a 500 of it (https://github.com/Kludex/starlette/issues/979)."""
    with serving(tmp_path, model) as client:
        file = client.files.create(file=("a.jsonl", b"{}"), purpose="batch")
        assert client.files.content(file.id).text == "{}"
        (tmp_path / "batches" / "files" / file.id).unlink()
        with pytest.raises(openai.NotFoundError, match="folder any more"):
            client.files.content(file.id)
        assert client.files.delete(file.id).deleted

"""A folder of batches that cannot be used: named at the start, answered in OpenAI's form later, and all else is served on."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from nereid.serving.errors import ServingError
from nereid.serving.gateway.batches import runner
from nereid.serving.gateway.batches.asking import Answer
from nereid.serving.gateway.batches.schema import _LATER, SCHEMA, prepare
from nereid.serving.gateway.batches.states import State
from nereid.serving.gateway.batches.store import BatchStore
from nereid.serving.gateway.batches.trouble import trouble_of

from batch_gateway import Model, add, begin, ended, line, serving, status, work

FULL = "the gateway's folder of files and batches cannot be used now: no space is left on its disk"
NOBODY = 65534
MEGABYTE = 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own, at the place of the folder."""
    folder = tmp_path / "batches"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def completion(client: openai.OpenAI) -> str:
    return client.completions.create(model="llm", prompt="w").choices[0].text


def refused(call: Callable[[], object], status_code: int) -> Any:
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    assert caught.value.status_code == status_code
    return caught.value.body


@pytest.fixture
def model() -> Model:
    return Model()


# --- at the start ---


def test_a_folder_on_a_read_only_file_system_is_named_at_the_start(disk: Path) -> None:
    for before in (True, False):
        if not before:
            BatchStore(disk).close()
        remount(disk, "ro")
        with pytest.raises(ServingError, match=rf"^--openai-batches: {disk} cannot be used: its file system is read-only$"):
            BatchStore(disk)
        remount(disk, "rw")


def test_a_full_disk_is_named_at_the_start(disk: Path) -> None:
    BatchStore(disk).close()
    with pytest.raises(OSError, match="No space left"):
        (disk / "other").write_bytes(bytes(2 * MEGABYTE))
    with pytest.raises(ServingError, match=rf"^--openai-batches: {disk} cannot be used: no space is left on its disk$"):
        BatchStore(disk)


@pytest.mark.parametrize("what", ["folder", "database", "lock", "files"])
def test_a_folder_of_another_owner_is_named_at_the_start(what: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root has files of two owners")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        BatchStore(folder).close()
        for path in folder.iterdir():
            os.chown(path, NOBODY, NOBODY)
        os.chown(folder, NOBODY, NOBODY)
        path = {"folder": folder, "database": folder / "batches.sqlite", "lock": folder / "lock", "files": folder / "files"}[what]
        os.chown(path, 0, 0)
        os.seteuid(NOBODY)
        try:
            with pytest.raises(ServingError, match=r"used: user .+ has no right to write all of it; it belongs to user "):
                BatchStore(folder)
        finally:
            os.seteuid(0)


def test_a_damaged_database_is_named_at_the_start(tmp_path: Path) -> None:
    BatchStore(tmp_path).close()
    (tmp_path / "batches.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(ServingError, match=r"cannot be used: its database is damaged \(file is not a database\)$"):
        BatchStore(tmp_path)


def test_mistakes_of_this_program_are_not_the_folders(tmp_path: Path) -> None:
    store = BatchStore(tmp_path)
    with pytest.raises(sqlite3.Error) as caught:
        store._rows("SELECT nothing FROM nowhere")
    assert trouble_of(caught.value, tmp_path) is None
    assert trouble_of(ConnectionResetError(104, "reset"), tmp_path) is None


# --- while it is served ---


def test_without_space_uploads_are_answered_with_507_and_all_else_is_served(
    tmp_path: Path, disk: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    other = disk / "other"
    with serving(tmp_path, model) as client, caplog.at_level(logging.INFO):
        other.write_bytes(bytes(MEGABYTE - 200_000))
        told = refused(lambda: client.files.create(file=("a.jsonl", b"x" * 250_000), purpose="batch"), 507)
        assert told == {"message": FULL, "type": "server_error", "param": None, "code": "insufficient_storage"}
        assert list((disk / "files").iterdir()) == []
        assert completion(client) == "w"
        other.unlink()
        assert ended(client, begin(client, line("a"))).status == "completed"
    assert FULL.split(": ")[1] in caplog.text
    assert "Traceback" not in caplog.text


def test_without_space_in_the_database_a_batch_is_answered_with_507(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stores: list[BatchStore] = []
    made = BatchStore.__post_init__
    monkeypatch.setattr(BatchStore, "__post_init__", lambda self: (made(self), stores.append(self))[0])
    with serving(tmp_path, model) as client:
        file = client.files.create(file=("a.jsonl", line("a").encode()), purpose="batch")
        (store,) = stores
        store._rows(f"PRAGMA max_page_count = {store._rows('PRAGMA page_count')[0][0]}")
        metadata = {f"key{number}": "x" * 500 for number in range(16)}
        make = client.batches.create
        told = refused(
            lambda: make(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h", metadata=metadata), 507
        )
        assert told["message"] == FULL
        assert client.files.retrieve(file.id).id == file.id
    assert "Traceback" not in caplog.text


def test_a_gateway_that_comes_back_without_its_folder_serves_all_else_until_it_can_be_used(
    tmp_path: Path, disk: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    remount(disk, "ro")
    with pytest.raises(ServingError, match="its file system is read-only"), serving(tmp_path, model):
        pass
    with serving(tmp_path, model, first=False) as client:
        for call in (client.files.list, client.batches.list, lambda: client.files.create(file=b"{}", purpose="batch")):
            told = refused(call, 503)
            assert told["message"].endswith("cannot be used now: its file system is read-only")
            assert told["code"] == "storage_unavailable"
        assert completion(client) == "w"
        assert client.models.list().data
        remount(disk, "rw")
        assert ended(client, begin(client, line("a"))).status == "completed"
    assert "Traceback" not in caplog.text


def test_batches_wait_for_space_and_say_so_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runner, "_REST_SECONDS", 0.05)
    store = BatchStore(tmp_path)
    batch = add(store, *(line(f"r{number}") for number in range(200)))
    ((pages,),) = store._rows("PRAGMA page_count")
    store._rows(f"PRAGMA max_page_count = {pages}")
    begins = BatchStore.begin
    tried: list[str] = []

    def begin_noted(self: BatchStore, batch_id: str, *more: Any) -> None:
        if len(tried) == 5:
            store._rows("PRAGMA max_page_count = 1000000")
        tried.append(batch_id)
        begins(self, batch_id, *more)

    async def answered(path: str, body: dict[str, Any], owner: str) -> Answer:
        return Answer(200, "id", {})

    monkeypatch.setattr(BatchStore, "begin", begin_noted)
    with caplog.at_level(logging.INFO):
        work(store, answered, lambda: status(store, batch) == State.COMPLETED)
    said = [record.getMessage() for record in caplog.records if "no space is left" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith(f"batch {batch} cannot be worked on now: the folder of files and batches cannot be used: no space")
    assert "the folder of files and batches can be used again" in caplog.text
    assert "Traceback" not in caplog.text


# --- its database, by releases ---


def later_release(folder: Path) -> None:
    """What a release does that has added a column to every table."""
    other = sqlite3.connect(folder / "batches.sqlite")
    for table in ("files", "batches", "requests", "forgotten"):
        other.execute(f"ALTER TABLE {table} ADD COLUMN later TEXT NOT NULL DEFAULT 'x'")
    other.execute(f"PRAGMA user_version = {SCHEMA + 4}")
    other.commit()
    other.close()


async def answered(path: str, body: dict[str, Any], owner: str) -> Answer:
    return Answer(200, "id", {"text": body["prompt"]})


def test_a_gateway_goes_on_beside_a_later_one_that_has_added_columns(tmp_path: Path) -> None:
    store = BatchStore(tmp_path)
    later_release(tmp_path)
    batch = add(store, line("a"))
    work(store, answered, lambda: status(store, batch) == State.COMPLETED)
    found = store.batch(batch)
    assert found is not None
    assert found.output_file is not None
    assert store.file("", found.output_file) is not None
    store.days = 0
    assert store.forget_ended() == 1
    assert store.numbers().outcomes["completed"] == 1


def test_a_database_of_a_later_release_is_refused_unchanged_and_an_older_one_is_brought_up_to_date(tmp_path: Path) -> None:
    def version() -> int:
        connection = sqlite3.connect(tmp_path / "batches.sqlite")
        found: int = connection.execute("PRAGMA user_version").fetchone()[0]
        connection.close()
        return found

    BatchStore(tmp_path).close()
    assert version() == SCHEMA
    older = sqlite3.connect(tmp_path / "batches.sqlite")
    older.execute("ALTER TABLE batches DROP COLUMN model")
    older.execute("PRAGMA user_version = 0")
    older.commit()
    older.close()
    BatchStore(tmp_path).close()
    assert version() == SCHEMA
    later_release(tmp_path)
    before = (tmp_path / "batches.sqlite").read_bytes()
    sentence = rf"its database is of a later release \(schema {SCHEMA + 4}, and this one knows {SCHEMA}\)"
    with pytest.raises(ServingError, match=rf"^--openai-batches: {tmp_path} cannot be used: {sentence}; use that release"):
        BatchStore(tmp_path)
    assert (tmp_path / "batches.sqlite").read_bytes() == before


def test_columns_that_were_added_are_left_out_by_older_releases(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "batches.sqlite", isolation_level=None)
    prepare(connection)
    for table, column, _ in _LATER:
        (found,) = [row for row in connection.execute(f"PRAGMA table_info({table})") if row[1] == column]
        _, _, _, is_required, default, is_key = found
        assert not is_key
        assert not is_required or default is not None
    connection.close()

"""What was reported of other servers' files, batches and embeddings, tried here with OpenAI's package and without."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from batch_gateway import Model, answers, begin, ended, line, serving
from waiting import until


def test_every_request_of_a_cancelled_batch_is_in_one_of_its_files(tmp_path: Path, model: Model) -> None:
    """Those under way were in neither (https://github.com/llm-d/llm-d-batch-gateway/issues/221), or all in both
    (https://github.com/llm-d/llm-d-batch-gateway/issues/504).
    """
    with serving(tmp_path, model) as client:
        names = [f"fast-{i}" for i in range(5)] + [f"slow-{i}" for i in range(20)]
        batch = begin(client, *(line(name, "slow" if "slow" in name else "w") for name in names))
        until(lambda: client.batches.retrieve(batch.id).request_counts.completed == 5)
        client.batches.cancel(batch.id)
        done = ended(client, batch)
        model.release.set()
        good, wrong = answers(client, done.output_file_id), answers(client, done.error_file_id)
    assert (done.status, sorted(good), sorted(wrong)) == ("cancelled", names[:5], sorted(names[5:]))
    assert {item["error"]["code"] for item in wrong.values()} == {"batch_cancelled"}
    assert (done.request_counts.total, done.request_counts.completed) == (25, 5)


def test_files_of_answers_are_listed_and_the_list_ends(tmp_path: Path, model: Model) -> None:
    """They were not (https://github.com/BerriAI/litellm/issues/41753), or the package asked for the same page for ever
    (https://github.com/BerriAI/litellm/issues/36324).
    """
    with serving(tmp_path, model) as client:
        done = [ended(client, begin(client, line("a"))) for _ in range(3)]
        listed = [file.id for file in client.files.list(limit=1, purpose="batch_output")]
        assert listed == [batch.output_file_id for batch in reversed(done)]
        assert len(list(client.files.list(limit=2))) == 6
        assert [batch.id for batch in client.batches.list(limit=1)] == [batch.id for batch in reversed(done)]


@pytest.mark.parametrize(
    "wrong",
    [
        '{"custom_id": "b", "params": {"prompt": "w"}}',
        '{"custom_id": "b", "url": "/v1/completions", "body": "w"}',
        "[1, 2, 3]",
        '"hello"',
        "null",
        '{"custom_id": 7, "url": "/v1/completions", "body": {}}',
    ],
)
def test_a_line_of_another_form_is_told_by_its_number(tmp_path: Path, model: Model, wrong: str) -> None:
    """A package wrote other names (https://github.com/567-labs/instructor/issues/1119), and a line that is no object ended the
    server's work on all (https://github.com/headroomlabs-ai/headroom/pull/2316).
    """
    with serving(tmp_path, model) as client:
        failed = ended(client, begin(client, line("a"), wrong))
    assert (failed.status, [problem.line for problem in failed.errors.data]) == ("failed", [2])
    assert model.asked == []


def test_empty_lines_between_requests_are_none(tmp_path: Path, model: Model) -> None:
    """https://github.com/vllm-project/vllm/pull/7132"""
    with serving(tmp_path, model) as client:
        done = ended(client, begin(client, "", line("a") + "\r", "  \t", line("b"), ""))
        assert sorted(answers(client, done.output_file_id)) == ["a", "b"]


def test_a_file_that_is_given_up_while_it_is_sent_leaves_nothing(tmp_path: Path, model: Model) -> None:
    """As of others' browsers and networks (https://github.com/nextcloud/server/issues/10800)."""
    with serving(tmp_path, model) as client:
        address, folder = (client.base_url.host, client.base_url.port), tmp_path / "batches" / "files"
        head = "POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n"
        head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        part = '--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + "x" * 50_000
        for _ in range(3):
            with socket.create_connection(address) as connection:
                connection.sendall((head + part).encode())
                until(lambda: any(folder.iterdir()))
            until(lambda: not any(folder.iterdir()))
        assert client.files.list().data == []


def test_very_many_small_files_have_a_bound_too(tmp_path: Path, model: Model) -> None:
    """Each counts for a disk's smallest piece; a list of them is no work (https://github.com/mozilla-ai/otari/issues/786)."""
    with serving(tmp_path, model, files_megabytes=1) as client, httpx.Client(base_url=str(client.base_url)) as plain:
        sent = [plain.post("files", files={"file": b""}, data={"purpose": "batch"}) for _ in range(258)]
        assert [answer.status_code for answer in sent] == [200] * 256 + [400] * 2
        assert sent[-1].json()["error"]["code"] == "storage_limit_exceeded"

        def listing() -> float:
            begun = time.monotonic()
            assert len(client.files.list(limit=3).data) == 3
            return time.monotonic() - begun

        assert min(listing() for _ in range(5)) < 1  # a machine that stands still for a while makes one late, and not all


@pytest.mark.parametrize(
    "path",
    [
        "files/..%2f..%2fbatches.sqlite/content",
        "files/%00",
        "batches/%2e%2e",
        "files/file-1%0d%0aX-Y:%20z/content",
        "batches/" + "a" * 9000,
    ],
)
def test_an_id_is_only_ever_looked_up(tmp_path: Path, model: Model, path: str) -> None:
    with serving(tmp_path, model) as client:
        answer: Any = httpx.get(f"{client.base_url}{path}")
    assert answer.status_code == 404
    assert "x-y" not in answer.headers
    assert len(answer.content) < 1000


@pytest.mark.parametrize(
    "name", ["../../batches.sqlite", "/etc/passwd", "a\r\nX-Y: z", 'a"; filename="b', "..", "\u202egnp.jsonl", "x" * 5000]
)
def test_a_files_name_is_told_and_names_nothing(tmp_path: Path, model: Model, name: str) -> None:
    with serving(tmp_path, model) as client:
        made = client.files.create(file=(name, b"{}"), purpose="batch")
        answer = httpx.get(f"{client.base_url}files/{made.id}/content")
        assert (answer.text, "x-y" in answer.headers) == ("{}", False)
        assert "/" not in answer.headers["content-disposition"].replace("utf-8''", "")
        assert [path.name for path in (tmp_path / "batches" / "files").iterdir()] == [made.id]
        assert len(made.filename) <= 255
        with pytest.raises(openai.BadRequestError, match="two files are not allowed"):
            client.post(
                "/files",
                cast_to=object,
                files=[("file", ("a", b"1")), ("file", ("b", b"2"))],
                body={"purpose": "batch"},
                options={"headers": {"Content-Type": "multipart/form-data"}},
            )

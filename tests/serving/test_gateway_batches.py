"""Files and batches over HTTP, as OpenAI's package asks for them: states, counts, keys, pages, refusals, lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from nereid.serving.errors import ServingError
from nereid.serving.gateway.batches.lines import checked, read_body
from nereid.serving.gateway.batches.runner import PRIORITY
from nereid.serving.gateway.batches.store import BatchStore

from batch_gateway import URL, Model, answers, begin, ended, line, serving
from gateway_before import gateway, small_repository
from waiting import until


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

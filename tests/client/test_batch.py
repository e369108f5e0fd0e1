"""`nereid batch run`: every request gets one good answer, whatever happens to the server, the network and the command."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from nereid_client import answer_file
from nereid_client.answer_file import AnswerFile
from nereid_client.batch import BatchRun, Target, read_requests
from nereid_client.batch_errors import BatchError
from nereid_client.main import app

from waiting import until


class Server:
    """Answers with the prompt; of a prompt in `first` the first answers have these statuses; "held" waits for `release`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str | None]] = []
        self.first: dict[str, list[int]] = {}
        self.release = threading.Event()
        self.inside = self.most = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                prompt = body["prompt"]
                outer.asked.append((prompt, self.path, self.headers.get("authorization")))
                outer.inside += 1
                outer.most = max(outer.most, outer.inside)
                if prompt == "held":
                    outer.release.wait(60)
                time.sleep(0.01)
                outer.inside -= 1
                waiting = outer.first.get(prompt)
                status = waiting.pop(0) if waiting else 200
                if status == 0:
                    self.connection.close()
                    return
                answer = json.dumps({"text": prompt}).encode()
                self.send_response(status)
                self.send_header("x-request-id", f"id-{prompt}")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda request, address: None  # type: ignore[method-assign]
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.http.server_port}"

    def prompts(self) -> list[str]:
        return [prompt for prompt, _, _ in self.asked]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("nereid_client.batch._FIRST_PAUSE", 0.01)
    made = Server()
    yield made
    made.release.set()
    made.http.shutdown()
    made.http.server_close()


def write(folder: Path, *prompts: str) -> Path:
    file = folder / "requests.jsonl"
    lines = [{"custom_id": f"r{p}", "method": "POST", "url": "/v1/completions", "body": {"prompt": p}} for p in prompts]
    file.write_text("\n".join(json.dumps(item) for item in lines))
    return file


def answers(file: Path) -> dict[str, Any]:
    lines = [json.loads(raw) for raw in file.read_text().splitlines()]
    found = {item["custom_id"]: item for item in lines}
    assert len(found) == len(lines), "a request has two answers"
    return found


def kept(file: Path) -> set[str]:
    """What another run would not ask again."""
    found = AnswerFile.at(file)
    found.close()
    return found.answered


def run(server: Server, source: Path, output: Path, *more: str) -> Any:
    return CliRunner().invoke(app, ["batch", "run", str(source), "-o", str(output), "--url", f"http://{server.url}/v1", *more])


def test_every_request_is_answered_a_few_at_a_time(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEREID_API_KEY", "k")
    prompts = [f"p{i}" for i in range(20)]
    made = run(server, write(tmp_path, *prompts), tmp_path / "out", "--at-once", "3")
    assert made.exit_code == 0, made.output
    found = answers(tmp_path / "out")
    assert {item["response"]["body"]["text"] for item in found.values()} == set(prompts)
    assert found["rp0"]["response"]["request_id"] == "id-p0"
    assert set(server.asked) == {(prompt, "/v1/completions", "Bearer k") for prompt in prompts}
    assert 1 < server.most <= 3


def test_why_requests_have_failed_is_said_and_while_they_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path, "a")
    made = CliRunner().invoke(
        app, ["batch", "run", str(source), "-o", str(tmp_path / "out"), "--url", "127.0.0.1:1", "--retries", "0"]
    )
    assert made.exit_code == 1
    assert "0 answers, 1 error\n" in made.output
    assert "error: the last that failed: 127.0.0.1:1 does not answer (Connection refused)" in made.output
    monkeypatch.setattr("nereid_client.batch._FIRST_PAUSE", 60.0)
    work = BatchRun(source, tmp_path / "out", Target.of("127.0.0.1:1"), retries=1)
    going = threading.Thread(target=lambda: list(work), daemon=True)
    going.start()
    until(lambda: work.trouble)
    assert (work.trouble, work.failure) == ("127.0.0.1:1 does not answer (Connection refused)", "")
    work._stopped.set()
    going.join(60)
    assert work.failure == work.trouble


def test_what_cannot_be_taken_now_is_tried_again_and_what_is_wrong_is_not(server: Server, tmp_path: Path) -> None:
    server.first = {"busy": [503, 429], "cut": [0], "wrong": [400], "never": [500] * 9}
    made = run(server, write(tmp_path, "busy", "cut", "wrong", "never"), tmp_path / "out", "--retries", "3")
    assert made.exit_code == 1
    assert "2 answers, 2 errors" in made.output
    found = answers(tmp_path / "out")
    told = {name: item["response"]["status_code"] for name, item in found.items()}
    assert told == {"rbusy": 200, "rcut": 200, "rwrong": 400, "rnever": 500}
    counted = {prompt: server.prompts().count(prompt) for prompt in ("busy", "cut", "wrong", "never")}
    assert counted == {"busy": 3, "cut": 2, "wrong": 1, "never": 4}


def test_a_second_run_asks_what_has_no_good_answer(server: Server, tmp_path: Path) -> None:
    source, output = write(tmp_path, "one", "two", "three"), tmp_path / "out"
    server.first = {"two": [400]}
    run(server, source, output)
    with output.open("a") as opened:
        opened.write('{"custom_id": "rthree", "respon')  # a run that was killed while it wrote
    server.asked.clear()
    made = run(server, source, output)
    assert made.exit_code == 0, made.output
    assert server.prompts() == ["two"]
    assert {item["response"]["status_code"] for item in answers(output).values()} == {200}
    assert len(answers(output)) == 3


def test_a_run_that_is_interrupted_keeps_its_answers(server: Server, tmp_path: Path) -> None:
    source, output = write(tmp_path, "one", "held", "two"), tmp_path / "out"
    command = [sys.executable, "-m", "nereid_client.main", "batch", "run", str(source), "-o", str(output), "--url", server.url]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    until(lambda: process.poll() is not None or (output.exists() and len(output.read_text().splitlines()) == 2))
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in " ".join(said.split())
    assert sorted(answers(output)) == ["rone", "rtwo"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it has no requests"),
        ("[]", "line 1: it is not a JSON object"),
        ('{"url": "/v1/x", "body": {}}', "line 1: custom_id"),
        ('{"custom_id": "a", "url": "x", "body": {}}', "line 1: url"),
        ('{"custom_id": "a", "url": "/v1/\u00e9", "body": {}}', "line 1: url"),
        ('{"custom_id": "a", "url": "/v1/a b", "body": {}}', "line 1: url"),
        ('{"custom_id": "a", "url": "/v1/x", "body": ' + '{"a":' * 20_000, "line 1: it is not a JSON object"),
        ('{"custom_id": "a", "url": "/v1/x"}', "line 1: body"),
        ('{"custom_id": "a", "url": "/v1/x", "body": {"stream": true}}', "line 1: body"),
        ('{"custom_id": "a", "url": "/v1/x", "body": {}, "method": "GET"}', "line 1: method: 'GET'"),
        (
            '\n{"custom_id": "a", "url": "/v1/x", "body": {}}\n{"custom_id": "a", "url": "/v1/x", "body": {}}',
            "line 3: custom_id: 'a'",
        ),
    ],
)
def test_a_file_that_cannot_be_sent_is_refused_before_anything_is(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "asked"
    file.write_text(text)
    with pytest.raises(BatchError, match="asked"):
        read_requests(file)
    made = CliRunner().invoke(app, ["batch", "run", str(file), "-o", str(tmp_path / "out"), "--url", "127.0.0.1:9"])
    assert made.exit_code == 1
    assert words in " ".join(made.output.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://x",
        "http://x:99999",
        "http://",
        "http://x/v1?a=b",
        "http://[",
        "a..b:80",
        "http://me:secret@x/v1",
        "http://x/\u00e9",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BatchError, match="--url"):
        Target.of(url)


@pytest.mark.parametrize(
    ("url", "secure", "address", "prefix"),
    [
        ("localhost:80", False, "localhost:80", ""),
        ("https://api.example/v1", True, "api.example", ""),
        ("http://[::1]:8080/", False, "[::1]:8080", ""),
        ("https://x.example/openai/v1/", True, "x.example", "/openai"),
    ],
)
def test_addresses_are_taken_as_people_write_them(url: str, secure: bool, address: str, prefix: str) -> None:
    made = Target.of(url).server
    assert (made.secure, made.host, made.prefix) == (secure, address, prefix)


def test_a_server_that_is_gone_is_an_error_in_each_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nereid_client.batch._FIRST_PAUSE", 0.001)
    work = BatchRun(write(tmp_path, "a"), tmp_path / "out", Target.of("127.0.0.1:9"), retries=1)
    assert list(work) == [("ra", False)]
    assert answers(tmp_path / "out")["ra"]["error"]["code"] == "connection_error"
    assert kept(tmp_path / "out") == set()


def test_a_server_that_takes_too_long_is_told_with_the_seconds_and_what_to_raise(server: Server, tmp_path: Path) -> None:
    work = BatchRun(write(tmp_path, "held"), tmp_path / "out", Target.of(server.url, timeout=0.3), retries=0)
    assert [ok for _, ok in work] == [False]
    server.release.set()
    (answer,) = answers(tmp_path / "out").values()
    sentence = f"timeout: {server.url} has not answered within 0.3 s; raise --timeout"
    assert answer["error"] == {"code": "timeout_error", "message": sentence}


def test_a_connection_that_the_system_gives_up_is_no_deadline_of_the_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> Any:
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    monkeypatch.setattr(Target, "post", lost)
    work = BatchRun(write(tmp_path, "a"), tmp_path / "out", Target.of("127.0.0.1:9"), retries=0)
    assert list(work) == [("ra", False)]
    sentence = "127.0.0.1:9 does not answer (Connection timed out)"
    assert answers(tmp_path / "out")["ra"]["error"] == {"code": "connection_error", "message": sentence}


@pytest.mark.parametrize("key", ["secret of mine", "secret-of-mine\n", "secret-caf\u00e9"])
def test_a_key_that_no_header_could_bring_is_refused_and_not_shown(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("NEREID_API_KEY", key)
    made = run(server, write(tmp_path, "a"), tmp_path / "out")
    assert made.exit_code == 1
    assert "the API key is not allowed" in " ".join(made.output.split())
    assert "secret" not in made.output
    assert server.asked == []


def test_the_requests_are_never_written_over(server: Server, tmp_path: Path) -> None:
    source = write(tmp_path, "a")
    before = source.read_bytes()
    (tmp_path / "linked").symlink_to(source)
    for output in (source, tmp_path / "linked"):
        made = run(server, source, output)
        assert made.exit_code == 1
        assert "answers must have another one" in " ".join(made.output.split())
        assert source.read_bytes() == before
    assert server.asked == []


def test_a_request_that_cannot_be_sent_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(target: Target, path: str, body: Any) -> Any:
        raise RuntimeError(f"nobody foresaw {body['prompt']}")

    monkeypatch.setattr(Target, "post", fails)
    work = BatchRun(write(tmp_path, "a", "b"), tmp_path / "out", Target.of("127.0.0.1:9"), at_once=1)
    assert sorted(work) == [("ra", False), ("rb", False)]
    assert answers(tmp_path / "out")["rb"]["error"] == {"code": "client_error", "message": "RuntimeError: nobody foresaw b"}
    assert kept(tmp_path / "out") == set()


@pytest.mark.parametrize("text", ["half \ud83d", "one\u2028two\x85three"])
def test_whatever_a_server_writes_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(Target, "post", lambda self, path, body: (200, None, None, {"text": body["prompt"]}))
    source, output = write(tmp_path, text, "other"), tmp_path / "out"
    assert sorted(BatchRun(source, output, Target.of("127.0.0.1:9"))) == sorted([(f"r{text}", True), ("rother", True)])
    assert answers(output)[f"r{text}"]["response"]["body"] == {"text": text}
    assert kept(output) == {f"r{text}", "rother"}


@pytest.mark.parametrize("content", [b"<html>Please log in</html>", b"[" * 100_000], ids=["page", "nested"])
def test_a_page_that_is_no_answer_is_an_error_and_asked_for_again(tmp_path: Path, content: bytes) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        work = BatchRun(write(tmp_path, "a"), tmp_path / "out", Target.of(f"127.0.0.1:{http.server_port}"))
        assert list(work) == [("ra", False)]
        http.shutdown()
    error = answers(tmp_path / "out")["ra"]["error"]
    assert error["code"] == "invalid_answer"
    assert error["message"].startswith("the answer is no JSON: ")
    assert kept(tmp_path / "out") == set()


def test_a_file_of_another_encoding_is_told_as_such(tmp_path: Path) -> None:
    file = tmp_path / "asked"
    text = '{"custom_id": "a", "url": "/v1/x", "method": null, "body": {}}\n'
    file.write_text(text, encoding="utf-16")
    with pytest.raises(BatchError, match="asked, line 1: it is not UTF-8 text"):
        read_requests(file)
    file.write_text(f"\n{text}", encoding="utf-8-sig")
    assert [request.custom_id for request in read_requests(file)] == ["a"]


def test_what_is_no_file_is_never_replaced(server: Server, tmp_path: Path) -> None:
    """A command that puts a new file in the place of its output destroys a device where it may, as curl did with /dev/null
    (https://github.com/curl/curl/issues/6882) and others since (https://github.com/sahib/rmlint/issues/763).
    """
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "linked").symlink_to(pipe)
    with suppress(PermissionError):
        os.mknod(tmp_path / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))  # not the machine's own: it could be lost here
    outputs = [file for file in (pipe, tmp_path / "linked", tmp_path / "device") if file.exists()]
    for output in outputs:
        made = run(server, write(tmp_path, "a"), output)
        assert made.exit_code == 1, made.output
        assert "it is no regular file; answers must have one" in " ".join(made.output.split())
    made = run(server, write(tmp_path, "a"), tmp_path)
    assert (made.exit_code, "is a folder; it must be a file" in " ".join(made.output.replace("│", "").split())) == (2, True)
    assert pipe.is_fifo()
    assert all(not output.is_file() for output in outputs)
    assert not list(tmp_path.glob("*.part"))
    made = run(server, pipe, tmp_path / "out")
    assert "it is no regular file; requests must be in one" in " ".join(made.output.split())
    assert server.asked == []


def test_one_run_at_a_time_writes_to_a_file(server: Server, tmp_path: Path) -> None:
    """Two runs of the same command: the second took the file away from below the first, whose answers were lost."""
    source, output = write(tmp_path, "one", "two"), tmp_path / "out"
    server.first = {"two": [400]}
    first = BatchRun(source, output, Target.of(server.url), at_once=1)
    going = iter(first)
    next(going)
    made = run(server, source, output)
    assert made.exit_code == 1
    assert "another run writes its answers to it" in " ".join(made.output.split())
    assert list(going) == [("rtwo", False)]
    assert sorted(answers(output)) == ["rone", "rtwo"]
    second = BatchRun(source, output, Target.of(server.url))  # has put a file of its own there
    made = run(server, source, output)
    assert "another run writes its answers to it" in " ".join(made.output.split())
    assert list(second) == [("rtwo", True)]
    assert run(server, source, output).exit_code == 0


def test_a_link_and_who_may_read_the_answers_stay_as_they_are(server: Server, tmp_path: Path) -> None:
    """As for whoever appends to a file: a rename can lose its mode (https://github.com/NVIDIA/k8s-device-plugin/pull/792)."""
    source, target, link = write(tmp_path, "one", "two"), tmp_path / "private", tmp_path / "out"
    target.touch(0o600)
    link.symlink_to(target)
    server.first = {"two": [400]}
    run(server, source, link)
    assert run(server, source, link).exit_code == 0
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o600
    assert sorted(answers(target)) == ["rone", "rtwo"]


def test_where_there_are_no_locks_nothing_that_is_replaced_is_open(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows replaces no file that is open, and by none that is."""
    monkeypatch.setattr(answer_file, "fcntl", None)
    replace, inside = Path.replace, list[str]()

    def noted(self: Path, target: Path) -> Path:
        inside.extend(file.path for file in psutil.Process().open_files() if Path(file.path).parent == tmp_path)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", noted)
    source, output = write(tmp_path, "one", "two"), tmp_path / "out"
    server.first = {"two": [400]}
    assert run(server, source, output).exit_code == 1
    assert run(server, source, output).exit_code == 0
    assert sorted(answers(output)) == ["rone", "rtwo"]
    assert inside == []


def test_a_file_in_which_all_is_good_is_not_written_again(server: Server, tmp_path: Path) -> None:
    source, output = write(tmp_path, "one", "two"), tmp_path / "out"
    run(server, source, output)
    before = output.stat()
    assert run(server, source, output).exit_code == 0
    assert (output.stat().st_ino, output.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

"""Running clients: one that fails, hangs, dies or cannot be installed harms no other, and nothing is left running."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from nereid.serving.errors import ServingError

import client_environments
import client_server
import run as runner
from client_environments import EnvironmentFaultError, program_of
from client_list import CLIENTS, HERE, Listed
from client_runs import ENDS, Kept, run, said_in
from client_server import Server, alone, ended_by_signals, export_zoo, perf_analyzer_program
from client_table import BEGIN, END, Row, read_rows
from waiting import until

SAY = """import json
def say(capability, works=True, why=""):
    line = {"client": "one", "version": "1.1", "capability": capability, "works": works, "why": why}
    print("\\n" + json.dumps(line), flush=True)
"""
ONE = replace(CLIENTS[0], name="one", seconds=20)
OLD = Row(client="one", version="1.0", works=("chat", "tools"), day="2026-11-01", nereid="0", asked="x")


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., Row]:
    def written(text: str, client: Listed = ONE) -> Row:
        file = tmp_path / "script.py"
        file.write_text(SAY + text)
        return run(client, [sys.executable, str(file)], os.environ, tmp_path / "folder")

    return written


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    page = tmp_path / "clients.md"
    page.write_text(f"# Clients\n\n{BEGIN}\n{END}\n")
    return Kept(tmp_path / "seen.json", page, ("one", "two"))


def test_what_a_script_says_is_a_row_of_this_day_and_version(script: Callable[..., Row]) -> None:
    row = script('say("chat")\nsay("tools", False, "no")\nraise SystemExit(1)')
    assert (row.client, row.version, row.works, row.fails) == ("one", "1.1", ("chat",), {"tools": "no"})
    assert (len(row.day), row.asked) == (10, ONE.asked)
    assert row.nereid


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("raise ImportError('no such module')", "its script ended with 1: ImportError: no such module"),
        ('say("tools", False, "no")\nimport os\nos.abort()', "its script ended with -6: "),
        ('say("tools", False, "no")', "its script ended with 0: "),
        ('say("chat")\nimport time\ntime.sleep(60)', "it was stopped after 1 seconds"),
    ],
    ids=["not begun", "dies after a failure", "does not tell its failure", "hangs"],
)
def test_a_script_that_does_not_come_to_its_end_is_told(script: Callable[..., Row], text: str, fails: str) -> None:
    row = script(text, replace(ONE, seconds=1) if "sleep" in text else ONE)
    assert row.fails[ENDS].startswith(fails)


def test_a_line_that_a_client_has_not_ended_hides_nothing() -> None:
    """told.py begins a line of its own."""
    code = "import sys, told\nc = told.Client('one', 'pip')\n@c.capability('chat')\ndef f(): sys.stdout.write('50%')\nc.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(HERE)}, check=True)
    assert [line["capability"] for line in said_in(done.stdout.splitlines())] == ["chat"]


def test_what_another_file_asks_of_the_same_client_is_asked_after_it() -> None:
    """And imported: the folder of the scripts is on the path that a server gives them."""
    server = Server(1, 2, 3, None, Path("serve.log"))  # type: ignore[arg-type]
    code = """import told, openai_batches
c = told.Client("openai-python", "pip")
@c.capability("chat")
def f(): pass
c.take(openai_batches.client)
print([name for name, ask in c._asked])"""
    # The file imports its client, which is not installed here; nothing of it is asked.
    fake = "import sys, types; sys.modules['openai'] = types.SimpleNamespace(OpenAI=lambda: None)\n"
    environment = server.environment(Path(), Path())
    done = subprocess.run([sys.executable, "-P", "-c", fake + code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("['chat', 'files and batches', ")


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("seconds", [20, 1], ids=["ends", "hangs"])
def test_whatever_a_client_has_started_ends_with_it(script: Callable[..., Row], tmp_path: Path, seconds: float) -> None:
    start = f"""import subprocess, sys, time
made = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
open({str(tmp_path / "pid")!r}, "w").write(str(made.pid))
time.sleep({0 if seconds > 1 else 100})
"""
    for longer in (1, 5, 25):  # it has begun by then, unless the machine stands still
        script(start, replace(ONE, seconds=seconds * longer))
        if (tmp_path / "pid").exists():
            break
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not is_alive(pid))


def test_a_row_is_written_as_soon_as_its_client_is_done(kept: Kept) -> None:
    kept.seen(OLD)
    kept.not_run("two", "no network")
    assert read_rows(kept.file) == {"one": OLD}
    assert "| one | 1.0 | 2026-11-01, Nereid 0 | chat, tools | - |\n| two | - | not run | - | - |" in kept.page.read_text()
    assert kept.problems == ["two: it was not run: no network; its row is as it was"]


def test_a_client_that_broke_keeps_its_row_and_the_others_get_theirs(kept: Kept) -> None:
    kept.seen(OLD)
    kept.seen(replace(OLD, works=("chat",), day="2026-11-29"))
    kept.seen(replace(OLD, client="two", day="2026-11-29"))
    rows = read_rows(kept.file)
    assert (rows["one"], rows["two"].day) == (OLD, "2026-11-29")
    assert kept.problems[0] == "one: tools no longer works: it was not asked for"
    assert kept.problems[1] == "one: its row is as it was on 2026-11-01; --accept writes what works now"
    kept.accept = True
    kept.seen(replace(OLD, works=("chat",), day="2026-11-29"))
    assert read_rows(kept.file)["one"].works == ("chat",)


def test_a_client_that_was_not_run_keeps_its_row_whatever_is_accepted(kept: Kept) -> None:
    kept.seen(OLD)
    kept.accept = True
    kept.not_run("one", "node and npm are not installed")
    assert read_rows(kept.file) == {"one": OLD}
    (problem,) = kept.problems
    assert problem == "one: it was not run: node and npm are not installed; its row is as it was on 2026-11-01"


# --- environments ---


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Environments that were made, each an empty folder."""
    folders: list[Path] = []

    def create(folder: Path, with_pip: bool) -> None:
        folder.mkdir(parents=True)
        folders.append(folder)

    monkeypatch.setattr("client_environments.venv.create", create)
    monkeypatch.setattr(client_environments, "_run", lambda words, folder: "")
    return folders


def test_an_environment_is_made_once_and_again_for_another_python(
    tmp_path: Path, made: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        assert program_of(CLIENTS[0], tmp_path)[0] == str(tmp_path / "openai-python" / "bin" / "python")
    assert len(made) == 1
    monkeypatch.setattr(sys, "version", "3.11.99")
    program_of(CLIENTS[0], tmp_path)
    program_of(CLIENTS[0], tmp_path / "moved")
    assert len(made) == 3


@pytest.mark.parametrize(
    "error", [subprocess.CalledProcessError(1, ["python", "-m", "ensurepip"]), OSError("no space left on device")], ids=str
)
def test_an_environment_that_cannot_be_made_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def create(folder: Path, with_pip: bool) -> None:
        raise error

    monkeypatch.setattr("client_environments.venv.create", create)
    with pytest.raises(EnvironmentFaultError, match="its environment cannot be made: "):
        program_of(CLIENTS[0], tmp_path)


def test_the_reason_is_the_installers_error_and_not_its_last_warning(tmp_path: Path) -> None:
    code = "import sys; sys.stderr.write('ERROR: no version of it\\nWARNING: there is a newer pip\\n'); sys.exit(1)"
    with pytest.raises(EnvironmentFaultError, match=r"cannot be made: ERROR: no version of it$"):
        client_environments._run([sys.executable, "-c", code], tmp_path)


def test_without_node_its_clients_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client_environments.shutil.which", lambda name: None)
    (client,) = [client for client in CLIENTS if client.name == "openai-node"]
    with pytest.raises(EnvironmentFaultError, match="node and npm are not installed"):
        program_of(client, tmp_path)


def test_a_script_for_node_lies_beside_its_packages_with_all_that_it_imports(tmp_path: Path, made: list[Path]) -> None:
    for client in CLIENTS:
        if client.is_node:
            script = Path(program_of(client, tmp_path)[1])
            imported = set(re.findall(r'from "\./([^"]+)"', script.read_text()))
            assert imported == {*client.beside, "told.mjs"}
            assert all((script.parent / name).is_file() for name in imported)


# --- the server ---


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(RuntimeError, match="another run is under way"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


def test_a_signal_that_would_end_the_run_ends_the_server_first() -> None:
    ended, before = [], signal.getsignal(signal.SIGTERM)

    @contextlib.contextmanager
    def server() -> Iterator[None]:
        try:
            yield
        finally:
            ended.append(True)

    with pytest.raises(SystemExit) as caught, ended_by_signals(), server():
        signal.raise_signal(signal.SIGTERM)
    assert (caught.value.code, ended) == (143, [True])
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_server_that_has_ended_is_told_and_not_its_clients_fault(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    server = Server(1, 2, 3, process, tmp_path / "serve.log")  # type: ignore[arg-type]
    process.wait()
    with pytest.raises(RuntimeError, match="the server ended with 3 while AIPerf was run"):
        server.check("AIPerf")


def test_without_perf_analyzer_the_others_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise ServingError("perf_analyzer is not installed")

    monkeypatch.setattr(client_server, "perf_analyzer_command", none)
    assert list(perf_analyzer_program(tmp_path / "programs").iterdir()) == []


def test_models_are_exported_again_once_the_exporter_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[str] = []

    def export(*words: str) -> None:
        repository = Path(words[-1])
        name = "tools_llm" if "--name" in words else {"llm": "llm", "diffusion": "text_to_image"}[words[1]]
        (repository / name).mkdir(parents=True)
        exported.append(name)

    digests = iter(["a", "a", "b"])
    monkeypatch.setattr(client_server, "_nereid", export)
    monkeypatch.setattr(client_server, "_merge", lambda out: None)
    monkeypatch.setattr(client_server, "_digest", lambda *folders: next(digests))
    for made in (3, 3, 6):
        export_zoo(tmp_path / "repository", tmp_path)
        assert len(exported) == made


def test_a_language_model_gives_embeddings_and_models_are_exported_again_once_they_are_asked_for_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[tuple[str, ...]] = []

    def export(*words: str) -> None:
        (Path(words[-1]) / ("text_to_image" if "diffusion" in words else "tools_llm" if "--name" in words else "llm")).mkdir(
            parents=True
        )
        exported.append(words)

    monkeypatch.setattr(client_server, "_nereid", export)
    monkeypatch.setattr(client_server, "_merge", lambda out: None)
    monkeypatch.setattr(client_server, "_digest", lambda *folders: "a")
    export_zoo(tmp_path / "repository", tmp_path)
    assert [words[1:3] for words in exported if "--embeddings" in words] == [("llm", str(client_server.LLM))]
    monkeypatch.setattr(client_server, "SHAPES", tmp_path / "other")
    export_zoo(tmp_path / "repository", tmp_path)
    assert len(exported) == 6


# --- all of it ---


class Stage:
    """The clients `one`, `two` and `three` before a server that `ends`, or not, while `two` is run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.works, self.not_made, self.ends = folder, {"one", "two", "three"}, set[str](), False
        self.page, self.seen = folder / "clients.md", folder / "seen.json"
        self.page.write_text(f"{BEGIN}\n{END}\n")
        self.stopped = 0

    @contextlib.contextmanager
    def serving(self, repository: Path, build: Path) -> Iterator[Server]:
        class Process:
            poll = staticmethod(lambda: 9 if self.ends and (self.folder / "two").exists() else None)

        try:
            yield Server(1, 2, 3, Process(), build / "serve.log")  # type: ignore[arg-type]
        finally:
            self.stopped += 1

    def program_of(self, client: Listed, build: Path) -> list[str]:
        if client.name in self.not_made:
            raise EnvironmentFaultError("no network")
        (self.folder / client.name).touch()
        works, code = ("true", 0) if client.name in self.works else ("false", 1)
        line = f'{{"client": "{client.name}", "version": "1", "capability": "chat", "works": {works}, "why": "no"}}'
        return [sys.executable, "-c", f"print({line!r}); raise SystemExit({code})"]

    def run(self, *words: str) -> int:
        return runner.main(["--build", str(self.folder / "build"), *words])

    def works_of(self) -> dict[str, bool]:
        return {name: bool(row.works) for name, row in read_rows(self.seen).items()}


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage(tmp_path)
    named = tuple(replace(CLIENTS[0], name=name, environment=name, seconds=20) for name in ("one", "two", "three"))
    for client in named:
        monkeypatch.setattr(type(client), "asked", "x")
    for name, value in {
        "CLIENTS": named,
        "PAGE": made.page,
        "SEEN": made.seen,
        "serving": made.serving,
        "program_of": made.program_of,
        "export_zoo": lambda repository, build: None,
        "perf_analyzer_program": lambda folder: folder,
    }.items():
        monkeypatch.setattr(runner, name, value)
    return made


def test_all_are_run_and_written(stage: Stage) -> None:
    assert stage.run() == 0
    assert (stage.works_of(), stage.stopped) == ({"one": True, "two": True, "three": True}, 1)
    assert stage.page.read_text().count("| chat | - |") == 3


def test_only_some_are_run_and_the_others_stay(stage: Stage) -> None:
    assert stage.run("--only", "two", "--only", "three") == 0
    assert not (stage.folder / "one").exists()
    assert stage.works_of() == {"two": True, "three": True}
    assert "| one | - | not run | - | - |" in stage.page.read_text()
    with pytest.raises(SystemExit, match="2"):
        stage.run("--only", "four")


def test_one_that_fails_or_is_not_made_leaves_the_others(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.works, stage.not_made = {"three"}, {"one"}
    assert stage.run() == 1
    assert stage.works_of() == {"two": False, "three": True}
    assert "one: it was not run: no network" in capsys.readouterr().err


def test_where_the_server_ends_no_client_is_blamed(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.works, stage.ends = {"one", "three"}, True
    assert stage.run() == 1
    assert (stage.works_of(), stage.stopped) == ({"one": True}, 1)
    assert "the server ended with 9 while two was run" in capsys.readouterr().err


def test_a_table_that_was_changed_by_hand_is_not_run_over(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage.run() == 0
    stage.seen.write_text(stage.seen.read_text().replace('"chat"', '"chat", "tools"', 1))
    assert stage.run() == 1
    assert "was not written by a run" in capsys.readouterr().err
    assert stage.stopped == 1

"""The supervisor's own logic, with a program in Triton's place that can be told what to do wrong."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from nereid.engines.digests import MANIFEST_VERSION, sign
from nereid.flow.state_folder import STATE_FOLDER
from nereid.flow.unanswered import Unanswered
from nereid.serving import cli, reloadable
from nereid.serving import process as triton_process
from nereid.serving import supervisor as supervision
from nereid.serving.activity import requests_inside
from nereid.serving.errors import ServingError
from nereid.serving.health import MAX_CONNECTIONS, HealthServer
from nereid.serving.installation import Source
from nereid.serving.models import ServedModels
from nereid.serving.options import ServeOptions
from nereid.serving.remains import ServeFolder, reclaim
from nereid.serving.supervisor import Supervisor

import fake_triton
from waiting import until


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "triton"
    monkeypatch.setenv("PATH", f"{fake_triton.install(folder)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return folder


@pytest.fixture
def options(tmp_path: Path, home: Path) -> ServeOptions:
    repository = fake_triton.write_models(tmp_path / "repository", "first", "second_0")
    return replace(ServeOptions.on_free_ports(repository, tmp_path / "triton.log"), triton=Source.PATH, drain_seconds=0.1)


@pytest.fixture
def supervisor(options: ServeOptions) -> Iterator[Supervisor]:
    with Supervisor(options) as running:
        running._backoff.first = 0.01
        yield running


def stub_of(supervisor: Supervisor, model: str) -> psutil.Process:
    return next(psutil.Process(pid) for pid, name in supervisor._triton.stubs().items() if name == model)


def is_ready(supervisor: Supervisor) -> bool:
    return supervisor.readiness()[0]


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def family(supervisor: Supervisor) -> list[psutil.Process]:
    assert supervisor.triton_pid is not None
    server = psutil.Process(supervisor.triton_pid)
    return [server, *server.children(recursive=True)]


def test_dead_stub_is_loaded_anew_and_readiness_tells(home: Path, options: ServeOptions) -> None:
    may_load = home / "may-load"
    fake_triton.behave(home, loads_once_there_is=str(may_load))
    with Supervisor(options) as supervisor:
        server = supervisor.triton_pid
        stub_of(supervisor, "second_0").kill()
        until(lambda: not is_ready(supervisor))
        assert supervisor.readiness()[1]["models_reloading"] == ["second_0"]
        may_load.touch()
        until(lambda: is_ready(supervisor))
        assert (home / "loads").read_text() == "second_0\n"
        assert supervisor.triton_pid == server


def test_load_that_fails_is_followed_by_a_restart(home: Path, options: ServeOptions) -> None:
    fake_triton.behave(home, load_fails=True)
    with Supervisor(options) as supervisor:
        server = supervisor.triton_pid
        stub_of(supervisor, "first").kill()
        until(lambda: supervisor.triton_pid != server and is_ready(supervisor))


def test_model_whose_files_were_changed_stays_down_alone_until_they_are_accepted(
    home: Path, options: ServeOptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reloadable, "REFUSED_SECONDS", 0.5)
    manifest = {"version": MANIFEST_VERSION, "models": ["first"], "files": {}}
    (options.repository / "first" / "manifest.json").write_text(json.dumps(manifest))
    sign(options.repository)
    with Supervisor(options) as supervisor:
        server = supervisor.triton_pid
        (options.repository / "first" / "1" / "model.py").write_text("changed")
        stub_of(supervisor, "first").kill()
        stub_of(supervisor, "second_0").kill()
        until(lambda: (home / "loads").is_file() and "first is not reloaded" in caplog.text)
        assert "first/1/model.py was not exported" in caplog.text
        until(lambda: supervisor.readiness()[1]["models_reloading"] == ["first"])
        sign(options.repository)
        until(lambda: is_ready(supervisor))
        assert supervisor.triton_pid == server


def test_server_that_dies_again_and_again_is_started_again_and_again(
    home: Path, supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    fake_triton.behave(home, says="E1 model.cc:1] failed to load 'first'", exits=1)
    assert supervisor.triton_pid is not None
    os.kill(supervisor.triton_pid, signal.SIGKILL)
    until(lambda: fake_triton.starts(home) >= 9)
    assert not is_ready(supervisor)
    fake_triton.behave(home)
    until(lambda: is_ready(supervisor))
    assert "death 5 in a row" in caplog.text
    assert "Triton stopped while loading (exit code 1)" in caplog.text


def test_starts_that_are_refused_are_waited_for_longer_each_time_however_long_triton_lived_before(
    home: Path, options: ServeOptions, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = {"version": MANIFEST_VERSION, "models": ["first"], "files": {}}
    (options.repository / "first" / "manifest.json").write_text(json.dumps(manifest))
    sign(options.repository)
    with Supervisor(options) as supervisor:
        supervisor._backoff.first = supervisor._backoff.well_after = 0.01  # all that is started counts as having lived for long
        (options.repository / "first" / "1" / "model.py").write_text("changed")
        assert supervisor.triton_pid is not None
        os.kill(supervisor.triton_pid, signal.SIGKILL)
        until(lambda: "death 3 in a row" in caplog.text)
        sign(options.repository)
        until(lambda: is_ready(supervisor))
    assert fake_triton.starts(home) == 2


def test_triton_has_threads_for_all_streams_of_a_model(home: Path, options: ServeOptions) -> None:
    assert ServedModels.read(options.repository).threads == 128
    more = 'parameters { key: "max_streams" value: { string_value: "100" } }'
    fake_triton.write_models(options.repository, "stream", more=more)
    with Supervisor(options) as supervisor:
        assert "--backend-config=python,thread-pool-size=232" in psutil.Process(supervisor.triton_pid).cmdline()


@pytest.fixture
def signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("moment", ["while it is made", "as it has started", "in a round"])
def test_serve_stops_at_a_signal_whatever_it_is_doing(
    moment: str, options: ServeOptions, signals: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def ask(*_: object) -> list[str]:
        if asked:
            pytest.fail("it goes on after the signal")
        asked.append(moment)
        os.kill(os.getpid(), signal.SIGTERM)
        return []

    @contextlib.contextmanager
    def status(_: str) -> Iterator[Any]:
        yield SimpleNamespace(update=lambda text: None)
        ask()

    if moment == "as it has started":
        monkeypatch.setattr(cli.console, "status", status)
    elif moment == "in a round":
        whole = Supervisor._round
        # Of this serve alone: the server that the end-to-end tests share may be supervised in this process too.
        monkeypatch.setattr(Supervisor, "_round", lambda self: ask() if self.options is options else whole(self))
    else:
        monkeypatch.setattr(supervision, "reclaim", ask)
    cli._run(options, None)
    assert asked
    assert capsys.readouterr().err.split()[-1] == ("stopped" if moment == "while it is made" else "stopping")
    assert not list(Path(tempfile.gettempdir()).glob("nereid-serve-*"))


def test_a_model_without_its_worker_is_not_ready_and_a_dead_one_says_nothing(supervisor: Supervisor) -> None:
    state = supervisor.folder.state
    (state / "worker-down-999999999-first").touch()
    assert is_ready(supervisor)
    file = state / f"worker-down-{os.getpid()}-first"
    file.touch()
    ready, page = supervisor.readiness()
    assert not ready
    assert page["workers_down"] == ["first"]
    file.unlink()
    assert is_ready(supervisor)


def test_no_stub_and_no_shared_memory_outlives_the_server(supervisor: Supervisor) -> None:
    before = family(supervisor)
    regions = list(Path("/dev/shm").glob(f"nereid_*_{before[0].pid}_*"))
    assert len(regions) == 3
    before[0].kill()
    until(lambda: supervisor.triton_pid != before[0].pid and is_ready(supervisor))
    assert not any(is_alive(process) for process in before)
    assert not any(region.exists() for region in regions)


def test_stubs_are_found_by_their_mark_where_the_keeper_was_killed_too(supervisor: Supervisor) -> None:
    before = family(supervisor)
    keeper = before[0].parent()
    assert keeper is not None
    keeper.kill()
    until(lambda: supervisor.triton_pid != before[0].pid and is_ready(supervisor))
    assert not any(is_alive(process) for process in before)


def test_supervision_goes_on_after_a_round_that_failed(
    home: Path, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    probe = Supervisor._probe

    def fail_once(self: Supervisor) -> None:
        if self is not supervisor:  # that of the end-to-end tests' server, which may be in this process too
            return probe(self)
        monkeypatch.setattr(Supervisor, "_probe", probe)
        raise KeyError("a name nobody thought of")

    monkeypatch.setattr(Supervisor, "_probe", fail_once)
    until(lambda: "a round of supervision has failed" in caplog.text)
    stub_of(supervisor, "first").kill()
    until(lambda: (home / "loads").is_file() and is_ready(supervisor))


def test_stubs_of_named_instance_groups_are_told_apart(tmp_path: Path) -> None:
    repository = fake_triton.write_models(tmp_path / "r", "unet", "unet_0", "v_unet")
    config = repository / "v_unet" / "config.pbtxt"
    config.write_text('name: "v_unet" backend: "python" instance_group [ { name: "gpu_3" count: 2 }, { count: 1 } ]')
    models = ServedModels.read(repository)
    stubs = ("unet_0_0", "unet_0_0_1", "gpu_3_0", "gpu_3_1", "v_unet_1_0", "else_0_0", "x", "")
    assert [models.of_instance(name) for name in stubs] == ["unet", "unet_0", "v_unet", "v_unet", "v_unet", None, None, None]


def test_what_calls_several_pipelines_waits_for_them_and_joins_none(tmp_path: Path) -> None:
    late = 'parameters { key: "restart_on_death" value: { string_value: "true" } }'
    repository = fake_triton.write_models(tmp_path / "r", "page", "llm", "denoise", "unet")
    for name in ("llm", "denoise", "page"):
        called = {"denoise": ("unet",), "page": ("llm", "denoise")}.get(name, ())
        named = "".join(f'parameters {{ key: "{model}_model" value: {{ string_value: "{model}" }} }}' for model in called)
        (repository / name / "config.pbtxt").write_text(f'name: "{name}" backend: "python" {late} {named}')
    models = ServedModels.read(repository)
    assert models.pipeline_of(["llm"]) == {"llm", "page"}
    assert models.pipeline_of(["unet"]) == {"unet", "denoise", "page"}
    assert models.pipeline_of(["page"]) == {"page"}


def test_config_that_is_none_is_one_sentence(options: ServeOptions) -> None:
    (options.repository / "first" / "config.pbtxt").write_text("name: [")
    with pytest.raises(ServingError, match=r"first/config\.pbtxt is not a model's config"):
        Supervisor(options)


def test_stop_during_a_restart_returns_soon(home: Path, options: ServeOptions) -> None:
    supervisor = Supervisor(options)
    with supervisor:
        fake_triton.behave(home, never_ready=True)
        assert supervisor.triton_pid is not None
        os.kill(supervisor.triton_pid, signal.SIGKILL)
        until(lambda: fake_triton.starts(home) == 2)
        start = time.monotonic()
    assert time.monotonic() - start < options.start_timeout / 5
    assert not list(Path(tempfile.gettempdir()).glob("nereid-serve-*"))


def test_a_process_that_is_killed_while_triton_loads_it_does_not_keep_the_server_away(
    home: Path, options: ServeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton 24.10 waits for it for minutes, and does not end."""
    monkeypatch.setattr(triton_process, "DEAD_SECONDS", 0.2)
    with Supervisor(options) as supervisor:
        fake_triton.behave(home, never_ready=True)
        assert supervisor.triton_pid is not None
        os.kill(supervisor.triton_pid, signal.SIGKILL)
        until(lambda: fake_triton.starts(home) == 2 and supervisor._triton.count_stubs()["first"] == 1)
        time.sleep(1)  # it has been seen
        fake_triton.behave(home)
        stub_of(supervisor, "first").kill()
        until(lambda: fake_triton.starts(home) == 3 and is_ready(supervisor))


def test_error_of_an_earlier_run_in_the_log_is_not_shown(home: Path, options: ServeOptions) -> None:
    assert options.log_file is not None
    options.log_file.write_text("E1 x] failed to load 'old'\n")
    fake_triton.behave(home, says="E1 x] failed to load 'new'", exits=1)
    with pytest.raises(ServingError, match="'new'"):
        Supervisor(options).start()
    fake_triton.behave(home, exits=2)
    with pytest.raises(ServingError, match=r"exit code 2\); see"):
        Supervisor(options).start()


def test_log_file_that_cannot_be_written_is_one_sentence(options: ServeOptions, tmp_path: Path) -> None:
    for file in (tmp_path, Path("/proc/nothing/log")):
        with pytest.raises(ServingError, match=f"--log-file: {file} cannot be written"):
            Supervisor(replace(options, log_file=file)).start()
    assert not list(tmp_path.glob("nereid-serve-*"))


def test_temporary_folder_that_takes_nothing_is_one_sentence(options: ServeOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    with pytest.raises(ServingError, match="/proc: a temporary folder cannot be made there"):
        Supervisor(options)


def test_what_a_dead_serve_left_is_removed_and_a_living_one_is_let_be(home: Path, tmp_path: Path) -> None:
    unlocked = Path(tempfile.mkdtemp(prefix="nereid-serve-"))
    living = ServeFolder.create()
    dead = ServeFolder.create()
    left = psutil.Process(subprocess.Popen(["sleep", "600"], env={**os.environ, **dead.environment("triton")}).pid)
    region = Path(f"/dev/shm/{dead.regions}left_0")
    region.write_bytes(b"x")
    os.close(dead._lock)  # as its end closes it
    said = reclaim()
    assert len(said) == 1
    assert "1 processes that it left behind were killed" in said[0]
    assert not is_alive(left)
    assert not region.exists()
    assert not dead.path.exists()
    assert living.path.is_dir()
    assert unlocked.is_dir()
    living.remove()
    assert reclaim() == []


def test_requests_inside_are_read_from_metrics() -> None:
    page = (
        '# TYPE nereid_image_active_requests gauge\nnereid_image_active_requests{model="denoise"} 2\n'
        'nereid_image_queued_requests{model="denoise"} 1.000000\nnereid_llm_requests_running{model="llm"} 0\n'
        'nv_inference_pending_request_count{model="unet",version="1"} 3\nnv_inference_count{model="unet",version="1"} 9\n'
    )
    assert requests_inside(page) == {"denoise": 3, "llm": 0, "unet": 3}


LATE = 'parameters { key: "restart_on_death" value: { string_value: "true" } }'


def test_restart_that_ends_unanswerable_requests_waits_for_other_pipelines(home: Path, options: ServeOptions) -> None:
    fake_triton.write_models(options.repository, "late", more=LATE)
    fake_triton.behave(home, metrics='nereid_x_active_requests{model="first"} 1\n')
    with Supervisor(options) as supervisor:
        server = supervisor.triton_pid
        stub_of(supervisor, "late").kill()
        until(lambda: (home / "loads").is_file() and is_ready(supervisor))
        assert supervisor._pending.by is not None
        assert supervisor.triton_pid == server
        fake_triton.behave(home)
        supervisor._pending.by = 0.0  # the minute is over
        until(lambda: supervisor.triton_pid != server and is_ready(supervisor))


def test_a_server_is_restarted_for_requests_that_a_dead_process_held_and_for_no_others(
    home: Path, options: ServeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config says nothing of late answers here: the process does."""
    fake_triton.behave(home, metrics='nereid_x_active_requests{model="second"} 1\n')
    with Supervisor(options) as supervisor:
        for held in (False, True):
            monkeypatch.setenv(STATE_FOLDER, str(supervisor.folder.state))
            answered = Unanswered.of("first").hold()
            if not held:
                answered()
            monkeypatch.delenv(STATE_FOLDER)
            deaths = supervisor._numbers.deaths["first"]
            stub_of(supervisor, "first").kill()
            until(lambda before=deaths: supervisor._numbers.deaths["first"] > before and is_ready(supervisor))  # type: ignore[misc]
            assert (supervisor._pending.by is not None) == held


def test_health_port_drops_the_oldest_connection_for_a_new_one(options: ServeOptions) -> None:
    server = HealthServer("127.0.0.1", options.health_port, lambda: (True, {}))
    server.start()
    idle = [socket.create_connection(("127.0.0.1", options.health_port)) for _ in range(MAX_CONNECTIONS + 20)]
    most = 0

    def first_is_closed() -> bool:
        nonlocal most
        most = max(most, len(server._connections))
        idle[0].setblocking(False)
        try:
            return idle[0].recv(1) == b""
        except BlockingIOError:
            return False

    until(first_is_closed)
    until(lambda: not server._connections)  # none is kept longer than it may take
    assert most <= MAX_CONNECTIONS
    server.stop()
    for connection in idle:
        connection.close()


HEALTH = """
import resource, sys, time
from nereid.serving.health import HealthServer
resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
server = HealthServer("127.0.0.1", int(sys.argv[1]), lambda: (True, {"ready": True}))
server.start()
time.sleep(600)
"""


def test_health_port_outlives_connections_that_say_nothing_and_a_lack_of_descriptors(options: ServeOptions) -> None:
    process = subprocess.Popen([sys.executable, "-c", HEALTH, str(options.health_port)], stderr=subprocess.DEVNULL)

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{options.health_port}/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        until(ready)
        idle = [socket.create_connection(("127.0.0.1", options.health_port)) for _ in range(100)]
        for connection in idle:
            connection.sendall(b"GET / HT")
        until(ready)
        for connection in idle:
            connection.close()
        until(ready)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()

"""A repository that is followed while it is served: what comes is loaded once it is whole, what goes is told, then unloaded."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from nereid.engines.digests import MANIFEST_VERSION, Verifier, sign
from nereid.serving import following
from nereid.serving.control import ControlError
from nereid.serving.following import Following
from nereid.serving.installation import Source
from nereid.serving.models import ServedModels
from nereid.serving.options import ServeOptions
from nereid.serving.supervisor import Supervisor

import fake_triton
from fake_triton import write_models
from waiting import until


@dataclass
class Noted:
    """A server that notes what it is asked, in order; `fails` cannot be loaded."""

    models: ServedModels
    fails: str = ""
    is_settled: bool = True
    said: list[str] = field(default_factory=list)

    def take_in(self, model: str, config: Any) -> None:
        if model == self.fails:
            raise ControlError("no memory")
        self.said.append(f"+{model}")
        self.models = self.models.with_others({model: config})

    def forget(self, models: Sequence[str]) -> None:
        self.said += [f"?{model}" for model in models]
        self.models = self.models.with_others({}, models)

    def let_go(self, model: str) -> None:
        self.said.append(f"-{model}")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write_models(tmp_path / "repository", "first", "second")


@pytest.fixture
def server(repository: Path) -> Noted:
    return Noted(ServedModels.read(repository))


@pytest.fixture
def follower(repository: Path, server: Noted, monkeypatch: pytest.MonkeyPatch) -> Following:
    monkeypatch.setattr(following, "TOLD_SECONDS", 0.01)
    made = Following(repository, Verifier(repository), server, threading.Event())
    made.look()
    return made


def looks(follower: Following, server: Noted) -> list[str]:
    """What two looks come to."""
    server.said.clear()
    follower.look()
    follower.look()
    return list(server.said)


ENSEMBLE = 'platform: "ensemble" ensemble_scheduling { step [ { model_name: "first" model_version: -1 } ] }'


def test_what_comes_is_loaded_ensembles_last_and_what_goes_is_told_first(
    repository: Path, server: Noted, follower: Following
) -> None:
    assert looks(follower, server) == []
    write_models(repository, "new")
    write_models(repository, "a_whole", more=ENSEMBLE.replace("first", "new"))
    assert looks(follower, server) == ["+new", "+a_whole"]
    assert looks(follower, server) == []
    for name in ("new", "a_whole"):
        shutil.rmtree(repository / name)
    assert looks(follower, server) == ["?a_whole", "?new", "-a_whole", "-new"]
    assert looks(follower, server) == []


def test_a_folder_that_is_still_being_copied_is_not_loaded(repository: Path, server: Noted, follower: Following) -> None:
    write_models(repository, "new")
    for size in (1, 2, 3):
        (repository / "new" / "1" / "weights").write_bytes(b"x" * size)
        follower.look()
    assert server.said == []
    follower.look()
    assert server.said == ["+new"]


def test_a_repository_that_is_away_for_a_moment_takes_nothing_with_it(
    repository: Path, server: Noted, follower: Following
) -> None:
    """As while an export exchanges it in two steps; one model may be away for one look, too."""
    repository.rename(repository.with_name("old"))
    assert looks(follower, server) == []
    repository.with_name("old").rename(repository)
    assert looks(follower, server) == []
    (repository / "first").rename(repository.parent / "first")
    follower.look()
    (repository.parent / "first").rename(repository / "first")
    assert looks(follower, server) == []


def test_a_model_that_is_not_what_was_exported_is_told_and_taken_once_it_is(
    repository: Path, server: Noted, follower: Following, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(following, "AGAIN_SECONDS", 0.0)
    write_models(repository, "new")
    manifest = {"version": MANIFEST_VERSION, "models": ["new"], "files": {"new/config.pbtxt": "0" * 64}}
    (repository / "new" / "manifest.json").write_text(json.dumps(manifest))
    assert looks(follower, server) == []
    assert "new, which has come to" in caplog.text
    assert "was changed after its export" in caplog.text
    sign(repository)
    assert looks(follower, server) == ["+new"]


def test_a_model_that_cannot_be_loaded_harms_no_other_and_is_tried_again_later(
    repository: Path, server: Noted, follower: Following, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_models(repository, "heavy", "new")
    (repository / "odd").mkdir()
    (repository / "odd" / "config.pbtxt").write_text("{")
    server.fails = "heavy"
    assert looks(follower, server) == ["+new"]
    assert "heavy, which has come to" in caplog.text
    assert "no memory" in caplog.text
    assert "odd/config.pbtxt is not a model's config" in caplog.text
    server.fails = ""
    assert looks(follower, server) == []
    monkeypatch.setattr(follower, "_not_until", {})
    assert looks(follower, server) == ["+heavy"]


def test_nothing_is_changed_while_the_server_is_about_to_be_started_again(
    repository: Path, server: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.01)
    server.is_settled = False
    stopping = threading.Event()
    thread = threading.Thread(target=Following(repository, Verifier(repository), server, stopping).run, daemon=True)
    thread.start()
    try:
        write_models(repository, "new")
        time.sleep(0.2)
        assert server.said == []
        server.is_settled = True
        until(lambda: server.said == ["+new"])
    finally:
        stopping.set()
        thread.join()


# --- with the supervisor ---


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "triton"
    monkeypatch.setenv("PATH", f"{fake_triton.install(folder)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(following, "TOLD_SECONDS", 0.05)
    return folder


@pytest.fixture
def options(tmp_path: Path, home: Path, repository: Path) -> ServeOptions:
    made = ServeOptions.on_free_ports(repository, tmp_path / "triton.log")
    return replace(made, triton=Source.PATH, drain_seconds=0.1, follow=True)


@pytest.fixture
def supervisor(options: ServeOptions) -> Iterator[Supervisor]:
    with Supervisor(options) as running:
        running._backoff.first = 0.01
        yield running


def served(supervisor: Supervisor) -> list[str]:
    models: list[str] = supervisor.readiness()[1]["models"]
    return models


def stubs(supervisor: Supervisor) -> dict[str, int]:
    return {name: pid for pid, name in supervisor._triton.stubs().items() if name != "nereid_control"}


def test_a_model_that_has_come_is_kept_up_like_any_other(supervisor: Supervisor, repository: Path, home: Path) -> None:
    write_models(repository, "new")
    until(lambda: served(supervisor) == ["first", "new", "second"])
    assert (home / "loads").read_text() == "new\n"
    assert 'nereid_serve_model_ready{model="new"}' in supervisor._numbers.page()
    os.kill(stubs(supervisor)["new"], signal.SIGKILL)
    until(lambda: (home / "loads").read_text() == "new\nnew\n")
    until(lambda: "new" in stubs(supervisor) and supervisor.readiness()[0])


def test_a_model_that_has_gone_is_not_missed(supervisor: Supervisor, repository: Path, home: Path) -> None:
    """Neither at once, nor when the server is started again."""
    shutil.rmtree(repository / "second")
    until(lambda: (home / "unloads").is_file() and (home / "unloads").read_text() == "second\n")
    until(lambda: served(supervisor) == ["first"] == list(stubs(supervisor)))
    time.sleep(0.6)
    assert supervisor.readiness()[0]
    supervisor._triton.kill()
    until(lambda: fake_triton.starts(home) == 2 and supervisor.readiness()[0])
    assert served(supervisor) == ["first"] == list(stubs(supervisor))


@pytest.mark.parametrize("owner", ["first", "second"])
def test_a_process_that_dies_once_its_model_has_gone_is_not_brought_back(
    supervisor: Supervisor, repository: Path, home: Path, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    """Wherever its manifest is: others serve on, and what comes is taken in."""
    (repository / owner / "manifest.json").write_text(
        json.dumps({"version": MANIFEST_VERSION, "models": ["first", "second"], "files": {}})
    )
    sign(repository)
    monkeypatch.setattr(following, "LOOK_SECONDS", 1.0)  # the death is seen first
    time.sleep(0.1)
    dying = stubs(supervisor)["second"]
    shutil.rmtree(repository / "second")
    os.kill(dying, signal.SIGKILL)
    until(lambda: served(supervisor) == ["first"] and supervisor.readiness()[0])
    write_models(repository, "new")
    until(lambda: served(supervisor) == ["first", "new"])
    assert fake_triton.starts(home) == 1


def test_a_broken_model_does_not_keep_the_server_from_starting_again(
    supervisor: Supervisor, repository: Path, home: Path
) -> None:
    fake_triton.behave(home, load_fails="heavy")
    supervisor._triton.kill()
    until(lambda: fake_triton.starts(home) == 2 and supervisor.readiness()[0])
    write_models(repository, "heavy", "new")
    until(lambda: served(supervisor) == ["first", "new", "second"])
    supervisor._triton.kill()
    until(lambda: fake_triton.starts(home) == 3 and supervisor.readiness()[0])
    assert served(supervisor) == ["first", "new", "second"] == sorted(stubs(supervisor))


def test_what_has_gone_while_the_server_was_down_is_not_asked_of_it(
    options: ServeOptions, repository: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "LOOK_SECONDS", 3600.0)
    with Supervisor(options) as supervisor:
        supervisor._backoff.first = 0.01
        shutil.rmtree(repository / "second")
        supervisor._triton.kill()
        until(lambda: fake_triton.starts(home) == 2 and supervisor.readiness()[0])
        assert served(supervisor) == ["first"]


def test_without_being_asked_to_nobody_follows(options: ServeOptions, repository: Path) -> None:
    with Supervisor(replace(options, follow=False)) as supervisor:
        write_models(repository, "new")
        time.sleep(0.5)
        assert served(supervisor) == ["first", "second"]

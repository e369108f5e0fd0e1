"""The supervisor's page of metrics, with a program in Triton's place."""

from __future__ import annotations

import os
import signal
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from nereid.serving.installation import Source
from nereid.serving.numbers import resident_memory
from nereid.serving.options import ServeOptions
from nereid.serving.supervisor import Supervisor
from nereid_client.scraping import Page
from nereid_client.top_reading import state_between
from nereid_client.top_state import SUPERVISOR
from nereid_protocol.metrics import (
    SERVE_MEMORY,
    SERVE_METRICS,
    SERVE_MODEL_DEATHS,
    SERVE_MODEL_READY,
    SERVE_READY,
    SERVE_SERVICE_DEATHS,
    SERVE_TRITON_RESTARTS,
)

import fake_triton
from waiting import until


@pytest.fixture
def supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    monkeypatch.setenv("PATH", f"{fake_triton.install(tmp_path / 'triton')}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    repository = fake_triton.write_models(tmp_path / "repository", "first", "second_0")
    options = ServeOptions.on_free_ports(repository, tmp_path / "triton.log")
    with Supervisor(replace(options, triton=Source.PATH, drain_seconds=0.1)) as running:
        running._backoff.first = 0.01
        yield running


def page(supervisor: Supervisor) -> Page:
    found = Page.fetch(f"127.0.0.1:{supervisor.options.health_port}", 60)
    assert found is not None
    return found


def test_the_page_tells_readiness_deaths_restarts_and_memory(supervisor: Supervisor) -> None:
    first = page(supervisor)
    assert set(first.samples) == {metric.name for metric in SERVE_METRICS if metric is not SERVE_SERVICE_DEATHS}  # it has none
    assert first.total(SERVE_READY.name) == 1
    assert [value for _, value in first.matching(SERVE_MODEL_READY.name)] == [1, 1]
    assert first.total(SERVE_MODEL_DEATHS.name) == first.total(SERVE_TRITON_RESTARTS.name) == 0
    assert {"first", "second_0", "triton", "keepers", "supervisor"} <= set(first.values_of(SERVE_MEMORY.name, "process"))
    own = first.total(SERVE_MEMORY.name, process="supervisor")
    assert own is not None
    assert own > 10e6

    stub = next(pid for pid, model in supervisor._triton.stubs().items() if model == "second_0")
    psutil.Process(stub).kill()
    until(lambda: page(supervisor).total(SERVE_MODEL_DEATHS.name, model="second_0") == 1)
    assert page(supervisor).total(SERVE_MODEL_DEATHS.name, model="first") == 0
    until(lambda: page(supervisor).total(SERVE_READY.name) == 1)
    assert supervisor.triton_pid is not None
    os.kill(supervisor.triton_pid, signal.SIGKILL)
    until(lambda: page(supervisor).total(SERVE_TRITON_RESTARTS.name) == 1)
    until(lambda: page(supervisor).total(SERVE_READY.name) == 1)


def test_a_server_that_is_away_has_no_model_that_is_ready(supervisor: Supervisor, tmp_path: Path) -> None:
    fake_triton.behave(tmp_path / "triton", exits=1)
    assert supervisor.triton_pid is not None
    os.kill(supervisor.triton_pid, signal.SIGKILL)
    until(lambda: page(supervisor).total(SERVE_READY.name) == 0)
    until(lambda: page(supervisor).total(SERVE_MODEL_READY.name) == 0)
    fake_triton.behave(tmp_path / "triton")
    until(lambda: page(supervisor).total(SERVE_MODEL_READY.name) == 2)


def test_the_state_page_reads_it(supervisor: Supervisor) -> None:
    pages = {SUPERVISOR: page(supervisor)}
    state = state_between(pages, pages)
    assert [(model.name, model.ready, model.deaths) for model in state.models] == [("first", True, 0), ("second_0", True, 0)]
    assert state.supervisor is not None
    assert state.supervisor.ready
    assert state.supervisor.memory_bytes["triton"] > 0


def test_the_health_port_says_what_there_is(supervisor: Supervisor) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{supervisor.options.health_port}/nothing", timeout=60)
    assert b"/metrics" in refused.value.read()


def test_memory_of_a_process_that_is_not_there_is_nothing() -> None:
    assert resident_memory(lambda name: None, root=2**22 + 1) == {}

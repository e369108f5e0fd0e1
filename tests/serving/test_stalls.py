"""A machine that stood still: when it goes on, nobody is late who had no time; the clock is moved by hand."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nereid.serving.control import ModelControl
from nereid.serving.errors import ServingError
from nereid.serving.gateway.connections import Connections
from nereid.serving.gateway.limits import Limits
from nereid.serving.models import ServedModels
from nereid.serving.options import ServeOptions
from nereid.serving.pending_restart import WITHIN_SECONDS, PendingRestart
from nereid.serving.process import TritonProcess

CONFIG = 'name: "one"\nbackend: "python"\n'


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the machine's clock is ahead of the true one."""
    ahead, true = [0.0], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: true() + ahead[0])
    return ahead


def models(folder: Path) -> ServedModels:
    (folder / "one").mkdir(parents=True)
    (folder / "one" / "config.pbtxt").write_text(CONFIG)
    return ServedModels.read(folder)


class Caller:
    ended = False

    def drop(self) -> None:
        self.ended = True

    def expire(self) -> None:
        self.ended = True

    def unsent(self) -> int:
        return 0


def test_callers_of_a_gateway_that_stood_still_are_given_their_time(slept: list[float]) -> None:
    table, caller = Connections(Limits(head_seconds=10)), Caller()
    table.arrive(caller)
    slept[0] += 3600
    table.sweep(table.awake.look())
    assert not caller.ended
    for _ in range(12):
        slept[0] += 0.9
        table.sweep(table.awake.look())
    assert caller.ended


def test_other_pipelines_have_their_minute_before_triton_is_restarted(slept: list[float], tmp_path: Path) -> None:
    pending = PendingRestart()
    pending.ask(["one"], models(tmp_path))
    slept[0] += 3600
    assert not pending.is_overdue
    for _ in range(int(WITHIN_SECONDS)):
        slept[0] += 1.0
        overdue = pending.is_overdue
    assert overdue


def test_triton_is_not_given_up_that_stood_still_with_its_supervisor(slept: list[float], tmp_path: Path) -> None:
    class Loading(TritonProcess):
        looks = 0

        def __post_init__(self) -> None:
            pass

        def is_running(self) -> bool:
            return True

        def stubs(self) -> dict[int, str]:
            return {}

        def _has_dead_child(self) -> bool:
            return False

        def unready_models(self) -> list[str]:
            Loading.looks += 1
            slept[0] += 3600 if Loading.looks == 1 else 4.0
            return [] if Loading.looks == ready_after else ["one"]

    options = replace(ServeOptions.on_free_ports(tmp_path, tmp_path / "log"), start_timeout=60.0)
    ready_after = 2
    arguments: Any = (None, options, None, None)
    Loading(*arguments).wait_until_ready(lambda processes: None)
    Loading.looks, ready_after = 0, -1
    with pytest.raises(ServingError, match=r"^Triton was not ready within 60 s"):
        Loading(*arguments).wait_until_ready(lambda processes: None)
    assert 13 < Loading.looks < 17


def test_a_model_that_loads_meanwhile_is_not_given_up(slept: list[float], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control"))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                time.sleep(0.3)
                slept[0] += 3600
                time.sleep(0.3)
                connection.sendall(b"{}\n")

        answering = threading.Thread(target=answer)
        answering.start()
        ModelControl(tmp_path / "control", threading.Event(), 30.0).unload("one")
        answering.join()

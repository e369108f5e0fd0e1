"""Services beside Triton: kept up by a thread of their own, part of readiness, drained before Triton."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from nereid.serving.child import Backoff, Child
from nereid.serving.errors import ServingError
from nereid.serving.heartbeat import Heart, Pulse
from nereid.serving.installation import Source
from nereid.serving.options import ServeOptions
from nereid.serving.services import KeptService, KeptServices
from nereid.serving.supervisor import Supervisor

import fake_triton
from waiting import until

BEATS = """
import pathlib, sys, time
from nereid.serving.heartbeat import Heart
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.01)
heart = Heart(int(sys.argv[1]))
while True:
    heart.beat()
    time.sleep(0.1)
"""
BEATS_WHILE = """
import pathlib, sys, time
from nereid.serving.heartbeat import Heart
heart = Heart(int(sys.argv[1]))
while True:
    if pathlib.Path(sys.argv[2]).exists():
        heart.beat()
    time.sleep(0.1)
"""
BEATS_ONCE = "import os, sys, time; os.write(int(sys.argv[1]), b'\\n'); time.sleep(600)"
FAILS = """
import sys
from nereid.serving.heartbeat import Heart
Heart(int(sys.argv[1])).fail("the cupboard is bare\\nTraceback")
sys.exit(3)
"""
DRAINS = """
import os, signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
os.write(int(sys.argv[1]), b"\\n")
while len(asked) < 2:
    time.sleep(0.01)
"""


ENSEMBLE = 'ensemble_scheduling { step [ { model_name: "x" model_version: -1 } ] }'
LINGERS = """
import os, pathlib, signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
while not asked:
    os.write(int(sys.argv[1]), b"\\n")
    time.sleep(0.05)
pathlib.Path(sys.argv[2], "asked").touch()
while not pathlib.Path(sys.argv[2], "end").exists():
    time.sleep(0.01)
"""


def service(source: str, *arguments: str, **options: object) -> KeptService:
    def make(heart: int) -> Child:
        return Child([sys.executable, "-c", source, str(heart), *arguments], os.environ, pass_fds=[heart])

    return KeptService("the gateway", make, backoff=Backoff(first=0.01), **options)  # type: ignore[arg-type]


@pytest.fixture
def kept() -> Iterator[KeptServices]:
    services = KeptServices()
    yield services
    services.drain()
    services.stop(0, threading.Event())


def test_service_comes_back_and_waits_longer_each_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nereid")
    fails = service(FAILS)
    until(lambda: fails.tend() or "death 3 in a row" in caplog.text)  # type: ignore[func-returns-value]
    assert not fails.is_well()
    assert "the gateway died (the cupboard is bare); starting it again now" in caplog.text
    fails.stop()


def test_service_that_cannot_be_started_says_why_in_one_sentence() -> None:
    for source, why in ((FAILS, "the cupboard is bare"), ("raise SystemExit(4)", "exit code 4")):
        fails = service(source)
        with pytest.raises(ServingError, match=f"^the gateway cannot be started: {why}$"):
            fails.start()
        fails.stop()
    never = service("import time; time.sleep(600)", start_seconds=0.2)
    with pytest.raises(ServingError, match=r"the gateway did not start within 0\.2 s"):
        never.start()
    never.stop()


def test_service_whose_loop_hangs_is_replaced(kept: KeptServices, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nereid")
    hangs = service(BEATS_ONCE, silent_seconds=1)
    kept.add(hangs)
    kept.start()
    first = hangs.pid
    until(lambda: hangs.pid not in (None, first))
    assert "the gateway has sent no heartbeat for" in caplog.text


KEEPS = """
import os, sys, time
from nereid.serving.child import Child
from nereid.serving.services import KeptService, KeptServices
kept = KeptServices()
make = lambda heart: Child([sys.executable, "-c", sys.argv[1], str(heart), sys.argv[2]], os.environ, pass_fds=[heart])
service = KeptService("the gateway", make, silent_seconds=3.0)
kept.add(service)
kept.start()
print("up", flush=True)
sys.stdin.read()
print(*kept.deaths().values(), flush=True)
service.stop()
"""


def test_service_is_left_alone_when_all_have_stood_still(tmp_path: Path) -> None:
    path, pipe = os.pathsep.join(folder for folder in sys.path if folder), subprocess.PIPE
    (may_beat := tmp_path / "may-beat").touch()
    command = [sys.executable, "-c", KEEPS, BEATS_WHILE, str(may_beat)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, "PYTHONPATH": path}) as keeper:
        assert keeper.stdout is not None
        keeper.stdout.readline()
        os.kill(keeper.pid, signal.SIGSTOP)
        may_beat.unlink()  # the service stands still as well, and wakes a little later
        time.sleep(3.5)
        os.kill(keeper.pid, signal.SIGCONT)
        time.sleep(0.5)
        may_beat.touch()
        time.sleep(1.5)
        said, _ = keeper.communicate(timeout=60)
    assert said == "0\n"


def test_dead_service_is_down_until_it_beats_again(kept: KeptServices, tmp_path: Path) -> None:
    may_beat = tmp_path / "may-beat"
    may_beat.touch()
    beats = service(BEATS, str(may_beat))
    kept.add(beats)
    kept.start()
    assert kept.down() == []
    assert kept.deaths() == {"gateway": 0}
    assert beats.pid is not None
    dead = psutil.Process(beats.pid)
    may_beat.unlink()
    dead.kill()
    until(lambda: kept.down() == ["the gateway"])
    may_beat.touch()
    until(lambda: kept.down() == [])
    assert beats.pid != dead.pid
    assert kept.deaths() == {"gateway": 1}


def test_draining_service_is_asked_again_in_a_hurry_and_is_not_started_again(kept: KeptServices) -> None:
    drains = service(DRAINS)
    kept.add(drains)
    kept.start()
    kept.drain()
    time.sleep(0.2)
    assert not drains.has_ended()
    hurried = threading.Event()
    hurried.set()
    start = time.monotonic()
    kept.stop(600, hurried)
    assert time.monotonic() - start < 300
    assert drains.pid is None
    assert kept.down() == ["the gateway"]


def test_triton_refuses_nothing_before_services_have_ended_and_readiness_tells_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "triton"
    monkeypatch.setenv("PATH", f"{fake_triton.install(home)}{os.pathsep}{os.environ['PATH']}")
    repository = fake_triton.write_models(tmp_path / "repository", "first", more=ENSEMBLE)
    options = ServeOptions.on_free_ports(repository, tmp_path / "log")
    supervisor = Supervisor(replace(options, triton=Source.PATH, drain_seconds=600))
    supervisor.services.add(service(LINGERS, str(tmp_path)))
    with supervisor, ThreadPoolExecutor() as pool:
        assert supervisor.readiness()[0]
        stopping = pool.submit(supervisor.stop)
        until((tmp_path / "asked").exists)
        assert not supervisor.readiness()[0]
        assert supervisor.readiness()[1]["draining"]
        time.sleep(0.3)
        assert not (home / "unloads").exists()
        (tmp_path / "end").touch()
        stopping.result(120)
        assert (home / "unloads").read_text() == "first\n"


def test_heartbeats_and_sentences_arrive_and_a_full_pipe_stops_nobody(tmp_path: Path) -> None:
    pulse = Pulse.create()
    heart = Heart(pulse.sender)
    pulse.listen()
    assert not pulse.has_beaten
    for _ in range(200_000):
        heart.beat()
    pulse.listen()
    assert pulse.has_beaten
    heart.fail("one sentence\nand a traceback")
    pulse.listen()
    assert pulse.failure == "one sentence"
    pulse.close()
    heart.beat()

"""Processes under a keeper: whatever dies, and however, nothing stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from nereid.serving.child import Backoff, Child, said_of_exit

from waiting import until

# Starts a grandchild in a session of its own, which ignores SIGTERM, and writes both pids.
PARENT = """
import os, subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"],
                              start_new_session=True)
open(sys.argv[1] + ".new", "w").write(f"{os.getpid()} {grandchild.pid}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""
SUPERVISOR = """
import os, sys, time
from pathlib import Path
from nereid.serving.child import Child
child = Child([sys.executable, "-c", sys.argv[1], sys.argv[2]], os.environ, folder=Path(sys.argv[3]))
child.start()
time.sleep(600)
"""


def pids(file: Path) -> list[int]:
    until(file.is_file)
    return [int(word) for word in file.read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def parent(tmp_path: Path) -> Child:
    return Child([sys.executable, "-c", PARENT, str(tmp_path / "pids")], os.environ)


def test_descendants_end_with_a_killed_child(tmp_path: Path) -> None:
    child = parent(tmp_path)
    child.start()
    known = pids(tmp_path / "pids")
    assert child.pid == known[0]
    os.kill(known[0], signal.SIGKILL)
    until(lambda: not child.is_running())
    assert child.wait(60)
    assert not any(is_alive(pid) for pid in known)
    assert said_of_exit(child.returncode) == "killed by SIGKILL"
    child.stop(0)


def test_stop_leaves_nothing_even_of_those_that_ignore_it(tmp_path: Path) -> None:
    child = parent(tmp_path)
    child.start()
    known = pids(tmp_path / "pids")
    child.stop(5)
    assert not any(is_alive(pid) for pid in known)


def test_everything_ends_with_a_killed_supervisor_and_its_folder_and_shared_memory_go(tmp_path: Path) -> None:
    folder = tmp_path / "serve"
    folder.mkdir()
    region = Path("/dev/shm") / f"nereid_test_region_{os.getpid()}_1"
    region.write_bytes(b"x")
    (folder / "regions").write_text(f"nereid_test_region_{os.getpid()}\n")
    command = [sys.executable, "-c", SUPERVISOR, PARENT, str(tmp_path / "pids"), str(folder)]
    supervisor = subprocess.Popen(command)
    known = pids(tmp_path / "pids")
    supervisor.kill()
    supervisor.wait()
    until(lambda: not any(is_alive(pid) for pid in known))
    until(lambda: not folder.exists())
    assert not region.exists()


def test_child_ends_with_a_killed_keeper(tmp_path: Path) -> None:
    child = parent(tmp_path)
    child.start()
    known = pids(tmp_path / "pids")
    psutil.Process(known[0]).parent().kill()  # type: ignore[union-attr]
    until(lambda: not is_alive(known[0]))
    assert not child.is_running()
    os.kill(known[1], signal.SIGKILL)  # who escapes then is found by its environment: see the supervisor's tests
    child.stop(0)


def test_stopped_child_is_seen_and_can_be_ended(tmp_path: Path) -> None:
    child = parent(tmp_path)
    child.start()
    known = pids(tmp_path / "pids")
    assert not child.is_stopped()
    os.kill(known[0], signal.SIGSTOP)
    until(child.is_stopped)
    child.stop(0.1)
    assert not any(is_alive(pid) for pid in known)


def test_command_that_is_none_ends_with_a_status(tmp_path: Path) -> None:
    child = Child([str(tmp_path / "nothing")], os.environ)
    child.start()
    assert child.wait(60)
    assert child.returncode == 127
    child.stop(0)


def test_back_off_grows_with_deaths_in_a_row_and_is_forgotten_after_a_long_life() -> None:
    backoff = Backoff(first=1, longest=5, well_after=60)
    assert [backoff.after_death(0.1) for _ in range(6)] == [0, 1, 2, 4, 5, 5]
    assert backoff.after_death(61) == 0

"""What a process holds to answer later is known after its death, however it came."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nereid.flow.state_folder import STATE_FOLDER
from nereid.flow.unanswered import Unanswered, processes_of, take_unanswered

from waiting import until

_HOLDS = """
import sys, time
from nereid.flow.unanswered import Unanswered
held = [Unanswered.of(model) for model in sys.argv[1:]]
first = [one.hold() for one in held]
second = [one.hold() for one in held]
for answered in (*first, *first):
    answered()
second[-1]()
print("held", flush=True)
time.sleep(600)
"""


def test_who_held_requests_is_known_after_a_kill_and_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes_of("left-one") == frozenset()
    monkeypatch.setenv(STATE_FOLDER, str(tmp_path))
    command = [sys.executable, "-c", _HOLDS, "left-one", "answered-all"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, STATE_FOLDER: str(tmp_path)}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert processes_of("left-one") == {process.pid}
        assert processes_of("another") == frozenset()
        process.send_signal(signal.SIGKILL)
        until(lambda: not processes_of("left-one"))  # not waited for yet, it is a zombie
    assert take_unanswered(tmp_path, ["another"]) == []
    assert take_unanswered(tmp_path, ["left-one", "answered-all", "another"]) == ["left-one"]
    assert take_unanswered(tmp_path, ["left-one"]) == []
    assert processes_of("left-one") == frozenset()
    assert list(tmp_path.iterdir()) == []


def test_without_a_state_folder_nothing_is_kept_and_all_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STATE_FOLDER, raising=False)
    Unanswered.of("denoise").hold()()

"""The flight record over deaths of its process, real ones by kill -9."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nereid.flow.errors import PoisonousRequestError
from nereid.flow.flight_record import SLOTS, Flight, FlightRecord, digest_of, digest_of_inputs, forgive_all
from nereid.flow.state_folder import STATE_FOLDER

A, B, C = (digest_of([name]) for name in (b"a", b"b", b"c"))

LIFE = """
import os, signal, sys
from pathlib import Path
from nereid.flow.flight_record import FlightRecord, digest_of, forgive_all
record = FlightRecord.at(Path(sys.argv[1]))
for word in sys.argv[2:]:
    {"+": record.enter, "-": record.leave, "~": record.wait}[word[0]](digest_of([word[1:].encode()]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def live_and_die(file: Path, *words: str) -> None:
    assert subprocess.run([sys.executable, "-c", LIFE, str(file), *words], check=False).returncode == -9


def test_those_inside_at_a_death_are_suspects_and_those_answered_are_not(tmp_path: Path) -> None:
    file = tmp_path / "llm.flight"
    live_and_die(file, "+a", "+b", "+c", "-c")
    record = FlightRecord.at(file)
    assert record.suspects == {A, B}
    assert not record.is_refused(A)
    assert not record.is_suspect(C)
    record.enter(A)
    record.leave(A)
    assert record.suspects == {B}


def test_only_one_that_is_alone_at_its_second_death_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "llm.flight"
    live_and_die(file, "+a", "+b")
    live_and_die(file, "+a", "+c")
    record = FlightRecord.at(file)
    assert record.suspects == {A, B, C}  # twice inside, but never alone
    record.close()
    live_and_die(file, "+b", "-b", "+a")
    record = FlightRecord.at(file)
    assert record.is_refused(A)
    assert record.suspects == {C}
    record.close()
    assert FlightRecord.at(file).is_refused(A)  # and stays so


def test_a_single_first_death_refuses_nobody(tmp_path: Path) -> None:
    file = tmp_path / "llm.flight"
    live_and_die(file, "+a")
    record = FlightRecord.at(file)
    assert (record.is_refused(A), record.is_suspect(A)) == (False, True)


def test_the_same_request_twice_inside_leaves_twice(tmp_path: Path) -> None:
    file = tmp_path / "llm.flight"
    live_and_die(file, "+a", "+a", "-a")
    assert FlightRecord.at(file).suspects == {A}


def test_one_that_waits_is_not_inside_and_stays_the_suspect_it_was(tmp_path: Path) -> None:
    file = tmp_path / "llm.flight"
    live_and_die(file, "+a", "+b", "~b")
    assert FlightRecord.at(file).suspects == {A}
    live_and_die(file, "+a", "~a", "+b")
    record = FlightRecord.at(file)
    assert record.suspects == {A, B}
    assert not record.is_refused(A)


def test_more_than_there_are_slots_for_are_not_noted_and_slots_come_back(tmp_path: Path) -> None:
    record = FlightRecord.at(tmp_path / "llm.flight")
    many = [digest_of([str(i).encode()]) for i in range(SLOTS + 10)]
    for _ in range(2):
        for digest in many:
            record.enter(digest)
        for digest in many:
            record.leave(digest)
    record.enter(many[-1])
    record.close()
    assert FlightRecord.at(tmp_path / "llm.flight").suspects == {many[-1]}


def test_a_request_is_known_by_what_it_asks_for_and_refused_by_the_name_of_what_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"brief": np.array([b"a bakery"], np.object_), "seed": np.array([7])}
    again = {
        **asked,
        "run_id": np.array([b"other"], np.object_),
        "timeout_seconds": np.array([3.0]),
        "stream_interval": np.array([1]),
    }
    refused = digest_of_inputs(asked, ())
    record = FlightRecord.at(tmp_path / "page.flight")
    monkeypatch.setattr(FlightRecord, "is_refused", lambda self, digest: digest == refused)
    for inputs in (asked, again):
        with pytest.raises(PoisonousRequestError, match=r"^the request was alone in `page` when it died, twice"):
            Flight.of(record, inputs, "page")
    assert not Flight.of(record, {**asked, "seed": np.array([8])}, "page").inside
    assert not Flight.of(None, asked, "page").is_suspect


def test_a_file_of_another_size_begins_anew(tmp_path: Path) -> None:
    file = tmp_path / "llm.flight"
    file.write_bytes(b"\xff" * 100)
    assert not FlightRecord.at(file).suspects


def test_without_a_state_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STATE_FOLDER, raising=False)
    assert FlightRecord.open("llm") is None
    monkeypatch.setenv(STATE_FOLDER, str(tmp_path))
    assert FlightRecord.open("llm") is not None
    assert (tmp_path / "llm.flight").stat().st_mode & 0o777 == 0o600


def test_an_end_from_outside_is_nobodys_fault(tmp_path: Path) -> None:
    file = tmp_path / "model.flight"
    record = FlightRecord.at(file)
    record.enter(digest_of([b"a"]))
    record.close()
    forgive_all(tmp_path)
    assert not FlightRecord.at(file).suspects
    record = FlightRecord.at(file)
    record.enter(digest_of([b"b"]))
    record.close()
    suspect = FlightRecord.at(file)
    suspect.enter(digest_of([b"b"]))
    suspect.close()
    forgive_all(tmp_path)
    after = FlightRecord.at(file)
    assert after.is_suspect(digest_of([b"b"]))
    assert not after.is_refused(digest_of([b"b"]))

"""Finished stages of a training: whole or not there, and refused by name where they are another training's."""

from __future__ import annotations

from pathlib import Path

import pytest

from nereid_zoo.stages import StageError, finished_stage


def write(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_text("whole")


def test_a_stage_is_trained_once(tmp_path: Path) -> None:
    finished_stage(tmp_path / "first", {"minutes": 2}, write)
    again = finished_stage(tmp_path / "first", {"minutes": 2}, lambda folder: pytest.fail("it was trained again"))
    assert (again / "weights").read_text() == "whole"


def test_a_stage_that_was_broken_off_is_trained_again(tmp_path: Path) -> None:
    def broken_off(folder: Path) -> None:
        write(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finished_stage(tmp_path / "first", {}, broken_off)
    assert not (tmp_path / "first").exists()
    finished_stage(tmp_path / "first", {}, write)
    assert {folder.name for folder in tmp_path.iterdir()} == {"first"}


def test_another_trainings_stage_is_refused_by_what_differs(tmp_path: Path) -> None:
    finished_stage(tmp_path / "first", {"teacher": "a", "minutes": 2}, write)
    with pytest.raises(StageError, match=r"first was trained with teacher 'a', not 'b'; remove it, or name another --work"):
        finished_stage(tmp_path / "first", {"teacher": "b", "minutes": 2}, write)


def test_a_folder_that_says_nothing_of_itself_is_not_taken_for_a_stage(tmp_path: Path) -> None:
    write(tmp_path / "first")
    with pytest.raises(StageError, match="nobody knows what"):
        finished_stage(tmp_path / "first", {"minutes": 2}, write)

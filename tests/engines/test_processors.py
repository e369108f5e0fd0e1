"""The processors of a container with a quota of their time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nereid.engines.processors import available_processors


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.parametrize(
    ("said", "processors"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("9900000 100000", 8), ("odd", 8)],
)
def test_a_quota_of_time_is_a_number_of_processors(tmp_path: Path, said: str, processors: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{said}\n")
    assert available_processors(tmp_path) == processors


@pytest.mark.parametrize(("quota", "processors"), [("-1", 8), ("300000", 3)])
def test_quotas_of_the_first_version_of_cgroups_are_read(tmp_path: Path, quota: str, processors: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert available_processors(tmp_path) == processors


def test_without_a_quota_all_processors_are_there(tmp_path: Path) -> None:
    assert available_processors(tmp_path) == 8

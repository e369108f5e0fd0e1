"""What the machine has left is the least of what it and its container say."""

from __future__ import annotations

from pathlib import Path

import pytest

from nereid.engines.memory import RunMemory, available_bytes


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:       16000 kB\nMemFree:         1000 kB\nMemAvailable:    8000 kB\n")
    return file


def test_a_container_that_has_less_counts(meminfo: Path, tmp_path: Path) -> None:
    assert available_bytes(meminfo, tmp_path) == 8000 * 1024
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(meminfo, tmp_path) == 8000 * 1024
    (tmp_path / "memory.max").write_text("5000\n")
    assert available_bytes(meminfo, tmp_path) == 4000
    (tmp_path / "memory.max").write_text("900\n")
    assert available_bytes(meminfo, tmp_path) == 0


def test_attention_grows_with_the_square_of_the_pixels() -> None:
    memory = RunMemory(base_bytes=5, bytes_per_row=1.0, bytes_per_row_pixel=2.0, bytes_per_row_pixel_squared=3.0)
    assert memory.run_bytes(2, 10) == 2 * (1 + 20 + 300)

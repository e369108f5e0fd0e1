"""Arrays of an interrupted export are read as they were written, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from nereid_export.kept_arrays import read_arrays, write_arrays

ARRAYS = {
    "steps": np.array(20, dtype=np.int32),
    "0 unet sample": np.arange(6, dtype=np.float32).reshape(2, 3),
    "0 unet timestep": np.array([[7], [8]], dtype=np.int64),
}


def test_arrays_come_back_by_name_type_and_value(tmp_path: Path) -> None:
    file = tmp_path / "0.npz"
    assert read_arrays(file) is None
    write_arrays(file, ARRAYS)
    found = read_arrays(file)
    assert found is not None
    assert [(name, value.dtype, value.tolist()) for name, value in found.items()] == [
        (name, value.dtype, value.tolist()) for name, value in ARRAYS.items()
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["0.npz"]


def test_a_file_with_any_byte_changed_or_missing_is_not_read(tmp_path: Path) -> None:
    """Also where only the archive's list of its members is damaged, which its sums do not cover."""
    file = tmp_path / "0.npz"
    write_arrays(file, ARRAYS)
    data = file.read_bytes()
    for place in range(len(data)):
        file.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
        assert read_arrays(file) is None
    for length in (0, 1, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:length])
        assert read_arrays(file) is None


def test_what_is_no_such_file_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "0.npz"
    np.save(tmp_path / "0.npy", np.zeros(3))
    (tmp_path / "0.npy").rename(file)  # one array, without the archive
    assert read_arrays(file) is None
    file.unlink()
    file.mkdir()
    assert read_arrays(file) is None

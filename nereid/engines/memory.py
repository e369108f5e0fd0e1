"""What one run of an engine needs in memory, as export has measured it, and what a machine has left; knows no engine."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_SHARED = Path("/dev/shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMemory:
    """Bytes of the process that runs an engine: with it loaded, and during a run besides.

    Attention compares every place of a picture with every other one, so that a part grows with the square of the pixels.
    """

    base_bytes: int
    bytes_per_row: float = 0.0
    bytes_per_row_pixel: float = 0.0
    bytes_per_row_pixel_squared: float = 0.0

    def run_bytes(self, rows: int, pixels: int) -> float:
        """What a run of `rows` engine rows needs besides, each for a picture of `pixels` (width x height)."""
        per_row = self.bytes_per_row + self.bytes_per_row_pixel * pixels + self.bytes_per_row_pixel_squared * pixels**2
        return rows * per_row

    def scaled(self, factor: float) -> RunMemory:
        """The same engine, whose runs need `factor` times as much."""
        return RunMemory(
            base_bytes=self.base_bytes,
            bytes_per_row=factor * self.bytes_per_row,
            bytes_per_row_pixel=factor * self.bytes_per_row_pixel,
            bytes_per_row_pixel_squared=factor * self.bytes_per_row_pixel_squared,
        )


def shared_bytes(folder: Path = _SHARED) -> int:
    """What shared memory may still take: tensors go to and from engines through it."""
    return shutil.disk_usage(folder).free


def available_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """What this process may still take: of the machine, and of its container (cgroup v2) where that has less."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    available = int(lines["MemAvailable"].split()[0]) * 1024
    try:
        most = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return available
    return available if most == "max" else min(available, max(int(most) - used, 0))

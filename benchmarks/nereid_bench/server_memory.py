"""Peaks of resident memory of a server's processes, which this process has started."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MEMORY = "sum of each server process's own peak of resident memory during a picture; what processes share counts in each"


@dataclass(slots=True)
class ServerMemory:
    """All that this process has started: Triton, its Python processes, and the keepers above them."""

    _processes: list[psutil.Process] = field(default_factory=list)

    def reset(self) -> None:
        """Make each process's peak what it holds now; where a kernel refuses, the older, higher one stays."""
        if not self._processes or not all(process.is_running() for process in self._processes):
            self._processes = psutil.Process().children(recursive=True)
        for process in self._processes:
            with contextlib.suppress(OSError):  # one that has ended
                Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """The sum of each process's own peak since `reset`; what processes share counts in each."""
        total = 0
        for process in self._processes:
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
        return total

"""Which runs of an ONNX session give ONNX Runtime's arena back: those whose shapes were seen to need much. Knows no model.

The arena keeps whatever the largest run has needed, for good. Giving it back costs the next run the time to get its memory
again, which shows in small runs and not in large ones. What a run needs is measured once for its shapes, with the memory given
back, so that a single large run leaves nothing behind either.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort

from nereid.engines.onnx_options import SHRINKAGE

KEEP_BYTES = 256 * 2**20
"""Runs that need less keep their memory for the next one."""

_MOST_SHAPES = 4096
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"

Shapes = tuple[tuple[int, ...], ...]


@dataclass(slots=True, eq=False)
class Arena:
    """Runs a session on the processor; `devices` is what the config asks to give back after every run, if it does."""

    keep_bytes: int = KEEP_BYTES
    devices: str = ""
    _large: dict[Shapes, bool] = field(default_factory=dict)

    def run(self, session: ort.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The session's outputs."""
        if self.devices:
            return list(session.run(list(outputs), dict(feeds), _giving_back(self.devices)))
        shapes = tuple(value.shape for value in feeds.values())
        large = self._large.get(shapes)
        if large is None:
            return self._measure(session, outputs, feeds, shapes)
        return list(session.run(list(outputs), dict(feeds), _giving_back("cpu:0") if large else None))

    def _measure(
        self, session: ort.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, np.ndarray], shapes: Shapes
    ) -> list[np.ndarray]:
        before = reset_peak()
        made = list(session.run(list(outputs), dict(feeds), _giving_back("cpu:0")))
        if len(self._large) >= _MOST_SHAPES:
            self._large.clear()
        self._large[shapes] = peak_bytes() - before > self.keep_bytes
        return made


def _giving_back(devices: str) -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry(SHRINKAGE, devices)
    return options


def reset_peak() -> int:
    """Make this process's peak what it holds now, and return that; an older, higher peak stays where the kernel refuses.

    Memory that was freed and that the C library still holds goes back first: what a run takes of it would not show in the peak.
    """
    with suppress(AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        _CLEAR.write_text(_RESET_PEAK)
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most memory that this process has held since its peak was reset."""
    return _status("VmHWM")


def _status(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0

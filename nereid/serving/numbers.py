"""The supervisor's numbers as a page of metrics: readiness, deaths, restarts, and the memory of this serve's processes.

Written by hand, because the process that keeps the others up needs no library for it. Processes are told by their command lines.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nereid.serving.models import ServedModels
from nereid.serving.process import STUB
from nereid_protocol.metric import Metric
from nereid_protocol.metrics import (
    SERVE_MEMORY,
    SERVE_METRICS,
    SERVE_MODEL_DEATHS,
    SERVE_MODEL_READY,
    SERVE_READY,
    SERVE_SERVICE_DEATHS,
    SERVE_TRITON_RESTARTS,
)

_PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PARENT, _RESIDENT = 1, 21
"""Places in /proc/PID/stat behind the process's name, which may hold spaces and brackets."""


@dataclass(slots=True)
class Numbers:
    """`readiness` is what /ready answers. The counts are added to by the supervisor's thread, and read by the health port's."""

    models: ServedModels
    readiness: Callable[[], tuple[bool, dict[str, Any]]]
    service_deaths: Callable[[], Mapping[str, int]]
    restarts: int = 0
    deaths: Counter[str] = field(default_factory=Counter)

    def page(self) -> str:
        """In Prometheus' text form."""
        ready, details = self.readiness()
        away = {*details["models_reloading"], *details["models_not_ready"]}
        up = details["server_running"] and details["models_loaded"]
        values: dict[Metric, list[tuple[str, float]]] = {
            SERVE_READY: [("", ready)],
            SERVE_TRITON_RESTARTS: [("", self.restarts)],
            SERVE_MODEL_DEATHS: [(model, self.deaths[model]) for model in self.models.configs],
            SERVE_SERVICE_DEATHS: list(self.service_deaths().items()),
            SERVE_MODEL_READY: [(model, up and model not in away) for model in self.models.configs],
            SERVE_MEMORY: sorted(resident_memory(self.models.of_instance).items()),
        }
        return "".join(line for metric in SERVE_METRICS for line in _lines(metric, values[metric]))


def _lines(metric: Metric, series: Iterable[tuple[str, float]]) -> Iterable[str]:
    yield f"# HELP {metric.name} {metric.description}\n# TYPE {metric.name} {metric.kind}\n"
    for label, value in series:
        escaped = label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        shown = f'{{{metric.labels[0]}="{escaped}"}}' if metric.labels else ""
        yield f"{metric.name}{shown} {float(value):.15g}\n"


def resident_memory(model_of: Callable[[str], str | None], root: int | None = None) -> dict[str, float]:
    """Bytes by what a process is, of `root` (this process) and all below it; one look at each process of the machine."""
    parents, resident = _processes()
    root = os.getpid() if root is None else root
    sizes: Counter[str] = Counter()
    for pid, size in resident.items():
        if pid == root:
            sizes["supervisor"] += size
        elif _is_below(pid, root, parents):
            sizes[_name_of(_command(pid), model_of)] += size
    return {name: float(size) for name, size in sizes.items()}


def _processes() -> tuple[Mapping[int, int], Mapping[int, int]]:
    parents, resident = {}, {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
                facts = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                parents[int(entry.name)] = int(facts[_PARENT])
                resident[int(entry.name)] = int(facts[_RESIDENT]) * _PAGE_BYTES
    return parents, resident


def _is_below(pid: int, root: int, parents: Mapping[int, int]) -> bool:
    for _ in range(64):  # no tree here is that deep; a number may be given to another process while this looks
        pid = parents.get(pid, 0)
        if pid == root:
            return True
        if pid <= 1:
            return False
    return False


def _command(pid: int) -> list[str]:
    with suppress(OSError):
        return (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    return [""]


def _name_of(command: Sequence[str], model_of: Callable[[str], str | None]) -> str:
    """A model, `MODEL worker`, `triton`, `gateway`, `keepers`, or `other`: bounded by the number of models."""
    if any(part.endswith("keeper.py") for part in command[:4]):  # before the others: the kept command stands behind it
        return "keepers"
    if command[0].endswith(STUB) and len(command) > 2:
        return model_of(command[-2]) or "model control"
    if any(part.rpartition("/")[2] == "tritonserver" for part in command[:2]):
        return "triton"
    if "nereid.serving.gateway" in command:
        return "gateway"
    if "nereid.engines.worker_main" in command and "--name" in command[:-1]:
        return f"{command[command.index('--name') + 1]} worker"
    return "other"

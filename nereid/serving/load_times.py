"""How long each model took to load, from its process's start to the end of `initialize`, warm-up included."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from nereid.flow.state_folder import loaded_at


def load_seconds(state: Path, stubs: Mapping[int, str]) -> dict[str, float]:
    """By model, of its slowest process; `stubs` are the living ones by pid. Models of Triton's own backends do not tell."""
    told = loaded_at(state)
    found: dict[str, float] = {}
    for pid, model in stubs.items():
        with contextlib.suppress(psutil.Error):
            if pid in told:
                found[model] = max(found.get(model, 0.0), round(told[pid] - psutil.Process(pid).create_time(), 2))
    return found


def load_table(configs: Mapping[str, Any], seconds: Mapping[str, float]) -> Table:
    """Slowest first; without ensembles, which load nothing."""
    table = Table("model", "engine")
    table.add_column("seconds to load", justify="right")
    models = [name for name, config in configs.items() if not config.ensemble_scheduling.step]
    for name in sorted(models, key=lambda name: (-seconds.get(name, 0.0), name)):
        table.add_row(name, configs[name].backend, f"{seconds[name]:.1f}" if name in seconds else "not told")
    return table

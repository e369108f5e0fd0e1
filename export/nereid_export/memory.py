"""Measures what an engine's runs need in memory: a line (where scores of attention are held, a parabola) through a few."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nereid.engines.memory import RunMemory
from nereid_export.components import Component, sizes_at
from nereid_export.engines.base import Target, input_shape

SMALLEST_LATENTS = 64
"""Latents a side of the larger picture measured, at least: below that, small models hold too little to be told from noise."""

_DTYPES = {torch.float32: "float32", torch.int32: "int32", torch.int64: "int64"}


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """One run: of how many rows, each for a picture of so many pixels (0 where the engine sees none), and what it needed."""

    rows: int
    pixels: int
    bytes: int


def measure_memory(component: Component, file: Path, target: Target, probe: str | None) -> dict[str, Any] | None:
    """What the manifest says of an engine's memory; None where there is no `probe`, or its process did not live to tell."""
    if probe is None:
        return None
    side = max(target.default_side, SMALLEST_LATENTS * target.scale)
    wanted = [(1, side // 2), (1, side), (2, side // 2)] if component.spatial else [(1, 0), (4, 0)]
    runs = []
    for rows, of in wanted:
        sizes = {"batch": rows, **sizes_at(component, of, target.scale)}
        runs.append([(spec.name, input_shape(spec, sizes), _DTYPES[spec.dtype]) for spec in component.inputs])
    done = run_probe([probe, str(file), json.dumps(runs)])
    if done.returncode:
        return None
    found = json.loads(done.stdout.splitlines()[-1])
    measured = [MeasuredRun(rows, of * of, used) for (rows, of), used in zip(wanted, found["runs"], strict=True)]
    return {**asdict(fit(found["base"], measured)), "measured": [asdict(run) for run in measured]}


def run_probe(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """`nereid_export.memory_probe` in a process of its own, whose memory is that engine's alone."""
    command = [sys.executable, "-m", "nereid_export.memory_probe", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run_memory(measured: dict[str, Any] | None) -> RunMemory | None:
    """What an engine's runs need, by what the manifest says of it; None where that was not measured."""
    return None if measured is None else RunMemory(**_needed(measured))


def run_memories(measured: Mapping[str, dict[str, Any] | None]) -> dict[str, dict[str, Any]]:
    """What pipeline.json says of its engines' memory (nereid.diffusion.settings reads it)."""
    return {name: _needed(found) for name, found in measured.items() if found is not None}


def _needed(measured: dict[str, Any]) -> dict[str, Any]:
    """Without how it was measured."""
    return {key: value for key, value in measured.items() if key != "measured"}


def fit(base: int, runs: Sequence[MeasuredRun]) -> RunMemory:
    """Bytes a row from runs of one row, no less than any run has needed."""
    if not runs[0].pixels:
        made = RunMemory(base_bytes=base, bytes_per_row=float(max(runs[0].bytes, 1)))
    else:
        (small, small_bytes), (large, large_bytes) = ((run.pixels, max(run.bytes, 1)) for run in runs[:2])
        squared = (large_bytes / large - small_bytes / small) / (large - small)
        if squared > 0:
            line = max(large_bytes / large - squared * large, 0.0)
            made = RunMemory(base_bytes=base, bytes_per_row_pixel=line, bytes_per_row_pixel_squared=squared)
        else:  # something that every picture needs, whatever its size
            line = max((large_bytes - small_bytes) / (large - small), 0.0)
            every = max(small_bytes - line * small, large_bytes - line * large)
            made = RunMemory(base_bytes=base, bytes_per_row=every, bytes_per_row_pixel=line)
    return made.scaled(max(1.0, *(run.bytes / made.run_bytes(run.rows, run.pixels) for run in runs[1:])))

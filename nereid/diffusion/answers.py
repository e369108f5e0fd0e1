"""What `denoise` answers, as arrays by the names of its outputs: one row for each image of the request."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from nereid.diffusion.state import ImageTask


def outputs_of(task: ImageTask, fingerprint: str) -> dict[str, np.ndarray]:
    """The answer of a task whose images are denoised."""
    count = len(task.runs)
    warnings = "\n".join(task.request.warnings).encode()
    return {
        "latents": np.stack([run.state.sample for run in task.runs]),
        "solver_memory": np.stack([run.state.memory for run in task.runs]),
        "image_seed": np.array([[run.row.seed] for run in task.runs], dtype=np.int64),
        "warnings": np.array([[warnings]] * count, dtype=np.object_),
        "timings": np.array([task.timings] * count, dtype=np.float32),
        "system_fingerprint": np.array([[fingerprint.encode()]] * count, dtype=np.object_),
        "seconds_left": _each(task.submitted + task.request.timeout_seconds - time.monotonic(), count),
        "run_id": np.array([[task.request.run_id.encode()]] * count, dtype=np.object_),
        "tile_sample_min_size": _each(task.request.tiling.tile_sample_min_size, count, np.int32),
        "tile_overlap_factor": _each(task.request.tiling.tile_overlap_factor, count),
        "decoder": np.array([[task.request.decoder.encode()]] * count, dtype=np.object_),
    }


def with_time_left(outputs: Mapping[str, np.ndarray], seconds: float, rows: int) -> dict[str, np.ndarray]:
    """The same answer, given to a request that has so many seconds left."""
    return {**outputs, "seconds_left": _each(seconds, rows)}


def _each(value: float, rows: int, dtype: type = np.float32) -> np.ndarray:
    return np.full((rows, 1), value, dtype)

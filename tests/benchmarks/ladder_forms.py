"""Rungs and figures of `nereid bench ladder`, for its tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from nereid_bench.ladder_rows import Found
from nereid_bench.ladder_rungs import MODELS, LadderModel, LadderPlan, Rung, Step, steps_of
from nereid_zoo.shapes.score import CHECKPOINT

SHAPES, RANDOM = MODELS["shapes"], MODELS["sd15-256"]
COLUMNS = ["model", "rung", "ms_per_image", "speedup", "images_per_second", "load_speedup", "memory_mb", "psnr", "score"]
COLUMNS += ["uses_student", "peers", "peers_psnr"]


def steps(model: LadderModel = SHAPES, **plan: Any) -> dict[Rung, Step]:
    return {step.rung: step for step in steps_of(model, CHECKPOINT, LadderPlan(**plan), None)}


def flat(value: int) -> Any:
    return np.full((128, 128, 3), value, np.uint8)


def found(ms: list[float], rate: list[float], value: int = 0) -> Found:
    pixels = {seed: flat(value) for seed in range(len(ms))}
    return Found(ms=ms, images_per_second=rate, peak_bytes=2_000_000, pixels=pixels)

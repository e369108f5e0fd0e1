"""A step in three parts: what each run needs (planned), one batch of inputs for an engine (packed), what comes of it (committed).

Planning and committing touch no engine; an engine's call knows no request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.families import Conditioning
from nereid.diffusion.solvers import advance, needs_noise, predict_clean
from nereid.diffusion.state import ImageRun
from nereid.flow.errors import EngineError
from nereid.flow.noise import Purpose, normal

Array = NDArray[np.float32]


def engine_rows(run: ImageRun) -> int:
    """Rows of the UNet that a run's next step takes: classifier-free guidance (Ho and Salimans, 2022) takes two."""
    return 2 if run.guided else 1


def pack(runs: Sequence[ImageRun]) -> dict[str, Array]:
    """One call's inputs: a row for every run, then an unconditional one for those that are guided in this step."""
    guided = [run for run in runs if run.guided]
    conditions: list[Conditioning] = [run.row.positive for run in runs]
    conditions += [run.row.negative for run in guided if run.row.negative is not None]
    members = [*runs, *guided]
    inputs = {
        "sample": np.stack([run.state.sample for run in members]),
        "timestep": np.array([[run.row.table.timesteps[run.local_step]] for run in members], dtype=np.float32),
        "encoder_hidden_states": np.stack([condition.states for condition in conditions]),
    }
    for name in conditions[0].extra:
        inputs[name] = np.stack([condition.extra[name] for condition in conditions])
    return inputs


def commit(runs: Sequence[ImageRun], inputs: Mapping[str, Array], outputs: Array) -> list[EngineError | None]:
    """Guide, predict, and move every run one step on; an error for each run whose output is not finite, which stays."""
    if outputs.shape != inputs["sample"].shape:
        raise EngineError(f"unet: output of shape {outputs.shape} for samples of shape {inputs['sample'].shape}")
    made = _guide(runs, outputs)
    finite = [bool(np.isfinite(row).all()) for row in made]
    kept = [index for index, good in enumerate(finite) if good]
    _move([runs[index] for index in kept], inputs["sample"][kept], made[kept])
    return [None if good else EngineError("unet: the output holds NaN or infinite values") for good in finite]


def _guide(runs: Sequence[ImageRun], outputs: Array) -> Array:
    guided = [index for index, run in enumerate(runs) if run.guided]
    if not guided:
        return outputs
    made = outputs[: len(runs)].copy()
    scales = np.array([runs[index].row.guidance_scale for index in guided], dtype=np.float32)[:, None, None, None]
    negative = outputs[len(runs) :]
    made[guided] = negative + scales * (made[guided] - negative)
    return made


def _move(runs: Sequence[ImageRun], samples: Array, outputs: Array) -> None:
    if not runs:
        return
    tables = [run.row.table for run in runs]
    steps = [run.local_step for run in runs]
    clean = predict_clean(tables, steps, samples, outputs)
    noises = [
        normal(run.row.seed, Purpose.SOLVER_STEP, run.row.latent_shape, step=run.step)
        if needs_noise(run.row.table, run.local_step)
        else None
        for run in runs
    ]
    advance(tables, steps, [run.state for run in runs], clean, noises)
    for run in runs:
        run.step += 1

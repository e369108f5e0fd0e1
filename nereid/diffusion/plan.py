"""A step in three parts: what each run needs (planned), one batch of inputs for an engine (packed), what comes of it (committed).

Planning and committing touch no engine; an engine's call knows no request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.families import Conditioning
from nereid.diffusion.keeping import Kept
from nereid.diffusion.solvers import advance, needs_noise, predict_clean
from nereid.diffusion.stacked import stacked
from nereid.diffusion.state import ImageRun
from nereid.flow.errors import EngineError
from nereid.flow.noise import Purpose, normal

Array = NDArray[np.float32]

OUT = "out_sample"


@dataclass(frozen=True, slots=True)
class EngineCall:
    """A batch for one engine: its inputs, rows first, and the outputs that are wanted of it."""

    variant: StrEnum
    inputs: Mapping[str, NDArray[Any]]
    outputs: tuple[str, ...]
    negatives: Mapping[int, int] = field(default_factory=dict)
    """Of runs, by their places in the call, the rows of their unconditional halves."""
    engine: str = ""
    """What errors call it."""

    @property
    def rows(self) -> int:
        return len(self.inputs["sample"])

    def of(self, rows: slice | NDArray[np.intp]) -> EngineCall:
        """The same with some of the rows."""
        return replace(self, inputs={name: value[rows] for name, value in self.inputs.items()})


def engine_rows(run: ImageRun) -> int:
    """Rows of the UNet that a run's next step takes: classifier-free guidance (Ho and Salimans, 2022) takes two."""
    return 2 if run.has_negative_row else 1


def pack(runs: Sequence[ImageRun]) -> EngineCall:
    """One call for runs of one variant: a row for every run, then an unconditional one for those that compute it now."""
    halved = [index for index, run in enumerate(runs) if run.has_negative_row]
    guided = [runs[index] for index in halved]
    conditions: list[Conditioning] = [run.row.positive for run in runs]
    conditions += [run.row.negative for run in guided if run.row.negative is not None]
    members = [*runs, *guided]
    inputs: dict[str, NDArray[Any]] = {
        "sample": stacked([run.state.sample for run in members]),
        "timestep": np.array([[run.row.table.timesteps[run.local_step]] for run in members], dtype=np.float32),
    }
    told = [condition.inputs for condition in conditions]
    for name in told[0]:
        inputs[name] = stacked([its[name] for its in told])
    for name in runs[0].told:
        inputs[name] = stacked([run.told[name] for run in members])
    variant = runs[0].variant
    outputs: tuple[str, ...] = (OUT,)
    halves = [(run.kept, 0) for run in runs] + [(run.kept, 1) for run in guided]
    if kept := [(its, half) for its, half in halves if its is not None]:
        gone_on_from = [its.inputs(variant, half) for its, half in kept]
        for name in gone_on_from[0]:
            inputs[name] = np.stack([row[name] for row in gone_on_from], dtype=np.float32)
        for name in kept[0][0].without(variant):
            del inputs[name]
        outputs = (OUT, *_kept_outputs(runs, variant))
    negatives = {index: row for row, index in enumerate(halved, len(runs))}
    return EngineCall(variant, inputs, outputs, negatives, runs[0].row.engine or str(variant))


def _kept_outputs(runs: Sequence[ImageRun], variant: StrEnum) -> tuple[str, ...]:
    """What anybody wants to keep."""
    wanted = [name for run in runs if (kept := _goes_on(run)) is not None for name in kept.outputs(variant, run.step)]
    return tuple(sorted(set(wanted)))


def _goes_on(run: ImageRun) -> Kept | None:
    """What a run keeps; None after its last step, when nothing goes on from it."""
    return run.kept if run.step + 1 < run.row.end else None


def commit(runs: Sequence[ImageRun], call: EngineCall, outputs: Mapping[str, Array]) -> list[EngineError | None]:
    """Guide, predict, and move every run one step on; an error for each run whose output is not finite, which stays."""
    samples, made = call.inputs["sample"], outputs[OUT]
    refused: dict[int, EngineError] = {}
    if made.shape != samples.shape:
        raise EngineError(f"{call.engine}: output of shape {made.shape} for samples of shape {samples.shape}")
    if kept := {name: outputs[name] for name in call.outputs if name != OUT}:
        refused = _keep(runs, call, kept)
    made = _guide(runs, call, made)
    for index, row in enumerate(made):
        if not np.isfinite(row).all():
            refused[index] = EngineError(f"{call.engine}: the output holds NaN or infinite values")
    going_on = [index for index in range(len(runs)) if index not in refused]
    _move([runs[index] for index in going_on], samples[going_on], made[going_on])
    return [refused.get(index) for index in range(len(runs))]


def _keep(runs: Sequence[ImageRun], call: EngineCall, outputs: Mapping[str, Array]) -> dict[int, EngineError]:
    """Errors of those whose share of these outputs cannot be kept, by their places."""
    samples, refused = call.inputs["sample"], {}
    keeping = next(run.kept for run in runs if run.kept is not None)
    for name, value in outputs.items():
        if len(value) != len(samples) or not keeping.fits(value.shape[1:], samples.shape[1:]):
            raise EngineError(f"{call.engine}: {name} of shape {value.shape} for samples of shape {samples.shape}")
    for index, run in enumerate(runs):
        if (kept := _goes_on(run)) is not None:
            rows = [index]
            if index in call.negatives and run.reused is None:
                rows.append(call.negatives[index])
            try:
                kept.take(run.step, [{name: value[row] for name, value in outputs.items()} for row in rows])
            except EngineError as error:
                refused[index] = error
    return refused


def _guide(runs: Sequence[ImageRun], call: EngineCall, outputs: Array) -> Array:
    guided = [index for index, run in enumerate(runs) if run.guided]
    if not guided:
        return outputs
    made = outputs[: len(runs)].copy()
    scales = np.array([runs[index].row.guidance_scale for index in guided], dtype=np.float32)[:, None, None, None]
    negative = stacked([_negative(runs[index], outputs[index], call.negatives.get(index), outputs) for index in guided])
    made[guided] = negative + scales * (made[guided] - negative)
    return made


def _negative(run: ImageRun, positive: Array, row: int | None, outputs: Array) -> Array:
    """A guided run's unconditional prediction: this call's row, or what an earlier step's difference makes of the other half."""
    if row is None:
        assert run.reused is not None
        assert run.reused.difference is not None
        return positive - run.reused.difference
    if run.reused is not None:
        run.reused.keep(run.step, positive - outputs[row])
    return outputs[row]


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
        if run.row.given is not None:
            run.state.sample = run.row.given.put(run.state.sample)
        if run.source is not None:
            run.state.sample = run.source.put(run.state.sample, run.row.table, run.local_step)
        for kept in (run.kept, run.reused):
            if run.done and kept is not None:
                kept.forget()

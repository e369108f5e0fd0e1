"""The denoising loop over a predict callable: one tick takes one step of every active image; knows nothing of Triton."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.requests import Conditioning, ImageRequest, ImageRow
from nereid.diffusion.solvers import SolverState, advance, needs_noise, predict_clean
from nereid.flow.errors import EngineError, RequestError
from nereid.flow.noise import Purpose, normal

Array = NDArray[np.float32]

Predict = Callable[[Mapping[str, Array]], Array]
"""The UNet: inputs `sample` (rows x C x H x W), `timestep` (rows x 1), `encoder_hidden_states` (rows x tokens x width) and the
family's extra ones, all float32; returns the model output, shaped as `sample`. Raises EngineError."""

Encode = Callable[[NDArray[np.uint8]], tuple[Array, Array]]
"""The VAE encoder: uint8 H x W x 3 to mean and standard deviation of its scaled latents, float32 C x H x W."""


@dataclass(slots=True, eq=False)
class ImageRun:
    """One image being made: where it stands."""

    row: ImageRow
    state: SolverState
    step: int
    passed_over: int = 0

    @property
    def done(self) -> bool:
        return self.step >= self.row.end

    @property
    def urgency(self) -> float:
        """Lower goes first: fewest steps left, less a step for every four ticks it was passed over, so that none starves."""
        return self.row.end - self.step - self.passed_over / 4

    @property
    def local_step(self) -> int:
        """The step as its table counts (img2img tables begin at the first step taken)."""
        return self.step - self.row.origin


@dataclass(slots=True, eq=False)
class ImageTask:
    """A request in the batcher; `answer` is told the outcome once, with None for success."""

    request: ImageRequest
    answer: Callable[[ImageTask, RequestError | None], None]
    cancelled: Callable[[], bool]
    runs: list[ImageRun] = field(default_factory=list)
    error: RequestError | None = None
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None

    @property
    def rows(self) -> int:
        return len(self.request.rows)

    @property
    def done(self) -> bool:
        return bool(self.runs) and all(run.done for run in self.runs)

    def is_cancelled(self) -> bool:
        return self.cancelled()

    def finish(self, error: RequestError | None) -> None:
        self.answer(self, error)

    @property
    def timings(self) -> tuple[float, float]:
        """Seconds spent waiting, and seconds spent denoising until now."""
        now = time.monotonic()
        started = self.started if self.started is not None else now
        return started - self.submitted, now - started


@dataclass(frozen=True, slots=True)
class Denoiser:
    """Moves tasks on by one step each; rows of one shape share the UNet's calls, whatever else they ask for."""

    predict: Predict
    encode: Encode
    max_batch_size: int
    rows_per_tick: int = 0
    """Images moved by one tick, the most urgent first; 0 for all of them."""

    def prepare(self, task: ImageTask) -> None:
        """Fill in a task's starting latents; calls the VAE encoder where there is an image, so not on the tick thread."""
        task.runs = [ImageRun(row, self._start(row), row.begin) for row in task.request.rows]

    def _start(self, row: ImageRow) -> SolverState:
        if row.latents is not None and row.memory is not None:
            return SolverState(row.latents, row.memory)
        noise = row.latents
        if noise is None:
            noise = normal(row.seed, Purpose.INITIAL_LATENTS, row.latent_shape)
        if row.image is None:
            return SolverState.start(noise * np.float32(row.table.initial_scale))
        mean, deviation = self.encode(row.image)
        latents = mean + deviation * normal(row.seed, Purpose.IMAGE_POSTERIOR, row.latent_shape)
        return SolverState.start(np.float32(row.table.signal) * latents + np.float32(row.table.noise) * noise)

    def advance(self, tasks: Sequence[ImageTask]) -> None:
        """One tick. A failed UNet call fails the tasks whose rows were in it, and no other."""
        groups: dict[object, list[tuple[ImageTask, ImageRun]]] = defaultdict(list)
        waiting = [(owner, run) for owner in tasks for run in owner.runs if not run.done]
        for task, run in self._choose(waiting):
            task.started = task.started if task.started is not None else time.monotonic()
            groups[_shape_of(run)].append((task, run))
        for group in groups.values():
            for chunk in _chunks(group, self.max_batch_size):
                try:
                    self._step([run for _, run in chunk])
                except EngineError as error:
                    for task, _ in chunk:
                        task.error = error

    def _choose(self, waiting: list[tuple[ImageTask, ImageRun]]) -> list[tuple[ImageTask, ImageRun]]:
        """Who moves in this tick. Where larger batches are no faster a row, fewer rows finish more requests in time."""
        if not 0 < self.rows_per_tick < len(waiting):
            return waiting
        ranked = sorted(waiting, key=lambda item: item[1].urgency)
        for _, run in ranked[self.rows_per_tick :]:
            run.passed_over += 1
        return ranked[: self.rows_per_tick]

    def _step(self, runs: list[ImageRun]) -> None:
        tables = [run.row.table for run in runs]
        steps = [run.local_step for run in runs]
        samples = np.stack([run.state.sample for run in runs])
        outputs = self._guided_outputs(runs, samples)
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

    def _predict(self, inputs: Mapping[str, Array]) -> Array:
        """The UNet's outputs, in more than one call where an engine takes fewer rows than one guided image has."""
        count = len(inputs["sample"])
        if count <= self.max_batch_size:
            return self.predict(inputs)
        cuts = range(0, count, self.max_batch_size)
        parts = [{name: value[i : i + self.max_batch_size] for name, value in inputs.items()} for i in cuts]
        return np.concatenate([self.predict(part) for part in parts])

    def _guided_outputs(self, runs: list[ImageRun], samples: Array) -> Array:
        """Classifier-free guidance (Ho and Salimans, 2022): unconditional rows ride in the same call, for rows that want them."""
        guided = [i for i, run in enumerate(runs) if run.row.negative is not None]
        order = [*range(len(runs)), *guided]
        conditions: list[Conditioning] = [run.row.positive for run in runs]
        conditions += [run.row.negative for run in runs if run.row.negative is not None]
        timesteps = [[run.row.table.timesteps[run.local_step]] for run in runs]
        inputs = {
            "sample": samples[order],
            "timestep": np.array([timesteps[i] for i in order], dtype=np.float32),
            "encoder_hidden_states": np.stack([condition.states for condition in conditions]),
        }
        for name in conditions[0].extra:
            inputs[name] = np.stack([condition.extra[name] for condition in conditions])
        outputs = self._predict(inputs)
        if outputs.shape != inputs["sample"].shape:
            raise EngineError(f"unet: output of shape {outputs.shape} for samples of shape {inputs['sample'].shape}")
        if not guided:
            return outputs
        made = outputs[: len(runs)].copy()
        scales = np.array([runs[i].row.guidance_scale for i in guided], dtype=np.float32)[:, None, None, None]
        negative = outputs[len(runs) :]
        made[guided] = negative + scales * (made[guided] - negative)
        return made


def _shape_of(run: ImageRun) -> object:
    return run.row.latent_shape, run.row.positive.states.shape


def _chunks(group: list[tuple[ImageTask, ImageRun]], max_batch_size: int) -> list[list[tuple[ImageTask, ImageRun]]]:
    """Split into as few calls as `max_batch_size` UNet rows allow (a guided image takes two), evenly filled."""
    cost = [1 if run.row.negative is None else 2 for _, run in group]
    target = -(-sum(cost) // -(-sum(cost) // max_batch_size))
    chunks: list[list[tuple[ImageTask, ImageRun]]] = [[]]
    filled = 0
    for item, rows in zip(group, cost, strict=True):
        if chunks[-1] and filled + rows > min(target + 1, max_batch_size):
            chunks.append([])
            filled = 0
        chunks[-1].append(item)
        filled += rows
    return chunks

"""One run of one solver as a table: every step is a linear combination of the sample, clean predictions and fresh noise.

Samples are kept variance-preserving (what the UNet is fed): x = alpha * clean + sigma * noise with alpha^2 + sigma^2 = 1.
Solvers that are usually written in other units (Euler) are converted when their table is made. Those of a rectified flow have
alpha + sigma = 1, as its networks are fed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.solvers import multistep, onestep
from nereid.diffusion.solvers.choices import check_choices
from nereid.diffusion.solvers.levels import Levels, visited_levels
from nereid.diffusion.solvers.names import SchedulerName
from nereid.diffusion.solvers.schedule import SchedulerConfig
from nereid.diffusion.solvers.scheduler_file import PredictionType, ScheduleError
from nereid.diffusion.solvers.terms import Combination, Step, Term


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SolverTable:
    """Everything a run needs, step by step; all arrays have one row a step, and of solvers that take two calls of the network in
    a step, one row a call.

    Attributes:
        timesteps: what the UNet is told, float32, fractional for Euler with Karras sigmas.
        clean: float32 n x 2, the clean prediction from (sample, model output).
        next_sample: float32 n x 7, the next sample from the terms.
        next_base: float32 n x 7, the next BASE from the terms.
        levels: float32 n x 2, how much of an image's latents and of noise is in the sample that a step takes.
        initial_scale: what standard normal noise is multiplied by to start from nothing.
        calls_per_step: rows of a step; the last step of a run has one in any case.
    """

    timesteps: NDArray[np.float32]
    clean: NDArray[np.float32]
    next_sample: NDArray[np.float32]
    next_base: NDArray[np.float32]
    levels: NDArray[np.float32]
    initial_scale: float
    calls_per_step: int = 1

    def __len__(self) -> int:
        return len(self.timesteps)

    def mixed(self, step: int, latents: NDArray[np.float32], noise: NDArray[np.float32]) -> NDArray[np.float32]:
        """An image's latents as noisy as the sample that this step takes; clean after the last one."""
        if step == len(self):
            return latents
        signal, level = self.levels[step]
        mixed: NDArray[np.float32] = signal * latents + level * noise
        return mixed


@lru_cache(maxsize=512)
def build_table(name: SchedulerName, config: SchedulerConfig, steps: int, begin: int = 0) -> SolverTable:
    """The table of a run of `steps` steps from step `begin` on (img2img starts late; solvers with memory warm up there).

    Raises ScheduleError when the scheduler cannot take that many steps.
    """
    check_choices(name, config, steps)
    if not 1 <= steps <= config.num_train_timesteps:
        raise ScheduleError(f"num_inference_steps: {steps} is not allowed; it must be 1 to {config.num_train_timesteps}")
    if not 0 <= begin < steps:
        raise ScheduleError(f"first step: {begin} is not allowed; it must be 0 to {steps - 1}")
    levels = visited_levels(name, config, steps)
    if len(levels) < steps:
        raise ScheduleError(
            f"num_inference_steps: {steps} is not allowed; with this spacing, lambda_min_clipped leaves {len(levels)} noise "
            "levels, it must be fewer"
        )
    if (np.diff(levels.sigmas) >= 0).any():
        raise ScheduleError(
            f"num_inference_steps: {steps} is not allowed; {name} would visit a noise level twice, it must be fewer"
        )
    levels = levels.since(name.first_call(begin, steps))
    made = _SOLVERS[name.family](levels, config)
    return SolverTable(
        timesteps=levels.timesteps.astype(np.float32),
        clean=_clean(levels, config.prediction_type),
        next_sample=_rows([step.sample for step in made]),
        next_base=_rows([step.base for step in made]),
        levels=np.stack([levels.alpha(levels.sigmas), levels.noise(levels.sigmas)], axis=1).astype(np.float32),
        initial_scale=levels.initial_scale,
        calls_per_step=name.calls_per_step,
    )


def _rows(combinations: list[Combination]) -> NDArray[np.float32]:
    return np.array([[row.get(term, 0.0) for term in Term] for row in combinations], dtype=np.float32)


def _clean(levels: Levels, prediction: PredictionType) -> NDArray[np.float32]:
    signal, level = levels.alpha(levels.sigmas), levels.noise(levels.sigmas)
    match prediction:
        case PredictionType.EPSILON:
            columns = (1 / signal, -level / signal)
        case PredictionType.V_PREDICTION:
            columns = (signal, -level)
        case PredictionType.SAMPLE:
            columns = (np.zeros_like(signal), np.ones_like(signal))
        case PredictionType.FLOW:
            columns = (np.ones_like(signal), -level)
    return np.stack(columns, axis=1).astype(np.float32)


_SOLVERS: dict[SchedulerName, Callable[[Levels, SchedulerConfig], list[Step]]] = {
    SchedulerName.DDPM: onestep.ddpm,
    SchedulerName.DDIM: onestep.ddim,
    SchedulerName.EULER: onestep.euler,
    SchedulerName.EULER_A: onestep.euler_ancestral,
    SchedulerName.LCM: onestep.lcm,
    SchedulerName.TCD: onestep.tcd,
    SchedulerName.DPMPP_2S: multistep.dpmpp_singlestep,
    SchedulerName.DPMPP_2M: multistep.dpmpp_2m,
    SchedulerName.DPMPP_3M: multistep.dpmpp_3m,
    SchedulerName.DPMPP_2M_SDE: multistep.dpmpp_2m_sde,
    SchedulerName.DPMPP_SDE: multistep.dpmpp_sde,
    SchedulerName.UNIPC: multistep.unipc,
}

"""Noise levels and timesteps: what a checkpoint was trained on and which of it a run of N steps visits.

Follows diffusers' schedulers in its conventions (spacing, offsets, rounding), because checkpoints are tuned to them;
the spacings are those of Lin et al. (2023), "Common Diffusion Noise Schedules and Sample Steps are Flawed", table 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.solvers.scheduler_file import PredictionType, Spacing, resolve

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """The part of a diffusers `scheduler_config.json` that all solvers share; None where the solver's own default holds."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: PredictionType = PredictionType.EPSILON
    timestep_spacing: Spacing | None = None
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    rescale_betas_zero_snr: bool = False
    final_sigmas_type: str = "zero"
    variance_type: str = "fixed_small"
    solver_type: str | None = None
    unipc_order: int = 2
    lower_order_final: bool = True
    euler_at_final: bool = False
    lambda_min_clipped: float = -math.inf
    sigma_min: float | None = None
    sigma_max: float | None = None
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    flow: bool = False
    """Rectified flow: a sample is (1 - sigma) x clean + sigma x noise, and the betas mean nothing."""
    shift: float = 1.0
    """Of a flow's noise levels: below 1 more of them are near the data."""
    eta: float | None = None
    timesteps: tuple[int, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    """These three are a request's, and in no file; `sigmas` ends with the level that the run ends at."""

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> SchedulerConfig:
        """Read a `scheduler_config.json`; raises ScheduleError naming the first setting that cannot be honoured."""
        return cls(**resolve(config, cls.__dataclass_fields__))

    def steps(self, wanted: int) -> int:
        """Of a run that is asked for `wanted` steps: as many as are given, where they are."""
        if self.timesteps is not None:
            return len(self.timesteps)
        return wanted if self.sigmas is None else len(self.sigmas) - 1


def alphas_cumprod(config: SchedulerConfig) -> Array:
    """The signal's share of the variance at every training timestep, float64 of values computed in float32."""
    steps = config.num_train_timesteps
    if config.trained_betas is not None:
        betas = np.array(config.trained_betas, dtype=np.float32)
    elif config.beta_schedule == "linear":
        betas = np.linspace(config.beta_start, config.beta_end, steps, dtype=np.float32)
    elif config.beta_schedule == "scaled_linear":
        betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, steps, dtype=np.float32) ** 2
    else:  # squaredcos_cap_v2, Nichol and Dhariwal (2021)
        bars = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - bars[1:] / bars[:-1], 0.999).astype(np.float32)
    # Rounded to float32 as training code does: near the clean end 1 - alpha has few digits, and models learned these.
    alphas = _products(np.float32(1) - betas)
    if config.rescale_betas_zero_snr:  # Lin et al. (2023), algorithm 1
        roots = np.sqrt(alphas)
        bars = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
        betas = np.float32(1) - np.append(bars[:1], bars[1:] / bars[:-1])
        alphas = _products(np.float32(1) - betas)
    return alphas.astype(np.float64)


def _products(factors: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.cumprod(factors.astype(np.float64)).astype(np.float32)


def sigmas_of(alphas: Array, *, zero_snr: bool) -> Array:
    """Noise-to-signal ratios of all training timesteps; the last is kept finite where its signal is exactly zero."""
    if zero_snr:
        alphas = alphas.copy()
        alphas[-1] = 2.0**-24
    single = alphas.astype(np.float32)
    return np.sqrt((np.float32(1) - single) / single).astype(np.float64)


def noise_levels(steps: int, shift: float, start: float = 1.0) -> Array:
    """steps + 1 noise amplitudes of a rectified flow, from `start` to 0: evenly spaced before they are `shifted`."""
    levels = shifted(np.linspace(start / (start + shift * (1 - start)), 0.0, steps + 1), shift)
    levels[0] = start  # and no last digit more
    return levels


def shifted(levels: Array, shift: float) -> Array:
    """Noise amplitudes as Esser et al. (2024), eq. 23, shift them: below 1, a shift has more of them near the data."""
    return shift * levels / (1 + (shift - 1) * levels)


def spaced_timesteps(config: SchedulerConfig, steps: int, spacing: Spacing, *, intervals: bool) -> Array:
    """`steps` descending training timesteps; `intervals` counts intervals between points (DPM-Solver, UniPC), not points."""
    train, points = config.num_train_timesteps, steps + intervals
    last = train - _clipped_timesteps(config) if intervals else train
    if spacing is Spacing.LINSPACE:
        return np.linspace(0, last - 1, points)[::-1][:steps].copy()
    if spacing is Spacing.LEADING:
        ratio = last // points
        return (np.arange(points) * ratio)[::-1][:steps].astype(np.float64) + config.steps_offset
    return np.round(np.arange(last, 0, -train / steps)[:steps]) - 1  # of 61 steps of 1000, rounding makes one more


def _clipped_timesteps(config: SchedulerConfig) -> int:
    """How many of the noisiest timesteps fall below `lambda_min_clipped` (log of signal over noise)."""
    if config.lambda_min_clipped == -math.inf:
        return 0
    alphas = alphas_cumprod(config)
    lambdas = 0.5 * np.log(alphas / (1 - alphas))
    return int(np.searchsorted(lambdas[::-1], config.lambda_min_clipped))


def karras_sigmas(low: float, high: float, steps: int, rho: float = 7.0) -> Array:
    """Karras et al. (2022), eq. 5, from high to low."""
    ramp = np.linspace(0, 1, steps)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def timesteps_of_sigmas(sigmas: Array, training_sigmas: Array) -> Array:
    """Fractional training timesteps of noise levels, interpolated in their logarithm.

    The last level is not the largest where its zero signal was made finite, so that the place looked for is the last that fits.
    """
    logs, wanted = np.log(training_sigmas), np.log(np.maximum(sigmas, 1e-10))
    fits = wanted[:, None] >= logs
    low = np.where(fits.any(axis=1), len(logs) - 1 - fits[:, ::-1].argmax(axis=1), 0).clip(max=len(logs) - 2)
    weight = np.clip((logs[low] - wanted) / (logs[low] - logs[low + 1]), 0, 1)
    return (1 - weight) * low + weight * (low + 1)

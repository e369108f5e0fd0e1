"""Noise levels and timesteps: what a checkpoint was trained on and which of it a run of N steps visits.

Follows diffusers' schedulers in its conventions (spacing, offsets, rounding), because checkpoints are tuned to them;
the spacings are those of Lin et al. (2023), "Common Diffusion Noise Schedules and Sample Steps are Flawed", table 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class ScheduleError(ValueError):
    """A scheduler setting that cannot be honoured; the message names it."""


class PredictionType(StrEnum):
    """What the UNet predicts."""

    EPSILON = "epsilon"
    V_PREDICTION = "v_prediction"
    SAMPLE = "sample"


class Spacing(StrEnum):
    LINSPACE = "linspace"
    LEADING = "leading"
    TRAILING = "trailing"


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

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> SchedulerConfig:
        """Read a `scheduler_config.json`; raises ScheduleError naming the first setting that cannot be honoured."""
        _refuse_what_the_class_would_do(config)
        for name in (
            "clip_sample",
            "thresholding",
            "use_flow_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "use_lu_lambdas",
        ):
            if config.get(name):
                raise ScheduleError(f"scheduler setting {name}: true is not supported; it must be false")
        for name, allowed in _CHOICES.items():
            if config.get(name) is not None and config[name] not in allowed:
                raise ScheduleError(
                    f"scheduler setting {name}: {config[name]!r} is not supported; it must be one of {', '.join(allowed)}"
                )
        known: dict[str, Any] = {name: config[name] for name in cls.__dataclass_fields__ if config.get(name) is not None}
        if "trained_betas" in known:
            known["trained_betas"] = tuple(float(beta) for beta in known["trained_betas"])
        if "timestep_spacing" in known:
            known["timestep_spacing"] = Spacing(known["timestep_spacing"])
        if "prediction_type" in known:
            known["prediction_type"] = PredictionType(known["prediction_type"])
        if "lambda_min_clipped" in known:
            known["lambda_min_clipped"] = float(known["lambda_min_clipped"])
        if config.get("_class_name") == "UniPCMultistepScheduler" and config.get("solver_order"):
            known["unipc_order"] = int(config["solver_order"])
        if known.get("unipc_order", 2) not in (1, 2, 3):
            raise ScheduleError(f"scheduler setting solver_order: {known['unipc_order']} is not supported; it must be 1 to 3")
        return cls(**known)


def _refuse_what_the_class_would_do(config: Mapping[str, Any]) -> None:
    """Settings that mean something only to one diffusers class, and that its solver here does not do."""
    kind = config.get("_class_name")
    sde = str(config.get("algorithm_type", "")).startswith("sde-")
    choices: dict[str, tuple[Any, ...]] = {}
    if kind in ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"):
        both = kind == "DPMSolverMultistepScheduler"
        choices["algorithm_type"] = ("dpmsolver++", "sde-dpmsolver++") if both else ("dpmsolver++",)
        choices["solver_order"] = (2, 3) if both and not sde else (2,)
    if kind == "UniPCMultistepScheduler":
        choices.update(predict_x0=(True,), disable_corrector=([], ()), solver_p=(None,))
    for name, allowed in choices.items():
        if name in config and config[name] not in allowed:
            spelled = ", ".join(map(str, allowed))
            raise ScheduleError(f"scheduler setting {name}: {config[name]!r} is not supported with {kind}; allowed: {spelled}")


_CHOICES: dict[str, tuple[str, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": tuple(PredictionType),
    "timestep_spacing": tuple(Spacing),
    "final_sigmas_type": ("zero", "sigma_min"),
    "variance_type": ("fixed_small", "fixed_large"),
    "solver_type": ("midpoint", "heun", "bh1", "bh2", "logrho"),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
}


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
    alphas = np.cumprod((np.float32(1) - betas).astype(np.float64)).astype(np.float32).astype(np.float64)
    if config.rescale_betas_zero_snr:  # Lin et al. (2023), algorithm 1
        roots = np.sqrt(alphas)
        roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
        alphas = roots**2
    return alphas


def sigmas_of(alphas: Array, *, zero_snr: bool) -> Array:
    """Noise-to-signal ratios of all training timesteps; the last is kept finite where its signal is exactly zero."""
    if zero_snr:
        alphas = alphas.copy()
        alphas[-1] = 2.0**-24
    single = alphas.astype(np.float32)
    return np.sqrt((np.float32(1) - single) / single).astype(np.float64)


def spaced_timesteps(config: SchedulerConfig, steps: int, spacing: Spacing, *, intervals: bool) -> Array:
    """`steps` descending training timesteps; `intervals` counts intervals between points (DPM-Solver, UniPC), not points."""
    train, points = config.num_train_timesteps, steps + intervals
    last = train - _clipped_timesteps(config) if intervals else train
    if spacing is Spacing.LINSPACE:
        return np.linspace(0, last - 1, points)[::-1][:steps].copy()
    if spacing is Spacing.LEADING:
        ratio = last // points
        return (np.arange(points) * ratio)[::-1][:steps].astype(np.float64) + config.steps_offset
    return np.round(np.arange(last, 0, -train / steps)) - 1


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
    """Fractional training timesteps of noise levels, interpolated in their logarithm."""
    logs = np.log(training_sigmas)
    return np.interp(np.log(np.maximum(sigmas, 1e-10)), logs, np.arange(len(logs), dtype=np.float64))

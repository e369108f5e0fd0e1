"""What a request may choose of a scheduler beside its name and steps: timesteps, sigmas, their spacing, eta; by solver."""

from __future__ import annotations

import math
from itertools import pairwise

from nereid.diffusion.solvers.names import SchedulerName
from nereid.diffusion.solvers.schedule import SchedulerConfig
from nereid.diffusion.solvers.scheduler_file import ScheduleError, Spacing

LARGEST_SIGMA = 1e4

TIMESTEPS = (
    SchedulerName.DDPM,
    SchedulerName.EULER,
    SchedulerName.DPMPP_2S,
    SchedulerName.DPMPP_2M,
    SchedulerName.DPMPP_3M,
    SchedulerName.DPMPP_2M_SDE,
    SchedulerName.LCM,
    SchedulerName.TCD,
)
"""Those to which diffusers' schedulers take timesteps."""
SIGMAS = (SchedulerName.EULER,)
FLOW_SIGMAS = (SchedulerName.EULER, SchedulerName.LCM)
"""Of a rectified flow."""
ETA = (SchedulerName.DDIM, SchedulerName.DPMPP_SDE, SchedulerName.DPMPP_SDE_KARRAS, SchedulerName.TCD)
SPACING = tuple(
    name
    for name in SchedulerName
    if not name.karras and name not in (SchedulerName.DPMPP_2S, SchedulerName.LCM, SchedulerName.TCD)
)


FLOW = (
    SchedulerName.EULER,
    SchedulerName.DPMPP_2S,
    SchedulerName.DPMPP_2M,
    SchedulerName.DPMPP_3M,
    SchedulerName.DPMPP_2M_SDE,
    SchedulerName.LCM,
    SchedulerName.UNIPC,
)
"""Solvers of a rectified flow: Euler and LCM are flow-match Euler and LCM, the others those of its ratios of noise to signal."""


def check_choices(name: SchedulerName, config: SchedulerConfig, steps: int) -> None:
    """Raises ScheduleError, which begins with the field, for what the solver does not take."""
    if config.flow:
        _check_flow(name, config)
    if config.timesteps is not None:
        _require("timesteps", name, TIMESTEPS)
        _check_timesteps(config.timesteps, config.num_train_timesteps)
    if config.sigmas is not None:
        if config.timesteps is not None:
            raise ScheduleError("sigmas: they are not allowed with timesteps; one of the two must be left out")
        _require("sigmas", name, FLOW_SIGMAS if config.flow else SIGMAS)
        _check_sigmas(config.sigmas)
    if config.eta is not None:
        _require("eta", name, ETA)
    if config.steps(steps) != steps:
        given = "timesteps" if config.sigmas is None else "sigmas"
        raise ScheduleError(f"num_inference_steps: {steps} is not allowed with {given} of {config.steps(steps)} steps")


def _check_flow(name: SchedulerName, config: SchedulerConfig) -> None:
    """What a rectified flow does not take of what others do."""
    if name not in FLOW:
        raise ScheduleError(f"scheduler: {name} is not allowed for a rectified flow; it must be one of {', '.join(FLOW)}")
    if config.timesteps is not None:
        raise ScheduleError("timesteps: they have no meaning for a rectified flow; sigmas do")
    if config.timestep_spacing is Spacing.LEADING:
        raise ScheduleError("timestep_spacing: leading is not allowed for a rectified flow; it must be linspace or trailing")
    if config.sigmas is not None and not config.sigmas[0] <= 1:
        raise ScheduleError(f"sigmas: {config.sigmas[0]:g} is not allowed; a rectified flow's are 1 at most")


def require_spacing(name: SchedulerName, config: SchedulerConfig) -> None:
    """Raises ScheduleError for a solver whose timesteps have a spacing of their own; a rectified flow's have the flow's."""
    _require("timestep_spacing", name, FLOW if config.flow else SPACING)


def _require(field: str, name: SchedulerName, allowed: tuple[SchedulerName, ...]) -> None:
    if name not in allowed:
        raise ScheduleError(f"{field}: it has no meaning for scheduler {name}; these take it: {', '.join(allowed)}")


def _check_timesteps(timesteps: tuple[int, ...], train: int) -> None:
    falls = all(before > after for before, after in pairwise(timesteps))
    if not timesteps or not falls or not (timesteps[-1] >= 0 and timesteps[0] < train):
        raise ScheduleError(
            f"timesteps: {list(timesteps)} is not allowed; they must fall, from {train - 1} at most to 0 at least"
        )


def _check_sigmas(sigmas: tuple[float, ...]) -> None:
    falls = all(before > after for before, after in pairwise(sigmas))
    bounded = all(math.isfinite(sigma) and 0 <= sigma <= LARGEST_SIGMA for sigma in sigmas)
    if len(sigmas) < 2 or not falls or not bounded:
        raise ScheduleError(
            f"sigmas: {list(sigmas)} is not allowed; they must be two at least, and fall from {LARGEST_SIGMA:g} at most to where "
            "the run ends, usually 0"
        )

"""One run, by a diffusers scheduler and by a table of ours: the same stand-in UNet, the same noise."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any
from unittest.mock import patch

import diffusers
import numpy as np
import torch

from nereid.diffusion.inpainting import Source
from nereid.diffusion.solvers import (
    SchedulerConfig,
    SchedulerName,
    SolverState,
    advance,
    build_table,
    needs_noise,
    predict_clean,
)

SHAPE = (1, 4, 6, 5)


def model(sample: np.ndarray, timestep: float) -> np.ndarray:
    """A stand-in UNet: smooth, nonlinear, different at every timestep, the same for both sides."""
    return np.sin(0.8 * sample + timestep / 300).astype(np.float32)


def noise_at(step: int) -> np.ndarray:
    return np.random.default_rng(step + 1).standard_normal(SHAPE).astype(np.float32)


@cache
def scheduler_class(name: str) -> Any:
    """Of diffusers. DPMSolverSDEScheduler's module wants torchsde, which draws its noise; here `run_diffusers` gives it that."""
    if name != "DPMSolverSDEScheduler":
        return getattr(diffusers, name)
    absent = importlib.util.find_spec("torchsde") is None
    if absent:
        sys.modules["torchsde"] = ModuleType("torchsde")
    try:
        return importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde").DPMSolverSDEScheduler
    finally:
        if absent:
            del sys.modules["torchsde"]


class BrownianPath:
    """What DPMSolverSDEScheduler takes its noise of, instead of torchsde's tree: W over an interval by its length's root.

    Increments over intervals that do not overlap are independent, so that each call of the network draws once: the first one in a
    step as far as the middle, the second one from there to the end.
    """

    def __init__(self, *_: Any) -> None:
        self.call = 0
        self._to_middle: tuple[float, torch.Tensor] | None = None

    def __call__(self, start: float, end: float) -> torch.Tensor:
        length, drawn = float(abs(start - end)), torch.from_numpy(noise_at(self.call))
        if self._to_middle is None:
            self._to_middle = length, drawn
            return drawn
        (half, before), self._to_middle = self._to_middle, None
        return (before * half**0.5 + drawn * (length - half) ** 0.5) / length**0.5


def run_diffusers(
    scheduler: Any,
    steps: int,
    begin: int = 0,
    image: np.ndarray | None = None,
    eta: float | None = None,
    mask: np.ndarray | None = None,
    **given: list[int] | list[float],
) -> np.ndarray:
    """`given` are timesteps or sigmas, instead of a number of steps; `begin` is the first step that is taken.

    Where `mask` is false, the image stays.
    """
    scheduler.set_timesteps(**given) if given else scheduler.set_timesteps(steps)
    stepping = {} if eta is None else {"eta": eta}
    begin *= scheduler.order  # as pipelines have it
    scheduler.set_begin_index(begin) if hasattr(scheduler, "set_begin_index") else None
    timesteps = scheduler.timesteps[begin:]
    noise = torch.from_numpy(noise_at(-1))
    sample = noise * scheduler.init_noise_sigma
    if image is not None:
        sample = scheduler.add_noise(torch.from_numpy(image), noise, timesteps[:1])
    drawn: Iterator[int] = iter(range(10_000))
    step_now = {"i": 0}
    if hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = BrownianPath()

    def drawing(shape: Any, **_: Any) -> Any:
        next(drawn)
        return torch.from_numpy(noise_at(step_now["i"]))

    with patch(f"{type(scheduler).__module__}.randn_tensor", drawing, create=True):
        for i, timestep in enumerate(timesteps):
            step_now["i"] = begin + i
            if isinstance(path := getattr(scheduler, "noise_sampler", None), BrownianPath):
                path.call = begin + i
            scaled = scheduler.scale_model_input(sample, timestep)
            output = torch.from_numpy(model(scaled.numpy(), float(timestep)))
            sample = scheduler.step(output, timestep, sample, **stepping, return_dict=False)[0]
            if image is not None and mask is not None:
                stays = torch.from_numpy(image)
                if i < len(timesteps) - 1:
                    noisy = scheduler.add_noise(stays, noise, timesteps[i + 1 : i + 2])
                    middle = getattr(scheduler, "mid_point_sigma", None)  # where add_noise does not know that the sample is
                    stays = noisy if middle is None else stays + noise * middle
                sample = torch.where(torch.from_numpy(mask), sample, stays)
    return sample.numpy()


def run_ours(
    name: SchedulerName,
    config: dict[str, Any],
    steps: int,
    begin: int = 0,
    image: np.ndarray | None = None,
    eta: float | None = None,
    mask: np.ndarray | None = None,
    **given: list[int] | list[float],
) -> np.ndarray:
    chosen: dict[str, Any] = {"eta": eta, **{key: tuple(values) for key, values in given.items()}}
    table = build_table(name, replace(SchedulerConfig.from_diffusers(config), **chosen), steps, begin)
    start = noise_at(-1)[0] * np.float32(table.initial_scale)
    if image is not None:
        start = table.mixed(0, image[0], noise_at(-1)[0])
    state = SolverState.start(start)
    first = name.first_call(begin, steps)
    for step in range(len(table)):
        output = model(state.sample[None], float(table.timesteps[step]))
        clean = predict_clean([table], [step], state.sample[None], output)
        noise = noise_at(first + step)[0] if needs_noise(table, step) else None
        advance([table], [step], [state], clean, [noise])
        if image is not None and mask is not None:
            state.sample = Source(mask, image[0], noise_at(-1)[0]).put(state.sample, table, step + 1)
    return state.sample[None]

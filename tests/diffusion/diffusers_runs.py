"""One run, by a diffusers scheduler and by a table of ours: the same stand-in UNet, the same noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

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


def run_diffusers(
    scheduler: Any,
    steps: int,
    begin: int = 0,
    image: np.ndarray | None = None,
    eta: float | None = None,
    mask: np.ndarray | None = None,
    **given: list[int] | list[float],
) -> np.ndarray:
    """`given` are timesteps or sigmas, instead of a number of steps; where `mask` is false, the image stays."""
    scheduler.set_timesteps(**given) if given else scheduler.set_timesteps(steps)
    stepping = {} if eta is None else {"eta": eta}
    scheduler.set_begin_index(begin) if hasattr(scheduler, "set_begin_index") else None
    timesteps = scheduler.timesteps[begin:]
    noise = torch.from_numpy(noise_at(-1))
    sample = noise * scheduler.init_noise_sigma
    if image is not None:
        sample = scheduler.add_noise(torch.from_numpy(image), noise, timesteps[:1])
    drawn: Iterator[int] = iter(range(10_000))
    step_now = {"i": 0}

    def drawing(shape: Any, **_: Any) -> Any:
        next(drawn)
        return torch.from_numpy(noise_at(step_now["i"]))

    with patch(f"{type(scheduler).__module__}.randn_tensor", drawing, create=True):
        for i, timestep in enumerate(timesteps):
            step_now["i"] = begin + i
            scaled = scheduler.scale_model_input(sample, timestep)
            output = torch.from_numpy(model(scaled.numpy(), float(timestep)))
            sample = scheduler.step(output, timestep, sample, **stepping, return_dict=False)[0]
            if image is not None and mask is not None:
                stays = torch.from_numpy(image)
                if i < len(timesteps) - 1:
                    stays = scheduler.add_noise(stays, noise, timesteps[i + 1 : i + 2])
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
    for step in range(len(table)):
        output = model(state.sample[None], float(table.timesteps[step]))
        clean = predict_clean([table], [step], state.sample[None], output)
        noise = noise_at(begin + step)[0] if needs_noise(table, step) else None
        advance([table], [step], [state], clean, [noise])
        if image is not None and mask is not None:
            state.sample = Source(mask, image[0], noise_at(-1)[0]).put(state.sample, table, step + 1)
    return state.sample[None]

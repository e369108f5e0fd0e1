"""Solvers without memory: DDIM, Euler, DDPM, ancestral Euler, LCM, TCD."""

from __future__ import annotations

import numpy as np

from nereid.diffusion.solvers.levels import Levels
from nereid.diffusion.solvers.schedule import SchedulerConfig, alphas_cumprod
from nereid.diffusion.solvers.terms import Step, Term


def first_order(levels: Levels, start: float, end: float) -> tuple[float, float]:
    """(sample, clean) weights of the exact step between two noise-to-signal ratios for a constant clean prediction.

    DDIM (Song et al., 2021), Euler (Karras et al., 2022; of a flow too) and DPM++ of order 1 (Lu et al., 2022) are all this step.
    """
    ends = np.array([start, end])
    alphas, sigmas = levels.alpha(ends), levels.noise(ends)
    keep = sigmas[1] / sigmas[0]
    return float(keep), float(alphas[1] - keep * alphas[0])


def deterministic(levels: Levels, config: SchedulerConfig) -> list[Step]:
    steps = []
    for start, end in zip(levels.sigmas, levels.targets, strict=True):
        keep, clean = first_order(levels, start, end)
        steps.append(Step({Term.SAMPLE: keep, Term.CLEAN: clean}))
    return steps


def ddim(levels: Levels, config: SchedulerConfig) -> list[Step]:
    """Song et al. (2021), eq. 12 and 16: `eta` is the share of DDPM's fresh noise."""
    if not config.eta:
        return deterministic(levels, config)
    steps = []
    for start, end in zip(levels.sigmas, levels.targets, strict=True):
        now, after = 1 / (start**2 + 1), 1 / (end**2 + 1)
        fresh = config.eta * np.sqrt((1 - after) / (1 - now) * (1 - now / after))
        keep = np.sqrt(max(1 - after - fresh**2, 0.0) / (1 - now))
        steps.append(Step({Term.SAMPLE: keep, Term.CLEAN: np.sqrt(after) - keep * np.sqrt(now), Term.NOISE: fresh}))
    return steps


def euler(levels: Levels, config: SchedulerConfig) -> list[Step]:
    """The same steps; a run that stops before zero noise leaves its last sample in Euler's own units, signal 1."""
    steps = deterministic(levels, config)
    if levels.flow:
        return steps
    scale = 1 / float(levels.alpha(levels.targets[-1:])[0])
    steps[-1] = Step({term: scale * weight for term, weight in steps[-1].sample.items()})
    return steps


def ddpm(levels: Levels, config: SchedulerConfig) -> list[Step]:
    """Ho et al. (2020), eq. 7, between the points visited."""
    steps = []
    for timestep, start, end in zip(levels.timesteps, levels.sigmas, levels.targets, strict=True):
        now, after = 1 / (start**2 + 1), 1 / (end**2 + 1)
        ratio = now / after
        terms = {
            Term.SAMPLE: np.sqrt(ratio) * (1 - after) / (1 - now),
            Term.CLEAN: np.sqrt(after) * (1 - ratio) / (1 - now),
        }
        if timestep > 0:
            shrink = 1.0 if config.variance_type == "fixed_large" else (1 - after) / (1 - now)
            terms[Term.NOISE] = np.sqrt(max(shrink * (1 - ratio), 1e-20))
        steps.append(Step(terms))
    return steps


def ancestral(levels: Levels, start: float, end: float, eta: float = 1.0) -> tuple[float, float, float]:
    """(sample, clean, noise) weights of the ancestral step in noise-to-signal units, rescaled to keep the variance.

    In the notation of Karras et al. (2022): down below the level aimed at, and up to it by fresh noise, `eta` times as much.
    """
    up = min(end, eta * np.sqrt(end**2 * (start**2 - end**2) / start**2))
    down = np.sqrt(max(end**2 - up**2, 0.0))
    scales = levels.alpha(np.array([start, end]))
    return float(scales[1] * down / start / scales[0]), float(scales[1] * (1 - down / start)), float(scales[1] * up)


def euler_ancestral(levels: Levels, config: SchedulerConfig) -> list[Step]:
    steps = []
    for start, end in zip(levels.sigmas, levels.targets, strict=True):
        keep, clean, fresh = ancestral(levels, start, end)
        steps.append(Step({Term.SAMPLE: keep, Term.CLEAN: clean, Term.NOISE: fresh}))
    return steps


def lcm(levels: Levels, config: SchedulerConfig) -> list[Step]:
    """Luo et al. (2023): the boundary condition, then noise again up to the next level. A flow has no boundary condition: this is
    diffusers' FlowMatchLCM, and its FlowMatchEuler with `stochastic_sampling`."""
    signals, noises = levels.alpha(levels.targets), levels.noise(levels.targets)
    if levels.flow:
        return [Step({Term.CLEAN: signal, Term.NOISE: level}) for signal, level in zip(signals, noises, strict=True)]
    steps = []
    for timestep, signal, level in zip(levels.timesteps, signals, noises, strict=True):
        scaled = timestep * config.timestep_scaling
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / np.sqrt(scaled**2 + 0.25)
        steps.append(Step({Term.SAMPLE: signal * skip, Term.CLEAN: signal * out, Term.NOISE: level}))
    return steps


TCD_ETA = 0.3
"""Of trajectory consistency distillation where a request says nothing, as diffusers has it."""


def tcd(levels: Levels, config: SchedulerConfig) -> list[Step]:
    """Zheng et al. (2024): down to a level below the next, then noise again up to it; `eta` says how far below (their gamma)."""
    alphas = alphas_cumprod(config)
    eta = TCD_ETA if config.eta is None else config.eta
    following = np.append(levels.timesteps[1:], 0).astype(int)
    # A request's eta comes as float32, and diffusers multiplies in it: no last digit may cost a timestep.
    lower = np.floor(np.float32(1 - round(eta, 6)) * following.astype(np.float32)).astype(int)
    steps = []
    for number, (start, after, below) in enumerate(zip(levels.sigmas, alphas[following], alphas[lower], strict=True), 1):
        now = 1 / (start**2 + 1)
        keep = np.sqrt((1 - below) / (1 - now))
        terms = {Term.SAMPLE: keep, Term.CLEAN: np.sqrt(below) - keep * np.sqrt(now)}
        if eta > 0 and number < len(levels):
            terms = {term: np.sqrt(after / below) * weight for term, weight in terms.items()}
            terms[Term.NOISE] = np.sqrt(1 - after / below)
        steps.append(Step(terms))
    return steps

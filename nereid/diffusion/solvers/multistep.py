"""Solvers with memory: DPM-Solver++ (Lu et al., 2022, arXiv 2211.01095) and UniPC (Zhao et al., 2023, arXiv 2302.04867).

Notation of the papers: lambda is half the log signal-to-noise ratio, h a step in it, r a ratio of steps.
"""

from __future__ import annotations

import math

import numpy as np

from nereid.diffusion.solvers.levels import Levels
from nereid.diffusion.solvers.onestep import ancestral, first_order
from nereid.diffusion.solvers.schedule import SchedulerConfig
from nereid.diffusion.solvers.terms import HISTORY, Combination, Step, Term

_NOWHERE = 1e-6
"""A step in lambda that is rounding alone: Karras levels end where `final_sigmas_type: sigma_min` would go."""


def _lambda(sigma: float) -> float:
    return math.inf if sigma == 0 else -math.log(sigma)


def _first_order_step(levels: Levels, start: float, end: float) -> Combination:
    keep, clean = first_order(levels, start, end)
    return {Term.SAMPLE: keep, Term.CLEAN: clean}


def _order(i: int, levels: Levels, config: SchedulerConfig, highest: int) -> int:
    """Orders rise from 1 as history grows, and fall again at the end of short runs, which keeps them stable."""
    count = len(levels)
    short = config.lower_order_final and levels.skipped + count < 15
    if i == count - 1 and (config.euler_at_final or short or config.final_sigmas_type == "zero"):
        return 1
    if i == count - 2 and short:
        return min(2, i + 1, highest)
    return min(i + 1, highest)


def dpmpp_2m(levels: Levels, config: SchedulerConfig) -> list[Step]:
    return [Step(_dpmpp(i, _order(i, levels, config, 2), levels, config)) for i in range(len(levels))]


def dpmpp_3m(levels: Levels, config: SchedulerConfig) -> list[Step]:
    return [Step(_dpmpp(i, _order(i, levels, config, 3), levels, config)) for i in range(len(levels))]


def _dpmpp(i: int, order: int, levels: Levels, config: SchedulerConfig) -> Combination:
    start, end = levels.sigmas[i], levels.targets[i]
    if order == 1:
        return _first_order_step(levels, start, end)
    signal, level = levels.amplitudes(end)
    h = _lambda(end) - _lambda(start)
    if abs(h) < _NOWHERE:
        return {Term.SAMPLE: 1.0}
    decay = math.expm1(-h)
    r0 = (_lambda(start) - _lambda(levels.sigmas[i - 1])) / h
    keep = level / levels.amplitudes(start)[1]
    if order == 2:
        slope = signal * (decay / h + 1) if config.solver_type == "heun" else -0.5 * signal * decay
        return {
            Term.SAMPLE: keep,
            Term.CLEAN: -signal * decay + slope / r0,
            Term.CLEAN_1: -slope / r0,
        }
    r1 = (_lambda(levels.sigmas[i - 1]) - _lambda(levels.sigmas[i - 2])) / h
    slope = signal * (decay / h + 1)
    bend = -signal * ((decay + h) / h**2 - 0.5)
    # First differences d0 = (m0 - m1) / r0 and d1 = (m1 - m2) / r1; slope takes d0 + r0 / (r0 + r1) (d0 - d1).
    on_d0 = slope * (1 + r0 / (r0 + r1)) + bend / (r0 + r1)
    on_d1 = -slope * r0 / (r0 + r1) - bend / (r0 + r1)
    return {
        Term.SAMPLE: keep,
        Term.CLEAN: -signal * decay + on_d0 / r0,
        Term.CLEAN_1: -on_d0 / r0 + on_d1 / r1,
        Term.CLEAN_2: -on_d1 / r1,
    }


def dpmpp_2m_sde(levels: Levels, config: SchedulerConfig) -> list[Step]:
    """SDE-DPM-Solver++ of order 2."""
    steps = []
    for i, (start, end) in enumerate(zip(levels.sigmas, levels.targets, strict=True)):
        signal, level = levels.amplitudes(end)
        h = _lambda(end) - _lambda(start)
        if abs(h) < _NOWHERE:
            steps.append(Step({Term.SAMPLE: 1.0}))
            continue
        rise = -math.expm1(-2 * h)
        terms = {
            Term.SAMPLE: level / levels.amplitudes(start)[1] * math.exp(-h),
            Term.CLEAN: signal * rise,
            Term.NOISE: level * math.sqrt(rise),
        }
        if _order(i, levels, config, 2) == 2:
            r0 = (_lambda(start) - _lambda(levels.sigmas[i - 1])) / h
            slope = signal * (1 - rise / (2 * h)) if config.solver_type == "heun" else 0.5 * signal * rise
            terms[Term.CLEAN] += slope / r0
            terms[Term.CLEAN_1] = -slope / r0
        steps.append(Step(terms))
    return steps


def dpmpp_singlestep(levels: Levels, config: SchedulerConfig) -> list[Step]:
    """Singlestep DPM-Solver++ of order 2: pairs of UNet calls, the second going over the whole interval from BASE."""
    count = len(levels)
    lower = config.lower_order_final or levels.targets[-1] == 0  # a last step to zero noise is infinitely long
    pairs = (count - lower) // 2
    orders = [1, 2] * pairs + [1] * (count - 2 * pairs)
    steps = []
    for i, order in enumerate(orders):
        start, end = levels.sigmas[i], levels.targets[i]
        if order == 1:
            steps.append(Step(_first_order_step(levels, start, end), base={Term.SAMPLE: 1.0}))
            continue
        earlier = levels.sigmas[i - 1]
        signal, level = levels.amplitudes(end)
        h = _lambda(end) - _lambda(earlier)
        r0 = (_lambda(start) - _lambda(earlier)) / h
        decay = math.expm1(-h)
        slope = signal * (decay / h + 1) if config.solver_type == "heun" else -0.5 * signal * decay
        sample = {
            Term.BASE: level / levels.amplitudes(earlier)[1],
            Term.CLEAN: slope / r0,
            Term.CLEAN_1: -signal * decay - slope / r0,
        }
        steps.append(Step(sample, base={Term.BASE: 1.0}))
    return steps


def dpmpp_sde(levels: Levels, config: SchedulerConfig) -> list[Step]:
    """The SDE solver of k-diffusion's `sample_dpmpp_sde`: each step is an ancestral one by what is predicted halfway.

    Its two calls take noise of one Brownian path along the noise level: what the first half has drawn is a part of what the whole
    step takes. BASE is the whole step but for what the second call adds: the prediction there, and the rest of the noise.
    """
    eta = 1.0 if config.eta is None else config.eta
    steps: list[Step] = []
    for i in range(0, len(levels), 2):
        start, middle = levels.sigmas[i], levels.targets[i]
        keep, clean, fresh = ancestral(levels, start, middle, eta)
        first = {Term.SAMPLE: keep, Term.CLEAN: clean, Term.NOISE: fresh}
        if i + 1 == len(levels):  # to no noise
            steps.append(Step(first))
            break
        end = levels.targets[i + 1]
        keep, clean, fresh = ancestral(levels, start, end, eta)
        drawn = (start - middle) / (start - end)
        steps.append(Step(first, base={Term.SAMPLE: keep, Term.NOISE: fresh * math.sqrt(drawn)}))
        steps.append(Step({Term.BASE: 1.0, Term.CLEAN: clean, Term.NOISE: fresh * math.sqrt(1 - drawn)}))
    return steps


def unipc(levels: Levels, config: SchedulerConfig) -> list[Step]:
    """Corrector, then predictor; BASE is the last corrected sample."""
    count, highest = len(levels), config.unipc_order
    steps: list[Step] = []
    last_order = 0
    for i in range(count):
        corrected: Combination = {Term.SAMPLE: 1.0}
        if i > 0:
            corrected = _unipc_corrector(i, last_order, levels, config)
        order = min(highest, i + 1)
        if config.lower_order_final or levels.targets[i] == 0:  # a last step to zero noise is infinitely long
            order = min(order, count - i)
        predicted = _unipc_predictor(i, order, levels, config)
        keep = predicted.pop(Term.SAMPLE)
        for term, weight in corrected.items():
            predicted[term] = predicted.get(term, 0.0) + keep * weight
        steps.append(Step(predicted, base=corrected))
        last_order = order
    return steps


def _unipc_weights(h: float, ratios: list[float], config: SchedulerConfig) -> tuple[list[list[float]], list[float], float]:
    """The matrix R, the vector b and B(h) of the paper, for the noise-free prediction (its sign of h reversed)."""
    hh = -h
    b_h = hh if config.solver_type == "bh1" else math.expm1(hh)
    phi = math.expm1(hh) / hh - 1
    matrix, vector, factorial = [], [], 1
    for k in range(1, len(ratios) + 1):
        matrix.append([ratio ** (k - 1) for ratio in ratios])
        vector.append(phi * factorial / b_h)
        factorial *= k + 1
        phi = phi / hh - 1 / factorial
    return matrix, vector, b_h


def _unipc_predictor(i: int, order: int, levels: Levels, config: SchedulerConfig) -> Combination:
    start, end = levels.sigmas[i], levels.targets[i]
    terms = _first_order_step(levels, start, end)
    if order == 1:
        return terms
    signal = levels.amplitudes(end)[0]
    h = _lambda(end) - _lambda(start)
    ratios = [(_lambda(levels.sigmas[i - k]) - _lambda(start)) / h for k in range(1, order)]
    matrix, vector, b_h = _unipc_weights(h, [*ratios, 1.0], config)
    # the paper's simplification for order 2
    weights = [0.5] if order == 2 else list(np.linalg.solve(np.array(matrix)[:-1, :-1], np.array(vector)[:-1]))
    for term, ratio, weight in zip(HISTORY, ratios, weights, strict=False):
        terms[term] = -signal * b_h * weight / ratio
        terms[Term.CLEAN] += signal * b_h * weight / ratio
    return terms


def _unipc_corrector(i: int, order: int, levels: Levels, config: SchedulerConfig) -> Combination:
    """Where the step that led here should have gone, now that the prediction at its end is known."""
    start, end = levels.sigmas[i - 1], levels.sigmas[i]
    keep, clean = first_order(levels, start, end)
    terms = {Term.BASE: keep, Term.CLEAN: 0.0, Term.CLEAN_1: clean}
    signal = levels.amplitudes(end)[0]
    h = _lambda(end) - _lambda(start)
    ratios = [(_lambda(levels.sigmas[i - 1 - k]) - _lambda(start)) / h for k in range(1, order)]
    matrix, vector, b_h = _unipc_weights(h, [*ratios, 1.0], config)
    weights = [0.5] if order == 1 else list(np.linalg.solve(np.array(matrix), np.array(vector)))
    for term, ratio, weight in zip(HISTORY[1:], ratios, weights[:-1], strict=False):
        terms[term] = -signal * b_h * weight / ratio
        terms[Term.CLEAN_1] += signal * b_h * weight / ratio
    terms[Term.CLEAN] = -signal * b_h * weights[-1]
    terms[Term.CLEAN_1] += signal * b_h * weights[-1]
    return terms

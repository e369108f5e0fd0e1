"""Plans of what may be kept between steps, by the threshold that makes them, and the quickest one that is good enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nereid.diffusion.feature_cache import CachePlan, greedy_plan

Curves = tuple[tuple[float, ...], ...]
"""`curves[k - 1][s]`: the error at step s + k of what was kept at step s."""


def plans_of(curves: Curves, steps: int) -> dict[float, CachePlan]:
    """By rising thresholds, the smallest that make them, each of fewer whole steps; the first reuses nothing."""
    plans = {0.0: greedy_plan(curves, 0.0, 0, steps)}
    fewest = len(plans[0.0].full or ())
    for threshold in sorted({value for curve in curves for value in curve if 0 < value <= 1}):
        plan = greedy_plan(curves, threshold, 0, steps)
        if (count := len(plan.full or ())) < fewest:
            plans[threshold], fewest = plan, count
    return plans


def quickest(thresholds: Sequence[float], good: Callable[[float], bool]) -> float:
    """The largest of rising thresholds that is good, where those below a good one are taken for good; the first is."""
    low, high = 0, len(thresholds)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(thresholds[middle]) else (low, middle)
    return thresholds[low]

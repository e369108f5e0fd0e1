"""Brings runs that cache features into phase: a start is delayed until its mates come to their next whole step.

Otherwise every tick would pay for a call of either engine. Only starts are delayed, for no longer than a whole step takes, and
no run's plan is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nereid.diffusion.feature_cache import Variant
from nereid.diffusion.state import ImageRun

StepCost = Callable[[ImageRun, Variant], float]
"""Seconds of a call for one run alone; NaN where nothing is known."""


def held_for_phase(runs: Sequence[ImageRun], cost: StepCost, now: float) -> set[ImageRun]:
    """Those of the runs in flight whose start is worth waiting with at `now`; notes since when each could start."""
    starting = [run for run in runs if run.kept is not None and not run.busy and run.step == run.row.begin and not run.deaths]
    return {run for run in starting if _waits(run, runs, cost, now)}


def _waits(run: ImageRun, runs: Sequence[ImageRun], cost: StepCost, now: float) -> bool:
    bound, shallow = cost(run, Variant.FULL), cost(run, Variant.SHALLOW)
    run.ready_since = now if run.ready_since is None else run.ready_since
    if not now - run.ready_since <= bound:
        return False
    mates = (mate for mate in runs if mate.shape == run.shape and mate.variant is Variant.SHALLOW and not mate.deaths)
    return any(mate.kept is not None and mate.kept.steps_to_full(mate.step) * shallow <= bound for mate in mates)

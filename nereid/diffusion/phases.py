"""Brings runs that cache features into phase: a start is delayed until its mates come to their next whole step.

Otherwise every tick would pay for a call of either engine. Only starts are delayed, for no longer than a whole step takes, and
no run's plan is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum

from nereid.diffusion.state import ImageRun

StepCost = Callable[[ImageRun, StrEnum], float]
"""Seconds of a call for one run alone; NaN where nothing is known."""


def waits_for_phase(run: ImageRun, mates: Sequence[ImageRun], cost: StepCost, now: float) -> bool:
    """Whether the start of a run that caches features is worth waiting with at `now`; notes since when it could start."""
    bound = cost(run, run.variant)  # its first step is whole
    run.ready_since = now if run.ready_since is None else run.ready_since
    if run.deaths or not now - run.ready_since <= bound:
        return False
    return any(
        mate.kept.steps_to_full(mate.step, mate.row.end) * cost(run, mate.variant) <= bound
        for mate in mates
        if mate.kept is not None and mate.shape == run.shape and mate.variant is not mate.kept.whole and not mate.deaths
    )

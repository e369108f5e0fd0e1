"""When a request should be done, and from when on its goal is at stake or lost while it waits: pure, over what calls cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from nereid.diffusion.run_lanes import cost_key
from nereid.diffusion.state import ImageRun
from nereid.engines.costs import StepCosts
from nereid.engines.lanes import in_company


@dataclass(frozen=True, slots=True)
class Goal:
    """On the monotonic clock; infinite where nothing is to be met, or where nothing is known."""

    due: float = math.inf
    start_by: float = math.inf
    """From when on the goal is at stake while the request waits."""
    late_from: float = math.inf
    """From when on it is lost."""


def goal_of(
    calls: Iterable[tuple[ImageRun, float]],
    most: int,
    costs: StepCosts,
    submitted: float,
    deadline_seconds: float | None,
    latency_target: float,
) -> Goal:
    """`calls` are runs that need calls of their own, with the rows of each on average; a call has at most `most` rows, which
    others share.

    Without `deadline_seconds`, it should take no more than `latency_target` times as long as alone.
    """
    lone = company = 0.0
    for run, rows in calls:
        for variant, steps in run.steps_left.items():
            if steps:
                key = cost_key(variant, run.shape)
                alone, together = -(-rows // most) * costs.predict(key, min(rows, most)), costs.predict(key, most)
                lone, company = lone + steps * alone, company + steps * in_company(alone, together)
    if deadline_seconds is None:
        return Goal() if math.isnan(lone) else Goal(submitted + latency_target * lone)
    due = submitted + deadline_seconds
    return Goal(due, due, due) if math.isnan(lone) else Goal(due, due - company - lone, due - company)

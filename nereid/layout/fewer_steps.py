"""Which runs take fewer steps, so that their request meets its goal: pure policy over costs and clocks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from nereid.diffusion.state import ImageRun

ANSWER_SECONDS = 0.005
"""What is left to do after the last step: repair, checks, the answer's way."""
_SEEN = 2
"""Steps of a run after which its own pace tells more than a guess."""


def round_seconds(runs: Sequence[ImageRun], most: int, seconds: Callable[[ImageRun, int], float]) -> float:
    """What a step of everybody takes: all runs that are not done, in calls of at most `most` rows; NaN where that is not known.

    `seconds` says what a call of a run's shape with so many rows costs.
    """
    going = [run for run in runs if not run.done]
    counts = Counter(run.shape for run in going)
    first = {run.shape: run for run in reversed(going)}
    return sum(-(-count // most) * seconds(first[shape], min(count, most)) for shape, count in counts.items())


def steps_that_fit(run: ImageRun, everybody: float, started: float | None, due: float, now: float) -> int:
    """How many of the steps that are left can be taken until `due`, at least one; all where nothing is known.

    `everybody` is `round_seconds`; from its second step on a run goes by its own pace since `started`.
    """
    done, left = run.step - run.row.begin, run.row.end - run.step
    step = (now - started) / done if started is not None and done >= _SEEN else everybody
    if math.isnan(step) or math.isinf(due) or step <= 0:
        return left
    return max(1, min(left, math.floor((due - ANSWER_SECONDS - now) / step)))

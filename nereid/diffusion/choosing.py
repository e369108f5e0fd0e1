"""Which runs of a lane go into its next call: how many, by what calls cost and what presses, and the most urgent first."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from nereid.diffusion.loop_task import LoopTask
from nereid.diffusion.plan import engine_rows
from nereid.diffusion.run_lanes import Lane, Member, cost_key, key_of, lane_of, priority_of
from nereid.diffusion.state import ImageRun
from nereid.engines.costs import StepCosts
from nereid.engines.lanes import CallSizes, Candidate, in_company, is_late, order, rows_for_the_best

_BEHIND = 64
"""How many of those that wait are looked at to see what presses."""


@dataclass(slots=True, eq=False)
class Chooser:
    """Of one loop: its costs, the rows of a call, and `caching_rows` of one with features, as many as others where None."""

    costs: StepCosts
    max_batch_size: int
    caching_rows: Callable[[ImageRun], int] | None = None
    _sizes: CallSizes[Lane] = field(default_factory=lambda: CallSizes[Lane]())

    def forget(self, kept: Iterable[Lane]) -> None:
        """Lanes that nobody is in any more."""
        self._sizes.forget(kept)

    def step_cost(self, run: ImageRun, variant: StrEnum) -> float:
        """Seconds of a call for this run alone; NaN where nothing is known."""
        return self.costs.predict(cost_key(variant, run.shape), engine_rows(run))

    def choose(self, lane: Lane, members: list[Member], waiting: Sequence[LoopTask]) -> list[Member]:
        """As many of the most urgent as is best; where all go that fit, one that does not fit leaves its place to the next."""
        key = key_of(lane)
        together = self.costs.predict(key, min(self._most(members), sum(engine_rows(run) for _, run in members)))
        candidates = [self._candidate(task, run, together) for task, run in members]
        ranked = order(candidates)
        behind = [self._candidate(task, run, together) for task in waiting for run in task.runs if lane_of(run) == lane]

        def known(rows: int) -> float:
            return self.costs.known(key, rows)

        most = rows_for_the_best([candidates[index] for index in ranked], self._most(members), known)
        count = self._sizes.take(
            lane,
            [candidates[index] for index in ranked],
            behind[:_BEHIND],
            most,
            known,
            time.monotonic(),
        )
        chosen: list[int] = []
        rows = 0
        for index in ranked:
            wanted = candidates[index].rows
            if len(chosen) < count and (not chosen or rows + wanted <= most):
                chosen.append(index)
                rows += wanted
            else:
                members[index][1].passed_over += 1
        return [members[index] for index in chosen]

    def _most(self, members: list[Member]) -> int:
        """Rows of a call that somebody of these may be in."""
        if self.caching_rows is None or all(run.kept is None for _, run in members):
            return self.max_batch_size
        return min(self.max_batch_size, self.caching_rows(members[0][1]))

    def _candidate(self, task: LoopTask, run: ImageRun, together: float) -> Candidate:
        """Its steps left count in calls such as the next one, of which one of all members takes `together` seconds: those of
        other engines, or of more or fewer rows, are dearer or cheaper."""
        alone, rows, steps = self.step_cost(run, run.variant), run.rows_left, 0.0
        for variant, left in run.steps_left.items():
            ratio = self.costs.predict(cost_key(variant, run.shape), rows) / (alone or math.nan) if left else 1.0
            steps += left * (1.0 if math.isnan(ratio) else ratio)
        seconds = in_company(alone, together)
        goal = task.request.deadline_seconds is not None
        in_hand = task.due - time.monotonic()
        pressing = goal and _pressing(in_hand, steps * seconds, seconds)
        late = goal and is_late(in_hand, steps, seconds, run.passed_over)
        return Candidate(steps, engine_rows(run), task.due, run.passed_over, priority_of(task, run), pressing, late)


def _pressing(left: float, needed: float, step: float) -> bool:
    """Whether a goal is missed if one step more is waited for, and is not missed in any case; seconds, NaN where not known."""
    return needed <= left <= needed + 2 * step

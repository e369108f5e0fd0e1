"""SmoothCache: which branches of a transformer a step computes, and which go on from what they last gave; knows no engine.

Liu et al., 2024. What the attention and the MLP of each block give, before gate and residual, changes slowly from step to step.
All attentions are one branch here, and all MLPs are another: a step computes or reuses either, by the plan of a feature cache
(nereid.diffusion.feature_cache) of its own. It depends on nothing but the run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.feature_cache import CachePlan, Caching, KeptFeatures, Level, greedy_plan
from nereid.diffusion.solvers.names import SchedulerName

LONGEST_REUSE = 3
"""Steps that a branch's output is reused over, at most, by a calibrated plan."""


class Branch(StrEnum):
    """Outputs of an engine that computes the branch, inputs of one that reuses it: rows x blocks x (1 + tokens) x width."""

    ATTENTION = "attention"
    MLP = "mlp"


class BranchEngine(StrEnum):
    """The engines that a step of a run that caches may call."""

    COMPUTED = "computed"
    ATTENTION_REUSED = "attention_reused"
    MLP_REUSED = "mlp_reused"
    REUSED = "reused"

    @classmethod
    def that_reuses(cls, branches: frozenset[Branch]) -> BranchEngine:
        return next(engine for engine, reused in REUSED_BY.items() if reused == branches)

    @property
    def reused(self) -> tuple[Branch, ...]:
        """Branches that it takes."""
        return tuple(branch for branch in Branch if branch in REUSED_BY[self])

    @property
    def computed(self) -> tuple[Branch, ...]:
        """Branches that it gives."""
        return tuple(branch for branch in Branch if branch not in REUSED_BY[self])

    @property
    def untaken(self) -> tuple[str, ...]:
        """Inputs that say something to attention alone."""
        return ("valid",) if Branch.ATTENTION in REUSED_BY[self] else ()


REUSED_BY: Mapping[BranchEngine, frozenset[Branch]] = {
    BranchEngine.COMPUTED: frozenset(),
    BranchEngine.ATTENTION_REUSED: frozenset({Branch.ATTENTION}),
    BranchEngine.MLP_REUSED: frozenset({Branch.MLP}),
    BranchEngine.REUSED: frozenset(Branch),
}

Plans = Mapping[Branch, CachePlan]
"""Of either branch, the steps that compute it."""
Curves = Mapping[Branch, Sequence[Sequence[float]]]
"""Of either branch, as `greedy_plan` takes them."""


def plans_by_change(threshold: float) -> Plans:
    """Plans that go by how the run's own branches change."""
    return {branch: CachePlan.by_change(threshold) for branch in Branch}


def greedy_plans(curves: Curves, threshold: float, steps: int) -> Plans:
    """Plans of a calibrated threshold; the first and the last step compute both."""
    return {branch: greedy_plan(curves[branch], threshold, 0, steps) for branch in Branch}


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchCalibration:
    """Error curves of both branches for one scheduler at one number of steps, and the thresholds of its levels."""

    scheduler: str
    steps: int
    curves: Mapping[Branch, tuple[tuple[float, ...], ...]]
    levels: Mapping[Level, float]

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> BranchCalibration:
        """What export's file has of it; raises ValueError where it is not what `nereid calibrate-layout` writes."""
        try:
            scheduler, steps = str(SchedulerName(raw["scheduler"])), int(raw["steps"])
            levels = {level: float(raw["levels"][level]["threshold"]) for level in Level}
            curves = {
                branch: tuple(tuple(float(value) for value in curve) for curve in raw["curves"][branch]) for branch in Branch
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"calibration: it is none of nereid calibrate-layout's ({error!r}); calibrate again") from None
        name = f"calibration for {scheduler} with {steps} steps"
        every = [curve for its in curves.values() for curve in its]
        if steps < 1 or any(len(curve) != steps for curve in every):
            raise ValueError(f"{name}: a curve of {sorted({*map(len, every)})} steps is not allowed; calibrate again")
        if not all(value >= 0 for value in [*levels.values(), *(value for curve in every for value in curve)]):  # NaN is not
            raise ValueError(f"{name}: errors and thresholds must be numbers from 0 on; calibrate again")
        return cls(scheduler=scheduler, steps=steps, curves=curves, levels=levels)

    def plans(self, level: Level) -> Plans | None:
        """None where the level reuses nothing: to keep what nobody goes on from would cost more than to be off."""
        found = greedy_plans(self.curves, self.levels[level], self.steps)
        return found if any(plan.reuses(self.steps) for plan in found.values()) else None


@dataclass(slots=True, eq=False)
class KeptBranches:
    """One run's branches, each as the last step that computed it gave it, and when either is due.

    `places` are the tokens that mean something: what padding gives is neither kept nor looked at.
    """

    plans: Plans
    places: int
    _padded: int = 0
    """Tokens of a call."""
    _kept: dict[Branch, KeptFeatures] = field(init=False)

    def __post_init__(self) -> None:
        self._kept = {branch: KeptFeatures(Caching(plan=self.plans[branch])) for branch in Branch}

    @property
    def whole(self) -> StrEnum:
        return BranchEngine.COMPUTED

    @property
    def nbytes(self) -> int:
        return sum(kept.nbytes for kept in self._kept.values())

    def variant(self, step: int, *, both: bool) -> StrEnum:
        reused = frozenset(branch for branch, kept in self._kept.items() if not kept.is_full(step, both=both))
        return BranchEngine.that_reuses(reused)

    def inputs(self, variant: StrEnum, half: int) -> Mapping[str, NDArray[Any]]:
        given = {}
        for branch in BranchEngine(variant).reused:
            kept = self._kept[branch].halves[half]
            assert kept is not None
            given[str(branch)] = np.pad(kept, ((0, 0), (0, self._padded - kept.shape[1]), (0, 0)))
        return given

    def without(self, variant: StrEnum) -> Sequence[str]:
        return BranchEngine(variant).untaken

    def outputs(self, variant: StrEnum, step: int) -> tuple[str, ...]:
        return tuple(str(branch) for branch in BranchEngine(variant).computed if self.plans[branch].keeps(step))

    def fits(self, shape: tuple[int, ...], sample: tuple[int, ...]) -> bool:
        return len(shape) == 3 and shape[1] == 1 + sample[0]

    def take(self, step: int, halves: Sequence[Mapping[str, NDArray[np.float32]]]) -> None:
        for name, value in halves[0].items():
            if not self.plans[Branch(name)].keeps(step):
                continue  # it is computed again before anybody goes on from it
            self._padded = value.shape[1]
            self._kept[Branch(name)].keep(step, [value[:, : self.places]])

    def forget(self) -> None:
        for kept in self._kept.values():
            kept.forget()

    def steps_to_full(self, step: int, end: int) -> float:
        if any(plan.full is None for plan in self.plans.values()):
            return max(kept.steps_to_full(step, end) for kept in self._kept.values())  # no sooner than that
        return next((at - step for at in range(step, end) if not self._planned(at)), math.inf)

    def steps_left(self, step: int, end: int) -> dict[StrEnum, int]:
        return dict(Counter[StrEnum](BranchEngine.that_reuses(self._planned(at)) for at in range(step, end)))

    def _planned(self, step: int) -> frozenset[Branch]:
        """What a step reuses; one that goes by its own change is taken to be computed."""
        full = {branch: self.plans[branch].full for branch in Branch}
        return frozenset(branch for branch, steps in full.items() if steps is not None and step not in steps)

"""Feature caching: which steps of a run compute the whole UNet, which go on from features that were kept; knows no engine.

Ma et al., 2023 (DeepCache). A plan is made once, at the beginning of a run, beside the solver's table, whose rows are its steps:
a fixed interval, or steps that calibration has chosen (as SmoothCache, Liu et al., 2024, greedy under a threshold). Where a
request gives a threshold itself, the run goes by how its own features change. Either way it depends on nothing but the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.solvers.names import SchedulerName
from nereid.flow.errors import EngineError

FEATURES = "features"
"""Second output of the whole UNet, last input of the shallow one: rows x channels x latent height x latent width."""
SHALLOW = "unet_shallow"
LONGEST_INTERVAL = 10
"""Steps from one whole call to the next, at most, where the features' own change decides."""

Array = NDArray[np.float32]


class Variant(StrEnum):
    """The engines that a step may call."""

    FULL = "unet"
    SHALLOW = SHALLOW


class Level(StrEnum):
    """Names of calibrated thresholds, the most careful first."""

    LIGHT = "light"
    BALANCED = "balanced"
    AGGRESSIVE = "aggressive"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePlan:
    """`full` are the absolute steps that compute everything; None where the change of the features decides by `threshold`."""

    full: frozenset[int] | None
    threshold: float = 0.0

    @classmethod
    def every(cls, interval: int, origin: int, steps: int) -> CachePlan:
        """Every `interval`th step of a run of `steps` that begins at `origin`."""
        return cls(full=frozenset(range(origin, steps, interval)))

    @classmethod
    def by_change(cls, threshold: float) -> CachePlan:
        """As many steps go on from kept features as may pass until these have changed by `threshold`, at the pace seen last."""
        return cls(full=None, threshold=threshold)

    def reuses(self, steps: int) -> bool:
        """Whether some step of a run of `steps` goes on from what was kept: otherwise keeping is work for nothing."""
        return not self.full or len(self.full) < steps - min(self.full)

    def keeps(self, step: int) -> bool:
        """Whether the next step may go on from what this one computes; one that computes everything does not."""
        return self.full is None or step + 1 not in self.full


def greedy_plan(curves: Sequence[Sequence[float]], threshold: float, origin: int, steps: int) -> CachePlan:
    """From each whole step on, as many go on from its features as have an error of `threshold` at most; the last is whole.

    `curves[k - 1][s]` is the error of step s + k with the features of step s.
    """
    full, step = set(), origin
    while step < steps:
        full.add(step)
        reused = 0
        while reused < len(curves) and step + reused + 1 < steps and curves[reused][step] <= threshold:
            reused += 1
        step += reused + 1
    return CachePlan(full=frozenset(full | {steps - 1}))


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedLevel:
    """A threshold, and what it was measured to cost: median PSNR in dB against the pictures without, score where one is known."""

    threshold: float
    psnr: float | None
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCalibration:
    """Error curves of one scheduler at one number of steps, over the calls of its runs, and its levels by name."""

    scheduler: str
    steps: int
    curves: tuple[tuple[float, ...], ...]
    levels: Mapping[Level, CalibratedLevel]

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> CacheCalibration:
        """What pipeline.json has of it; raises ValueError where it is not what `nereid calibrate` writes."""
        try:
            scheduler, steps = str(SchedulerName(raw["scheduler"])), int(raw["steps"])
            levels = {
                level: CalibratedLevel(
                    threshold=float(raw["levels"][level]["threshold"]),
                    psnr=raw["levels"][level]["psnr"],
                    score=raw["levels"][level].get("score"),
                )
                for level in Level
            }
            curves = tuple(tuple(float(value) for value in curve) for curve in raw["curves"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"calibration: it is none of nereid calibrate's ({error!r}); calibrate again") from None
        name = f"calibration for {scheduler} with {steps} steps"
        if steps < 1 or any(len(curve) != SchedulerName(scheduler).calls(steps) for curve in curves):
            raise ValueError(
                f"{name}: a curve of {sorted({len(curve) for curve in curves})} steps is not allowed; calibrate again"
            )
        numbers = [value for curve in curves for value in curve] + [its.threshold for its in levels.values()]
        if not all(value >= 0 for value in numbers):  # NaN is not
            raise ValueError(f"{name}: errors and thresholds must be numbers from 0 on; calibrate again")
        return cls(scheduler=scheduler, steps=steps, curves=curves, levels=levels)

    def plan(self, level: Level, origin: int) -> CachePlan:
        """The plan of a run that begins at the call `origin`."""
        return greedy_plan(self.curves, self.levels[level].threshold, origin, SchedulerName(self.scheduler).calls(self.steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureCache:
    """What a pipeline whose UNet is cut in two knows of it."""

    branch: int
    channels: int
    attends: bool = True
    """Whether the outer part has attention, so that it takes `encoder_hidden_states`."""
    calibrations: tuple[CacheCalibration, ...] = ()

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> FeatureCache:
        """What pipeline.json has of it."""
        calibrations = tuple(CacheCalibration.parse(item) for item in raw.get("calibrations", ()))
        return cls(
            branch=int(raw["branch"]), channels=int(raw["channels"]), attends=bool(raw["attends"]), calibrations=calibrations
        )

    def feature_bytes(self, latent_pixels: int, item_bytes: int) -> int:
        """Of one engine row."""
        return self.channels * latent_pixels * item_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Caching:
    """How one image caches: its plan, as what its features are kept, and whether the outer part takes the prompt."""

    plan: CachePlan
    dtype: type = np.float32
    attends: bool = True


@dataclass(slots=True, eq=False)
class KeptFeatures:
    """One run's features, each half's as its last whole step gave them, and when the next whole step is due.

    They may be arrays on a GPU: nothing here takes them from there, but single numbers.
    """

    caching: Caching
    halves: list[NDArray[Any] | None] = field(default_factory=lambda: [None, None])
    _taken: int = -1
    _next: int = 0

    @property
    def plan(self) -> CachePlan:
        return self.caching.plan

    def is_full(self, step: int, *, both: bool) -> bool:
        """Whether this step computes everything: by plan, or because a half that is needed has no features yet."""
        if self.halves[0] is None or (both and self.halves[1] is None):
            return True
        return step in self.plan.full if self.plan.full is not None else step >= self._next

    @property
    def whole(self) -> StrEnum:
        return Variant.FULL

    def variant(self, step: int, *, both: bool) -> StrEnum:
        return Variant.FULL if self.is_full(step, both=both) else Variant.SHALLOW

    def inputs(self, variant: StrEnum, half: int) -> Mapping[str, NDArray[Any]]:
        kept = self.halves[half]
        return {FEATURES: kept} if variant is Variant.SHALLOW and kept is not None else {}

    def without(self, variant: StrEnum) -> Sequence[str]:
        return ("encoder_hidden_states",) if variant is Variant.SHALLOW and not self.caching.attends else ()

    def outputs(self, variant: StrEnum, step: int) -> tuple[str, ...]:
        return (FEATURES,) if variant is Variant.FULL and self.plan.keeps(step) else ()

    def fits(self, shape: tuple[int, ...], sample: tuple[int, ...]) -> bool:
        return len(shape) == len(sample) and shape[1:] == sample[1:]

    def take(self, step: int, halves: Sequence[Mapping[str, NDArray[np.float32]]]) -> None:
        if self.plan.keeps(step):
            self.keep(step, [half[FEATURES] for half in halves])

    def keep(self, step: int, halves: Sequence[NDArray[np.float32]]) -> None:
        """Take over what a whole step gave, of the guided half, too, where there was one."""
        for half in halves:
            if self.caching.dtype is np.float16 and np.abs(half).max() > np.finfo(np.float16).max:
                raise EngineError("features_dtype: fp16 does not hold this model's features; fp32 does")
        if self.plan.full is None:
            self._next = step + self._interval(step, halves[0])
        for index, half in enumerate(halves):
            self.halves[index] = half.astype(self.caching.dtype)  # a copy: the call's array holds everybody's
        if len(halves) == 1:
            self.halves[1] = None  # of an older step than the other half's
        self._taken = step

    def forget(self) -> None:
        """The run has ended."""
        self.halves = [None, None]

    def steps_to_full(self, step: int, end: int) -> float:
        """Steps until the next whole one of a run that ends at `end`; infinite where none comes."""
        coming = [self._next] if self.plan.full is None else [full for full in self.plan.full if full >= step]
        return min((full - step for full in coming if full < end), default=math.inf)

    def steps_left(self, step: int, end: int) -> dict[StrEnum, int]:
        full = self.full_steps_from(step, end)
        return {Variant.FULL: full, Variant.SHALLOW: end - step - full}

    def full_steps_from(self, step: int, end: int) -> int:
        """Whole steps of those from `step` on: all of them where the plan does not know."""
        return end - step if self.plan.full is None else sum(step <= full < end for full in self.plan.full)

    @property
    def nbytes(self) -> int:
        return sum(half.nbytes for half in self.halves if half is not None)

    def _interval(self, step: int, now: NDArray[np.float32]) -> int:
        before = self.halves[0]
        if before is None:
            return 1  # how fast they change is known from the second whole step on
        change = float(np.abs(now - before).mean() / max(float(np.abs(now).mean()), 1e-12)) / (step - self._taken)
        if not change > 0:
            return LONGEST_INTERVAL
        return min(max(math.floor(self.plan.threshold / change), 1), LONGEST_INTERVAL)

"""What a request asks of feature caching and of guidance's reuse: one prompt's plans, or a refusal that says what there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from nereid.diffusion.branch_cache import BranchCalibration, Plans, plans_by_change
from nereid.diffusion.feature_cache import CachePlan, Level
from nereid.diffusion.settings import Pipeline
from nereid.diffusion.solvers import SchedulerName
from nereid.flow.errors import InvalidRequestError
from nereid.flow.fields import FieldReader
from nereid.flow.parameters import read_number

OFF = "off"
MOST_THRESHOLD = 1.0
_LEVELS = ", ".join(Level)
_OWN_SCHEDULE = ("timesteps", "sigmas", "timestep_spacing", "eta")


class Calibrated(Protocol):
    """A calibration of one scheduler at one number of steps."""

    @property
    def scheduler(self) -> str: ...

    @property
    def steps(self) -> int: ...


C = TypeVar("C", bound=Calibrated)


def cache_plan(
    fields: FieldReader, prompt: int, pipeline: Pipeline, *, scheduler: SchedulerName, steps: int, origin: int
) -> CachePlan | None:
    """Of features, for runs of `steps` steps from the call `origin` on; None where nothing is cached.

    Raises InvalidRequestError. Plans count calls of the network, which most solvers make one of in a step.
    """
    asked, interval = _asked(fields, prompt, "cache")
    if asked == OFF and interval is None:
        return None
    threshold = None if interval is not None else _threshold(asked)
    if pipeline.cache is None:
        name, value = ("cache", asked) if interval is None else ("cache_interval", interval)
        raise InvalidRequestError(
            f"{name}: {value} is not allowed; this model's UNet was exported without --cache-branch, so that it cannot go on "
            "from kept features",
            name,
        )
    calls = scheduler.calls(steps)
    if interval is not None:
        return _if_it_reuses(CachePlan.every(interval, origin, calls), calls)
    if threshold is not None:
        return CachePlan.by_change(threshold)
    found = _calibration(fields, "cache", pipeline.cache.calibrations, asked, scheduler, steps)
    return _if_it_reuses(found.plan(Level(asked), origin), calls)


def guidance_plan(
    fields: FieldReader, prompt: int, pipeline: Pipeline, *, guided: range, scheduler: SchedulerName, steps: int, origin: int
) -> CachePlan | None:
    """The same of the unconditional prediction, for runs that are guided at the calls `guided`."""
    asked, interval = _asked(fields, prompt, "guidance_cache")
    if asked == OFF and interval is None:
        return None
    if interval is None and asked not in set(Level):
        raise InvalidRequestError.of("guidance_cache", asked, f"{OFF}, {_LEVELS}")
    calls = scheduler.calls(steps)
    if interval is not None:
        return _if_it_reuses(CachePlan.every(interval, max(guided.start, origin), calls), calls)
    found = _calibration(fields, "guidance_cache", pipeline.guidance_calibrations, asked, scheduler, steps)
    return _if_it_reuses(found.plan(Level(asked), origin), calls)


def branch_plans(
    fields: FieldReader, calibrations: Sequence[BranchCalibration] | None, *, scheduler: str, steps: int
) -> Plans | None:
    """Of a transformer's branches, None where nothing is cached; `calibrations` are None where it has no engines that reuse them.

    Raises InvalidRequestError.
    """
    asked = fields.value("cache", OFF).strip()
    if asked == OFF:
        return None
    threshold = _threshold(asked)
    if calibrations is None:
        raise InvalidRequestError(
            f"cache: {asked} is not allowed; this model's transformer was exported without --cache, so that it cannot go on from "
            "kept branches",
            "cache",
        )
    if threshold is not None:
        return plans_by_change(threshold)
    how = "nereid calibrate-layout", "a threshold or off"
    return _known("cache", calibrations, asked, scheduler, steps, *how).plans(Level(asked))


def _if_it_reuses(plan: CachePlan, calls: int) -> CachePlan | None:
    """None for a plan that computes every call: it needs no memory, no features beside the output, and waits for no mates."""
    return plan if plan.reuses(calls) else None


def _asked(fields: FieldReader, prompt: int, name: str) -> tuple[str, int | None]:
    """What the field `name` says, and that of its interval, which go not together."""
    asked, interval = fields.values(name, OFF)[prompt].strip(), fields.values(f"{name}_interval", None)[prompt]
    if interval is not None and asked != OFF:
        raise InvalidRequestError.of(f"{name}_interval", interval, f"nothing beside {name} ({asked})")
    return asked, interval


def _threshold(asked: str) -> float | None:
    """A number that a request gives; None for a level's name."""
    if asked in set(Level):
        return None
    threshold = read_number(asked)
    if threshold is None or not 0 < threshold <= MOST_THRESHOLD:
        raise InvalidRequestError.of("cache", asked, f"{OFF}, {_LEVELS} or a threshold above 0, {MOST_THRESHOLD:g} at most")
    return threshold


def _calibration(fields: FieldReader, name: str, calibrations: Sequence[C], asked: str, scheduler: str, steps: int) -> C:
    chosen = [field for field in _OWN_SCHEDULE if fields.given(field)]
    if chosen:
        raise InvalidRequestError(
            f"{name}: {asked!r} is not allowed with {chosen[0]}, for which nothing is calibrated; {name}_interval or {OFF} is",
            name,
        )
    return _known(name, calibrations, asked, scheduler, steps, "nereid calibrate", f"{name}_interval")


def _known(name: str, calibrations: Sequence[C], asked: str, scheduler: str, steps: int, command: str, otherwise: str) -> C:
    for found in calibrations:
        if (found.scheduler, found.steps) == (scheduler, steps):
            return found
    known = ", ".join(f"{found.scheduler} with {found.steps} steps" for found in calibrations)
    where = f"it is for {known}" if known else f"nothing is ({command} does it)"
    raise InvalidRequestError(
        f"{name}: {asked!r} is not calibrated for {scheduler} with {steps} steps; {where}, and {otherwise} is allowed", name
    )


def needs_nothing_kept(step: int, origin: int, cache: CachePlan | None, reuse: CachePlan | None, guided: range) -> bool:
    """Whether this step of a run from `origin` on goes by nothing that an earlier one left: neither features nor a prediction."""
    if step == origin:
        return True
    whole = cache is None or step in (cache.full or ())
    predicted = reuse is None or not guided.start < step < guided.stop or step in (reuse.full or ())
    return whole and predicted

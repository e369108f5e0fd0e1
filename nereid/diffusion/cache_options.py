"""What a request asks of feature caching: one prompt's plan, or a refusal that says what this pipeline has."""

from __future__ import annotations

from nereid.diffusion.feature_cache import CacheCalibration, CachePlan, FeatureCache, Level
from nereid.diffusion.settings import Pipeline
from nereid.flow.errors import InvalidRequestError
from nereid.flow.fields import FieldReader

OFF = "off"
MOST_THRESHOLD = 1.0
_LEVELS = ", ".join(Level)


def cache_plan(
    fields: FieldReader, prompt: int, pipeline: Pipeline, *, scheduler: str, steps: int, origin: int
) -> CachePlan | None:
    """The plan of one prompt's runs of `steps` steps from `origin` on, None where nothing is cached; raises InvalidRequestError."""
    asked, interval = fields.values("cache", OFF)[prompt].strip(), fields.values("cache_interval", None)[prompt]
    if interval is not None:
        if asked != OFF:
            raise InvalidRequestError.of("cache_interval", interval, f"nothing beside cache ({asked})")
        _require(pipeline, "cache_interval", interval)
        return CachePlan.every(interval, origin, steps)
    if asked == OFF:
        return None
    threshold = _threshold(asked)
    cache = _require(pipeline, "cache", asked)
    if threshold is not None:
        return CachePlan.by_change(threshold)
    chosen = [name for name in ("timesteps", "sigmas", "timestep_spacing", "eta") if fields.given(name)]
    if chosen:
        raise InvalidRequestError(
            f"cache: {asked!r} is not allowed with {chosen[0]}, for which nothing is calibrated; a threshold, cache_interval or "
            f"{OFF} is allowed",
            "cache",
        )
    return _calibration(cache, asked, scheduler, steps).plan(Level(asked), origin)


def _require(pipeline: Pipeline, name: str, value: object) -> FeatureCache:
    if pipeline.cache is None:
        raise InvalidRequestError(
            f"{name}: {value} is not allowed; this model's UNet was exported without --cache-branch, so that it cannot go on "
            "from kept features",
            name,
        )
    return pipeline.cache


def _threshold(asked: str) -> float | None:
    """A number that a request gives; None for a level's name."""
    if asked in set(Level):
        return None
    try:
        threshold = float(asked)
    except ValueError:
        threshold = -1.0
    if not 0 < threshold <= MOST_THRESHOLD:
        raise InvalidRequestError.of(
            "cache", asked, f"{OFF}, {_LEVELS} or a threshold above 0, {MOST_THRESHOLD:g} at most"
        )
    return threshold


def _calibration(cache: FeatureCache, asked: str, scheduler: str, steps: int) -> CacheCalibration:
    for found in cache.calibrations:
        if (found.scheduler, found.steps) == (scheduler, steps):
            return found
    known = ", ".join(f"{found.scheduler} with {found.steps} steps" for found in cache.calibrations)
    raise InvalidRequestError(
        f"cache: {asked!r} is not calibrated for {scheduler} with {steps} steps; "
        f"{f'it is for {known}' if known else 'nothing is (nereid calibrate does it)'}, and a threshold or cache_interval is allowed",
        "cache",
    )

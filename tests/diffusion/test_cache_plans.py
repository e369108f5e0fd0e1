"""Plans that reuse nothing, and features that nothing goes on from: neither costs memory, a transfer or a wait."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from nereid.diffusion.feature_cache import CacheCalibration, CachePlan, CalibratedLevel, FeatureCache, Level
from nereid.diffusion.loop import DenoisingLoop
from nereid.diffusion.plan import commit, pack
from nereid.diffusion.requests import parse_image_request
from nereid.diffusion.settings import Limits, Pipeline
from nereid.diffusion.state import ImageTask

from image_forms import Array, Unet, begun, features, finish, pipeline, request, text, whole

CURVES = ((0.3, 0.1, 0.1, 0.1, 0.1, 9.0), (0.6, 0.2, 0.2, 0.2, 9.0, 9.0))
"""Within 0.15, steps 0, 1, 3 and 5 are whole; within 0.05 all are."""


EVERY_THIRD = {"cache_interval": whole(3)}


def cut() -> Pipeline:
    levels = {Level.LIGHT: 0.05, Level.BALANCED: 0.15, Level.AGGRESSIVE: 0.15}
    known = {level: CalibratedLevel(threshold=threshold, psnr=33.0) for level, threshold in levels.items()}
    found = CacheCalibration(scheduler="ddim", steps=6, curves=CURVES, levels=known)
    cache = FeatureCache(branch=0, channels=2, calibrations=(found,))
    return pipeline(default_steps=6, cache=cache, guidance_calibrations=(found,))


def answer(inputs: Mapping[str, Array]) -> Array:
    """Depends on the row's own features, where it has some, so that old ones show."""
    made = inputs["sample"] * np.float32(0.1) + inputs["encoder_hidden_states"].mean((1, 2))[:, None, None, None]
    return made + inputs["features"].mean((1, 2, 3))[:, None, None, None] if "features" in inputs else made


def seeded(seed: int, limits: Limits | None = None, **inputs: Array) -> ImageTask:
    return begun(request(seed=np.array([[seed]]), **inputs), cut(), limits)


@pytest.mark.parametrize(
    ("asked", "steps"),
    [
        ({"cache": text("balanced")}, [1, 3]),
        (EVERY_THIRD, [0, 3]),
        ({"cache_interval": whole(5)}, [0]),  # nothing comes after step 5
        ({"cache": text("light")}, []),
        ({"cache_interval": whole(1)}, []),
    ],
)
def test_features_are_asked_for_at_steps_alone_that_the_next_one_goes_on_from(asked: dict[str, Array], steps: list[int]) -> None:
    given: list[int] = []
    task = seeded(1, **asked)

    def noted(inputs: Mapping[str, Array]) -> Array:
        given.append(task.runs[0].step)
        return features(inputs)

    finish(DenoisingLoop(Unet(answer, noted), 16), task)
    assert given == steps


@pytest.mark.parametrize("asked", [{"cache": text("light")}, {"cache_interval": whole(1)}])
def test_a_plan_that_reuses_nothing_is_none(asked: dict[str, Array]) -> None:
    task = seeded(1, **asked)
    assert task.runs[0].kept is None
    assert task.request.memory_bytes == parse_image_request(request(), cut(), Limits()).memory_bytes


@pytest.mark.parametrize("asked", [{"guidance_cache": text("light")}, {"guidance_cache_interval": whole(1)}])
def test_so_is_one_of_guidance(asked: dict[str, Array]) -> None:
    assert seeded(1, **asked).runs[0].reused is None
    assert seeded(1, guidance_cache=text("balanced")).runs[0].reused is not None


@pytest.mark.parametrize(
    ("plan", "reuses"),
    [
        (CachePlan.every(1, 0, 6), False),
        (CachePlan.every(1, 4, 6), False),  # of a run that begins at step 4
        (CachePlan.every(2, 4, 6), True),
        (CachePlan.every(9, 5, 6), False),
        (CachePlan.by_change(0.1), True),
    ],
)
def test_a_plan_reuses_where_a_step_after_its_first_whole_one_is_not_whole(plan: CachePlan, reuses: bool) -> None:
    assert plan.reuses(6) is reuses


def test_company_that_keeps_features_does_not_have_others_keep_theirs() -> None:
    """Else a picture whose own plan needs none would fail, or not, by who is in the call."""
    limits, engine = Limits(features_dtype="fp16"), Unet(answer, lambda inputs: np.full_like(features(inputs), 1e6))
    mine, mates = (seeded(seed, limits, **asked) for seed, asked in ((1, {"cache": text("balanced")}), (2, EVERY_THIRD)))
    call = pack([mine.runs[0], mates.runs[0]])
    refused, too_large = commit([mine.runs[0], mates.runs[0]], call, engine(call).result())
    assert refused is None
    assert "fp16 does not hold" in str(too_large)

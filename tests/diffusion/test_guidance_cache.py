"""Reuse of guidance: which steps compute the unconditional half, what it guides by, with cached features, in any company."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pytest

from nereid.diffusion.feature_cache import CacheCalibration, CalibratedLevel, FeatureCache, Level, Variant
from nereid.diffusion.loop import DenoisingLoop
from nereid.diffusion.settings import Pipeline
from nereid.diffusion.state import ImageTask
from nereid.flow.errors import InvalidRequestError

from image_forms import Array, MortalUnet, Unet, begun, features, finish, pipeline, request, text, whole

FULL, SHALLOW = Variant.FULL, Variant.SHALLOW
CURVES = ((0.3, 0.1, 0.1, 0.1, 0.1, 9.0), (0.6, 0.2, 0.2, 0.2, 9.0, 9.0))


def facts(**changes: object) -> Pipeline:
    found = CacheCalibration(
        scheduler="ddim", steps=6, curves=CURVES, levels={level: CalibratedLevel(threshold=0.15, psnr=33.0) for level in Level}
    )
    cache = FeatureCache(branch=0, channels=2)
    return pipeline(**{"default_steps": 6, "guidance_calibrations": (found,), "cache": cache, **changes})


def answer(inputs: Mapping[str, Array]) -> Array:
    made = inputs["sample"] * np.float32(0.1) + inputs["encoder_hidden_states"].mean((1, 2))[:, None, None, None]
    made = made + inputs["timestep"][:, :, None, None] / np.float32(5000)
    return made + inputs["features"].mean((1, 2, 3))[:, None, None, None] if "features" in inputs else made


def seeded(seed: int, **inputs: Array) -> ImageTask:
    return begun(request(seed=np.array([[seed]]), **inputs), facts())


def alone(seed: int, **inputs: Array) -> tuple[bytes, list[int], list[Variant]]:
    """A run's latents, the rows of its calls, and their engines."""
    engine, task = Unet(answer, features), seeded(seed, **inputs)
    finish(DenoisingLoop(engine, 16), task)
    return task.runs[0].state.sample.tobytes(), [call["sample"][0] for call in engine.calls], engine.variants


ONE = np.array([[1]], np.float32)
INTERVAL = np.array([[0.34, 1]], np.float32)


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        ({}, [2, 2, 2, 2, 2, 2]),
        ({"guidance_cache": text("off")}, [2, 2, 2, 2, 2, 2]),
        ({"guidance_cache_interval": whole(2)}, [2, 1, 2, 1, 2, 1]),
        ({"guidance_cache_interval": whole(1)}, [2, 2, 2, 2, 2, 2]),
        ({"guidance_cache": text("light")}, [2, 2, 1, 2, 1, 2]),
        ({"guidance_cache_interval": whole(2), "guidance_interval": INTERVAL}, [1, 1, 2, 1, 2, 1]),
    ],
)
def test_a_plan_says_which_steps_compute_the_unconditional_half(asked: dict[str, Array], rows: list[int]) -> None:
    assert alone(1, **asked)[1] == rows


def test_a_step_without_it_guides_by_the_difference_that_the_last_one_found() -> None:
    """Embeddings have a mean of 1, or of -1 without a prompt. Both halves' outputs move on from call to call, by more than lies
    between them; what lies between them is always 3."""
    told: list[Array] = []

    def moving(inputs: Mapping[str, Array]) -> Array:
        sign = inputs["encoder_hidden_states"].mean((1, 2))
        told.append(sign)
        made = (sign + (sign > 0) + np.float32(8 * len(told))).astype(np.float32)
        return np.broadcast_to(made[:, None, None, None], inputs["sample"].shape).copy()

    kept = seeded(1, guidance_cache_interval=whole(6))
    finish(DenoisingLoop(Unet(moving), 16), kept)
    assert [len(rows) for rows in told] == [2, 1, 1, 1, 1, 1]
    told.clear()
    fresh = seeded(1)
    finish(DenoisingLoop(Unet(moving), 16), fresh)
    assert [len(rows) for rows in told] == [2] * 6
    assert np.array_equal(kept.runs[0].state.sample, fresh.runs[0].state.sample)


def test_with_kept_features_whole_steps_alone_compute_it() -> None:
    _, rows, variants = alone(1, guidance_cache_interval=whole(2), cache_interval=whole(3))
    assert variants == [FULL, SHALLOW, SHALLOW, FULL, SHALLOW, SHALLOW]
    assert rows == [2, 1, 1, 2, 1, 1]


def test_a_half_that_begins_to_be_guided_is_computed_whole() -> None:
    _, rows, variants = alone(1, guidance_cache_interval=whole(6), cache_interval=whole(4), guidance_interval=INTERVAL)
    assert variants == [FULL, SHALLOW, FULL, SHALLOW, FULL, SHALLOW]
    assert rows == [1, 1, 2, 1, 1, 1]


def test_it_has_the_same_bytes_alone_and_with_mates_of_any_plan() -> None:
    asked: list[dict[str, Array]] = [
        {"guidance_cache_interval": whole(2)},
        {"guidance_cache": text("light"), "cache_interval": whole(3)},
        {},
        {"guidance_cache_interval": whole(3), "cache": text("0.5")},
        {"guidance_cache_interval": whole(3), "guidance_interval": INTERVAL},
    ]
    tasks = [seeded(seed, **inputs) for seed, inputs in enumerate(asked)]
    deaths = iter([number == 3 for number in range(1000)])
    loop = DenoisingLoop(MortalUnet(lambda inputs: next(deaths), answer=answer, features=features), 8)
    loop.advance(tasks[:2])
    finish(loop, *tasks)
    assert [task.runs[0].state.sample.tobytes() for task in tasks] == [alone(seed, **its)[0] for seed, its in enumerate(asked)]


def test_a_segment_begins_where_it_is_computed() -> None:
    asked = {"guidance_cache_interval": whole(3)}
    first = seeded(5, step_end=whole(3), **asked)
    finish(DenoisingLoop(Unet(answer), 16), first)
    state = first.runs[0].state
    goes_on = {"latents": state.sample[None], "solver_memory": state.memory[None]}
    second = seeded(5, step_begin=whole(3), **goes_on, **asked)
    finish(DenoisingLoop(Unet(answer), 16), second)
    assert second.runs[0].state.sample.tobytes() == alone(5, **asked)[0]
    with pytest.raises(InvalidRequestError, match=r"step_begin: 2 is not allowed; it must be one of \[0, 3\]"):
        seeded(5, step_begin=whole(2), **goes_on, **asked)
    with pytest.raises(InvalidRequestError, match=r"it must be one of \[0, 3\]"):
        seeded(5, step_begin=whole(2), **goes_on, **asked, cache_interval=whole(1))
    seeded(5, step_begin=whole(5), **goes_on, **asked, guidance_interval=np.array([[0, 0.5]], np.float32))


@pytest.mark.parametrize(
    ("interval", "more", "possible"),
    [
        ((0.4, 0.8), {}, [0, 1, 2, 3, 5, 7, 8]),  # guided at 3 to 6, predicted anew at 3 and 5; nothing is kept before and after
        ((0.4, 0.8), {"cache_interval": whole(4)}, [0, 8]),
        ((0.0, 1.0), {}, [0, 2, 4, 6, 8]),
        ((0.0, 1.0), {"cache": text("0.5")}, [0]),  # the features' own change says where it computes all
        ((0.3, 0.3), {}, list(range(10))),
    ],
)
def test_every_step_that_needs_nothing_kept_begins_a_segment_and_a_refusal_lists_them(
    interval: tuple[float, float], more: dict[str, Array], possible: list[int]
) -> None:
    steps = 9 if interval == (0.4, 0.8) else 10
    asked = {
        "num_inference_steps": whole(steps),
        "guidance_cache_interval": whole(2),
        "guidance_interval": np.array([interval], np.float32),
        **more,
    }
    state = seeded(5, **asked).runs[0].state
    goes_on = {"latents": state.sample[None], "solver_memory": state.memory[None]}
    for begin in range(1, steps):
        if begin in possible:
            seeded(5, step_begin=whole(begin), **goes_on, **asked)
            continue
        with pytest.raises(InvalidRequestError, match=re.escape(f"one of {possible}, which")):
            seeded(5, step_begin=whole(begin), **goes_on, **asked)


def test_reuse_where_no_step_is_guided_warns() -> None:
    nobody = np.array([[0.3, 0.3]], np.float32)
    task = seeded(5, guidance_cache_interval=whole(2), guidance_interval=nobody)
    assert any("guidance_cache: it has no effect, because no step is guided" in said for said in task.request.warnings)
    assert not seeded(5, guidance_interval=nobody).request.warnings


def test_off_is_off_with_spaces_around_it() -> None:
    assert not seeded(5, guidance_cache=text(" off "), guidance_scale=np.array([[1.0]], np.float32)).request.warnings


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"guidance_cache": text("0.1")}, "guidance_cache: '0.1' is not allowed; it must be off, light, balanced, aggressive"),
        ({"guidance_cache": text("light"), "num_inference_steps": whole(7)}, "not calibrated for ddim with 7 steps"),
        ({"guidance_cache": text("light"), "guidance_cache_interval": whole(2)}, "guidance_cache_interval: 2 is not allowed"),
        ({"guidance_cache_interval": whole(2), "guidance_scale": ONE}, "it has no meaning without guidance (guidance_scale 1)"),
        ({"guidance_cache": text("light"), "guidance_scale": ONE}, "it has no meaning without guidance (guidance_scale 1)"),
    ],
)
def test_what_cannot_be_reused_is_refused_by_name(asked: dict[str, Array], said: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        seeded(1, **asked)
    assert said in str(refused.value)


def test_a_unet_that_is_told_the_guidance_has_no_half_to_reuse() -> None:
    with pytest.raises(InvalidRequestError, match="guidance_cache_interval: it has no meaning"):
        begun(request(guidance_cache_interval=whole(2)), facts(time_cond_proj_dim=32))

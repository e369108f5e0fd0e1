"""Feature caching in the loop: plans, what is kept of whom, phases, deaths, segments, what is refused."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from nereid.diffusion.feature_cache import (
    CacheCalibration,
    CachePlan,
    Caching,
    CalibratedLevel,
    FeatureCache,
    KeptFeatures,
    Level,
    Variant,
    greedy_plan,
)
from nereid.diffusion.loop import DenoisingLoop, Predict
from nereid.diffusion.phases import waits_for_phase
from nereid.diffusion.plan import EngineCall
from nereid.diffusion.requests import parse_image_request
from nereid.diffusion.run_lanes import cost_key
from nereid.diffusion.settings import Limits, Pipeline
from nereid.diffusion.state import ImageRun, ImageTask
from nereid.engines.costs import StepCosts
from nereid.flow.errors import InvalidRequestError, LostError

from image_forms import Array, MortalUnet, OnGpu, Unet, begun, features, finish, pipeline, request, text, whole

FULL, SHALLOW = Variant.FULL, Variant.SHALLOW
CURVES = ((0.3, 0.1, 0.1, 0.1, 0.1, 9.0), (0.6, 0.2, 0.2, 0.2, 9.0, 9.0))


def cut(**changes: object) -> Pipeline:
    """A pipeline whose UNet is cut, with one calibration."""
    levels = {Level.LIGHT: CalibratedLevel(threshold=0.15, psnr=33.0), Level.BALANCED: CalibratedLevel(threshold=0.25, psnr=28.0)}
    found = CacheCalibration(
        scheduler="ddim", steps=6, curves=CURVES, levels={**levels, Level.AGGRESSIVE: levels[Level.BALANCED]}
    )
    return pipeline(default_steps=6, cache=FeatureCache(branch=0, channels=2, calibrations=(found,)), **changes)


def answer(inputs: Mapping[str, Array]) -> Array:
    """Depends on the row's own features, where it has some, so that a mistaken row shows."""
    made = inputs["sample"] * np.float32(0.1) + inputs["encoder_hidden_states"].mean((1, 2))[:, None, None, None]
    if "features" in inputs:
        made = made + inputs["features"].mean((1, 2, 3))[:, None, None, None]
    return made


def unet() -> Unet:
    return Unet(answer, features)


def seeded(seed: int, **inputs: Array) -> ImageTask:
    return begun(request(seed=np.array([[seed]]), **inputs), cut())


def latents(task: ImageTask) -> bytes:
    return task.runs[0].state.sample.tobytes()


def alone(seed: int, **inputs: Array) -> bytes:
    task = seeded(seed, **inputs)
    finish(DenoisingLoop(unet(), 16), task)
    return latents(task)


@pytest.mark.parametrize(
    ("asked", "full"),
    [
        ({"cache_interval": whole(3)}, {0, 3}),
        ({"cache_interval": whole(1)}, {0, 1, 2, 3, 4, 5}),
        ({"cache": text("light")}, {0, 1, 3, 5}),
        ({"cache": text("balanced")}, {0, 1, 4, 5}),
        ({"cache": text("off")}, {0, 1, 2, 3, 4, 5}),
    ],
)
def test_a_plan_says_which_steps_call_the_whole_unet(asked: dict[str, Array], full: set[int]) -> None:
    engine = unet()
    finish(DenoisingLoop(engine, 16), seeded(1, **asked))
    assert {step for step, variant in enumerate(engine.variants) if variant is FULL} == full
    assert all(("features" in call) is (variant is SHALLOW) for call, variant in zip(engine.calls, engine.variants, strict=True))


def test_without_caching_features_are_not_asked_for() -> None:
    def refuses(inputs: Mapping[str, Array]) -> Array:
        raise AssertionError("nobody keeps them")

    finish(DenoisingLoop(Unet(answer, refuses), 16), seeded(1), seeded(2, cache=text("off")))


def test_a_cached_row_has_the_same_bytes_alone_and_with_mates_of_any_plan() -> None:
    asked: list[dict[str, Array]] = [
        {"cache_interval": whole(3)},
        {"cache_interval": whole(2), "guidance_interval": np.array([[0.3, 0.9]], np.float32)},
        {"cache": text("light")},
        {"cache": text("0.5")},
        {},
        {"cache_interval": whole(3), "guidance_scale": np.array([[1]], np.float32)},
    ]
    tasks = [seeded(seed, **inputs) for seed, inputs in enumerate(asked)]
    loop = DenoisingLoop(unet(), 8, calls=2)
    loop.advance(tasks[:2])
    finish(loop, *tasks)
    assert [latents(task) for task in tasks] == [alone(seed, **inputs) for seed, inputs in enumerate(asked)]


@pytest.mark.parametrize("asked", [{"cache_interval": whole(3)}, {"cache": text("light")}, {"cache": text("0.5")}])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_features_on_a_gpu_never_leave_it_and_change_no_byte(asked: dict[str, Array], dtype: str) -> None:
    def on_gpu(inputs: Mapping[str, Array]) -> Array:
        read = inputs["features"].value if "features" in inputs else None
        return answer(inputs if read is None else {**inputs, "features": read})

    def run(engine: Predict, device: str) -> list[bytes]:
        limits = Limits(features_dtype=dtype, features_device=device)
        tasks = [begun(request(seed=whole(seed), **asked), cut(), limits) for seed in (1, 2, 3)]
        finish(DenoisingLoop(engine, 2, min_batch_size=2), *tasks)
        return [latents(task) for task in tasks]

    numbers = itertools.count()
    dying = MortalUnet(lambda _: next(numbers) == 3, answer=on_gpu, features=lambda inputs: OnGpu(features(inputs)))
    assert run(dying, "gpu") == run(unet(), "cpu")
    assert dying.deaths == 1


def test_what_stays_on_a_gpu_needs_no_shared_memory() -> None:
    facts, row = cut(), cut().shared_bytes(64 * 64, 1)
    small = Limits(features_shared_bytes=row, features_device="gpu")
    facts.require_shared_memory(small)
    assert parse_image_request(request(cache_interval=whole(3)), facts, small).rows[0].cache is not None


def test_after_a_death_of_either_engine_a_run_goes_on_with_its_features() -> None:
    for dying in (2, 3):  # a shallow and a whole call
        deaths = iter([number == dying for number in range(100)])
        engine = MortalUnet(lambda inputs, deaths=deaths: next(deaths), answer=answer, features=features)
        task = seeded(4, cache_interval=whole(3))
        finish(DenoisingLoop(engine, 16), task)
        assert engine.deaths == 1
        assert latents(task) == alone(4, cache_interval=whole(3))


def test_a_death_of_the_outer_part_does_not_stop_whole_calls() -> None:
    engine, away = unet(), {"now": True}

    def mortal(call: EngineCall) -> Future[Mapping[str, Array]]:
        if call.variant is FULL or not away["now"]:
            return engine(call)
        failed: Future[Mapping[str, Array]] = Future()
        failed.set_exception(LostError("unet_shallow: Stub process is not healthy."))
        return failed

    cached, plain = seeded(1, cache_interval=whole(3)), seeded(2)
    loop = DenoisingLoop(mortal, 16)
    for _ in range(40):
        if not plain.done:
            loop.advance([cached, plain])
    assert plain.done
    assert not cached.done
    away["now"] = False
    finish(loop, cached)
    assert latents(cached) == alone(1, cache_interval=whole(3))


def known_costs(full: float, shallow: float) -> StepCosts:
    """Seconds of a call of either engine; a row adds a hundredth."""
    costs, shape = StepCosts(), seeded(1).runs[0].shape
    for rows in (2, 4) * 3:
        costs.learn(cost_key(FULL, shape), rows, full * (1 + rows / 100))
        costs.learn(cost_key(SHALLOW, shape), rows, shallow * (1 + rows / 100))
    return costs


def test_a_start_waits_for_its_mates_whole_step_and_stays_in_phase() -> None:
    engine = unet()
    loop = DenoisingLoop(engine, 16, known_costs(100, 1))
    first, second = seeded(1, cache_interval=whole(3)), seeded(2, cache_interval=whole(3))
    loop.advance([first])
    finish(loop, first, second)
    sizes = [(variant, call["sample"][0]) for variant, call in zip(engine.variants, engine.calls, strict=True)]
    round_of = [(FULL, 4), (SHALLOW, 4), (SHALLOW, 4)]
    assert sizes == [(FULL, 2), (SHALLOW, 2), (SHALLOW, 2), *round_of, (FULL, 2), (SHALLOW, 2), (SHALLOW, 2)]


def test_a_start_does_not_wait_longer_than_a_whole_step_takes() -> None:
    loop = DenoisingLoop(unet(), 16, known_costs(100, 110))
    first, second = seeded(1, cache_interval=whole(3)), seeded(2, cache_interval=whole(3))
    loop.advance([first])
    loop.advance([first, second])
    loop.advance([first, second])
    assert second.runs[0].step == 1


def cost(run: ImageRun, variant: Variant) -> float:
    return 100.0 if variant is FULL else 1.0


def begun_mate(**inputs: Array) -> ImageTask:
    """Past its first, whole step."""
    task = seeded(1, **inputs)
    DenoisingLoop(unet(), 16).advance([task])
    return task


def test_a_start_waits_for_no_mate_that_comes_to_no_whole_step() -> None:
    start, mate = seeded(3, cache_interval=whole(3)).runs[0], begun_mate(cache_interval=whole(3)).runs[0]
    assert waits_for_phase(start, [mate], cost, 0.0)
    mate.step = 4  # steps 3 and 6 would be whole, and there are 6
    assert not waits_for_phase(start, [mate], cost, 0.0)
    assert not waits_for_phase(start, [seeded(2).runs[0]], cost, 0.0)


@pytest.mark.parametrize(
    ("asked", "held"),
    [
        ({}, True),
        ({"priority": whole(5)}, True),
        ({"priority": whole(0)}, False),
        ({"deadline_seconds": np.array([[9]], np.float32)}, False),
    ],
)
def test_a_start_waits_for_no_mate_of_worse_priority_nor_where_it_has_a_goal(asked: dict[str, Array], held: bool) -> None:
    mate, start = begun_mate(cache_interval=whole(3)), seeded(3, cache_interval=whole(3), **asked)
    loop = DenoisingLoop(unet(), 16, known_costs(100, 1))
    members = [(task, task.runs[0]) for task in (mate, start)]
    assert (start.runs[0] in loop._held(members)) is held
    loop._down[SHALLOW] = 1e9  # the mate cannot come to its whole step
    assert start.runs[0] not in loop._held(members)


class EqualCosts(StepCosts):
    """Every call takes a second, whatever a test's engine takes."""

    def predict(self, key: str, rows: int) -> float:
        return 1.0

    known = predict


def test_shapes_beside_it_starve_neither_engine_of_a_shape() -> None:
    """A plain run, a cached one of the same shape, and one of another: each has its share."""
    wide = np.ones((1, 3, 4), np.float32)
    plain, cached = seeded(1, num_inference_steps=whole(60)), seeded(2, num_inference_steps=whole(60), cache_interval=whole(10))
    other = seeded(3, num_inference_steps=whole(200), prompt_embeds=wide, negative_prompt_embeds=wide)
    loop = DenoisingLoop(unet(), 16, EqualCosts())
    for _ in range(100):
        loop.advance([plain, cached, other])
    steps = [task.runs[0].step for task in (plain, cached, other)]
    assert min(steps) >= 20, steps


def test_a_half_that_begins_to_be_guided_computes_everything_first() -> None:
    engine = unet()
    interval = np.array([[0.4, 1]], np.float32)  # guided from step 2 on, which the plan would not compute
    finish(DenoisingLoop(engine, 16), seeded(1, cache_interval=whole(3), guidance_interval=interval))
    assert engine.variants == [FULL, SHALLOW, FULL, FULL, SHALLOW, SHALLOW]


def test_a_threshold_follows_the_rows_own_change() -> None:
    kept = KeptFeatures(Caching(plan=CachePlan.by_change(0.25)))
    value = np.ones((2, 4, 4), np.float32)
    assert kept.is_full(0, both=False)
    kept.keep(0, [value])
    assert kept.is_full(1, both=False)  # how fast they change is not known yet
    kept.keep(1, [value * np.float32(1 / 0.9)])  # by a tenth of what they are now
    assert [kept.is_full(step, both=False) for step in (2, 3)] == [False, True]
    kept.keep(3, [value * np.float32(1 / 0.9)])  # not at all
    assert kept.steps_to_full(3, 20) == 10
    assert kept.steps_to_full(3, 13) == math.inf


def test_features_may_be_kept_in_half_the_memory() -> None:
    half = KeptFeatures(Caching(plan=CachePlan.every(3, 0, 6), dtype=np.float16))
    half.keep(0, [np.full((2, 4, 4), 0.1, np.float32)] * 2)
    assert half.nbytes == 2 * 2 * 2 * 16
    half.forget()
    assert half.nbytes == 0


def test_features_that_fp16_does_not_hold_fail_their_own_run_by_name() -> None:
    def large(inputs: Mapping[str, Array]) -> Array:
        return features(inputs) + np.where((inputs["encoder_hidden_states"] == 5).any((1, 2)), 1e6, 0)[:, None, None, None]

    facts, embeds = cut(), np.full((1, 3, 2), 5, np.float32)
    limits = Limits(features_dtype="fp16")
    bad = begun(request(prompt_embeds=embeds, negative_prompt_embeds=-embeds, cache_interval=whole(3)), facts, limits)
    good = begun(request(cache_interval=whole(3)), facts, limits)
    finish(DenoisingLoop(Unet(answer, large), 16), bad, good)
    assert "features_dtype: fp16 does not hold" in str(bad.error)
    assert good.done


def test_a_finished_run_keeps_no_features() -> None:
    task = seeded(1, cache_interval=whole(3))
    loop = DenoisingLoop(unet(), 16)
    loop.advance([task])
    assert task.runs[0].kept is not None
    assert task.runs[0].kept.nbytes == 2 * 2 * 64 * 4
    finish(loop, task)
    assert task.runs[0].kept.nbytes == 0


def test_kept_features_count_in_the_requests_memory() -> None:
    facts = cut()
    plain = parse_image_request(request(), facts, Limits()).memory_bytes
    cached = parse_image_request(request(cache_interval=whole(3)), facts, Limits()).memory_bytes
    half = parse_image_request(request(cache_interval=whole(3)), facts, Limits(features_dtype="fp16")).memory_bytes
    assert (cached - plain, half - plain) == (2 * 2 * 64 * 4, 2 * 2 * 64 * 2)


def test_shared_memory_that_is_too_small_for_features_is_told_at_the_start() -> None:
    facts, row = cut(), 2 * 2 * 64 * 4  # there and back, channels, latents, bytes
    facts.require_shared_memory(Limits(features_shared_bytes=2 * row))
    with pytest.raises(ValueError, match=r"/dev/shm: 0.0 MiB are there for features .* one image of 64 x 64 needs 0.0 MiB"):
        facts.require_shared_memory(Limits(features_shared_bytes=2 * row - 1))
    with pytest.raises(ValueError, match="/dev/shm"):
        facts.require_shared_memory(Limits(features_shared_bytes=3 * row, concurrent_calls=2))
    pipeline().require_shared_memory(Limits())


def test_an_image_whose_features_do_not_fit_into_shared_memory_is_refused_and_others_share_what_does() -> None:
    row = 2 * 2 * 64 * 4
    limits = Limits(features_shared_bytes=2 * row)
    parse_image_request(request(cache_interval=whole(3)), cut(), limits)
    large = {"width": whole(128), "height": whole(64)}
    with pytest.raises(InvalidRequestError, match="cache: at 128 x 64 features of one image need"):
        parse_image_request(request(cache_interval=whole(3), **large), cut(), limits)
    parse_image_request(request(**large), cut(), limits)
    engine = unet()
    tasks = [seeded(seed, cache_interval=whole(3)) for seed in range(3)]
    finish(DenoisingLoop(engine, 16, caching_rows=lambda run: 4), *tasks)
    assert max(call["sample"][0] for call in engine.calls) == 4
    assert [latents(task) for task in tasks] == [alone(seed, cache_interval=whole(3)) for seed in range(3)]


CALIBRATION: dict[str, Any] = {
    "scheduler": "ddim",
    "steps": 2,
    "curves": [[0.1, 0.0]],
    "levels": {level: {"threshold": 0.1, "psnr": 30.0} for level in Level},
}


def _with_threshold(value: object) -> dict[str, Any]:
    return {"levels": {**CALIBRATION["levels"], "light": {"threshold": value, "psnr": 30.0}}}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"curves": [[0.1]]}, "ddim with 2 steps: a curve of"),
        ({"steps": 0, "curves": []}, "ddim with 0 steps"),
        ({"steps": 7}, "ddim with 7 steps: a curve of"),
        ({"curves": [[float("nan"), 0.0]]}, "must be numbers from 0 on"),
        ({"levels": {"light": {"threshold": 0.1, "psnr": 30.0}}}, "'balanced'"),
        ({"scheduler": "best"}, "best"),
        (_with_threshold("x"), "calibrate again"),
        (_with_threshold(float("nan")), "must be numbers from 0 on"),
        (_with_threshold(-1), "must be numbers from 0 on"),
    ],
)
def test_a_calibration_that_is_none_is_refused_when_the_pipeline_is_read(wrong: dict[str, Any], said: str) -> None:
    CacheCalibration.parse(CALIBRATION)
    with pytest.raises(ValueError, match=r"^calibration") as refused:
        CacheCalibration.parse({**CALIBRATION, **wrong})
    assert said in str(refused.value)
    assert "calibrate again" in str(refused.value)


@pytest.mark.parametrize("written", ["0_1", "٠.٥", "1e400", "nan", "0x1", ""])
def test_a_threshold_is_written_as_people_write_numbers(written: str) -> None:
    with pytest.raises(InvalidRequestError, match="cache: "):
        parse_image_request(request(cache=text(written)), cut(), Limits())


def test_how_features_are_kept_is_fp32_or_fp16() -> None:
    with pytest.raises(ValueError, match="parameter features_dtype: 'int8' is not allowed; it must be fp32 or fp16"):
        _ = Limits(features_dtype="int8").feature_type


def test_greedy_plans_reuse_while_the_error_is_within_the_threshold() -> None:
    assert greedy_plan(CURVES, 0.05, 0, 6).full == frozenset(range(6))
    assert greedy_plan(CURVES, 0.35, 0, 6).full == {0, 2, 5}
    assert greedy_plan(CURVES, 0.35, 2, 6).full == {2, 5}


def test_a_segment_begins_where_no_features_are_needed() -> None:
    whole_run = seeded(5, cache_interval=whole(3))
    finish(DenoisingLoop(unet(), 16), whole_run)
    first = seeded(5, cache_interval=whole(3), step_end=whole(3))
    finish(DenoisingLoop(unet(), 16), first)
    state = first.runs[0].state
    goes_on = {"latents": state.sample[None], "solver_memory": state.memory[None]}
    second = seeded(5, cache_interval=whole(3), step_begin=whole(3), **goes_on)
    finish(DenoisingLoop(unet(), 16), second)
    assert latents(second) == latents(whole_run)
    for asked in ({"cache_interval": whole(3)}, {"cache": text("0.5")}):
        with pytest.raises(InvalidRequestError, match="step_begin"):
            seeded(5, step_begin=whole(2), **goes_on, **asked)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"cache": text("fast")}, "cache: 'fast' is not allowed; it must be off, light, balanced, aggressive or a threshold"),
        ({"cache": text("0")}, "cache: '0' is not allowed"),
        ({"cache": text("1.5")}, "cache: '1.5' is not allowed"),
        ({"cache": text("nan")}, "cache: 'nan' is not allowed"),
        (
            {"cache": text("light"), "num_inference_steps": whole(7)},
            "not calibrated for ddim with 7 steps; it is for ddim with 6",
        ),
        ({"cache": text("light"), "scheduler": text("euler")}, "not calibrated for euler with 6 steps"),
        ({"cache": text("light"), "eta": np.array([[0.5]], np.float32)}, "not allowed with eta"),
        ({"cache": text("light"), "cache_interval": whole(2)}, "cache_interval: 2 is not allowed"),
    ],
)
def test_what_cannot_be_cached_is_refused_by_name(asked: dict[str, Array], said: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        seeded(1, **asked)
    assert said in str(refused.value)


def test_an_outer_part_without_attention_is_not_told_the_prompt() -> None:
    facts = pipeline(cache=FeatureCache(branch=0, channels=2, attends=False))
    engine = Unet(lambda inputs: inputs["sample"], features)
    finish(DenoisingLoop(engine, 16), begun(request(cache_interval=whole(3)), facts))
    told = {variant: "encoder_hidden_states" in call for variant, call in zip(engine.variants, engine.calls, strict=True)}
    assert told == {FULL: True, SHALLOW: False}


@pytest.mark.parametrize("asked", [{"cache": text("light")}, {"cache": text("0.1")}, {"cache_interval": whole(2)}])
def test_a_unet_that_is_not_cut_refuses_by_name(asked: dict[str, Array]) -> None:
    with pytest.raises(InvalidRequestError, match="--cache-branch"):
        begun(request(**asked))
    assert begun(request(cache=text("off"))).runs[0].kept is None

"""The loop in the face of dying engines, other sizes, odd outputs and guidance that is skipped."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import numpy as np
import pytest

from nereid.diffusion import loop as module
from nereid.diffusion.feature_cache import Variant
from nereid.diffusion.loop import DenoisingLoop
from nereid.diffusion.run_lanes import cost_key
from nereid.diffusion.state import ImageTask
from nereid.flow.errors import EngineError, PoisonousRequestError

from image_forms import Array, MortalUnet, Unet, begun, finish, request, whole


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.001)


def seeded(seed: int, **inputs: Array) -> ImageTask:
    return begun(request(seed=np.array([[seed]]), **inputs))


def latents(task: ImageTask) -> Array:
    return task.runs[0].state.sample


def echo(inputs: Mapping[str, Array]) -> Array:
    return inputs["sample"] * np.float32(0.1) + inputs["encoder_hidden_states"].mean((1, 2))[:, None, None, None]


def test_a_call_whose_engine_died_is_made_again_and_gives_the_same_picture() -> None:
    calm = [seeded(seed) for seed in range(3)]
    finish(DenoisingLoop(Unet(echo), 16), *calm)
    deaths = iter([False, False, True, *[False] * 100])
    unet = MortalUnet(lambda inputs: next(deaths), answer=echo)
    disturbed = [seeded(seed) for seed in range(3)]
    finish(DenoisingLoop(unet, 16), *disturbed)
    assert unet.deaths == 1
    for one, other in zip(calm, disturbed, strict=True):
        assert np.array_equal(latents(one), latents(other))


def test_what_an_engine_that_is_back_says_of_zeros_fails_nobody() -> None:
    """Zeros ask whether it is back: an engine may refuse them, or give NaN of them."""

    def no_zeros(inputs: Mapping[str, Array]) -> Array:
        if not inputs["sample"].any():
            raise EngineError("unet: nothing comes of nothing")
        return echo(inputs)

    deaths = iter([False, True] + [False] * 100)
    task = seeded(1)
    finish(DenoisingLoop(MortalUnet(lambda inputs: next(deaths), answer=no_zeros), 16), task)
    assert task.error is None


def test_one_that_kills_engines_is_refused_alone_at_its_second_death_and_takes_nobody_along() -> None:
    def deadly(inputs: Mapping[str, Array]) -> bool:
        return bool((inputs["encoder_hidden_states"] == 5).any())

    embeds = np.full((1, 3, 2), 5, np.float32)
    unet = MortalUnet(deadly, answer=echo)
    poison = begun(request(prompt_embeds=embeds, negative_prompt_embeds=-embeds))
    innocent = [seeded(seed) for seed in range(4)]
    finish(DenoisingLoop(unet, 16), poison, *innocent)
    assert isinstance(poison.error, PoisonousRequestError)
    assert unet.deaths == 2
    assert all(task.done for task in innocent)
    calm = [seeded(seed) for seed in range(4)]
    finish(DenoisingLoop(Unet(echo), 16), *calm)
    assert all(np.array_equal(latents(one), latents(other)) for one, other in zip(innocent, calm, strict=True))


def test_an_output_that_is_not_finite_fails_its_own_request_alone() -> None:
    def answer(inputs: Mapping[str, Array]) -> Array:
        made = echo(inputs).copy()
        made[(inputs["encoder_hidden_states"] == 5).any((1, 2))] = np.nan
        return made

    embeds = np.full((1, 3, 2), 5, np.float32)
    bad, good = begun(request(prompt_embeds=embeds, negative_prompt_embeds=-embeds)), seeded(1)
    finish(DenoisingLoop(Unet(answer), 16), bad, good)
    assert isinstance(bad.error, EngineError)
    assert "NaN" in str(bad.error)
    assert good.done
    alone = seeded(1)
    finish(DenoisingLoop(Unet(answer), 16), alone)
    assert np.array_equal(latents(good), latents(alone))


def test_embeddings_of_another_width_share_no_call() -> None:
    unet = Unet()
    wide = np.ones((1, 3, 4), np.float32)
    finish(DenoisingLoop(unet, 16), seeded(1), begun(request(prompt_embeds=wide, negative_prompt_embeds=wide)))
    assert {call["encoder_hidden_states"] for call in unet.calls} == {(2, 3, 2), (2, 3, 4)}


@pytest.mark.parametrize(("interval", "rows"), [((0.0, 1.0), [2] * 5), ((0.2, 0.6), [1, 2, 2, 1, 1]), ((0.5, 0.5), [1] * 5)])
def test_outside_its_interval_guidance_costs_no_row(interval: tuple[float, float], rows: list[int]) -> None:
    unet = Unet()
    finish(DenoisingLoop(unet, 16), seeded(1, guidance_interval=np.array([interval], np.float32)))
    assert [call["sample"][0] for call in unet.calls] == rows


def test_an_interval_over_the_whole_run_changes_nothing_and_one_of_no_step_is_no_guidance() -> None:
    made = {}
    for name, inputs in {
        "plain": {},
        "whole": {"guidance_interval": np.array([[0, 1]], np.float32)},
        "none": {"guidance_interval": np.array([[1, 1]], np.float32)},
        "off": {"guidance_scale": np.array([[1]], np.float32)},
    }.items():
        task = seeded(1, **inputs)
        finish(DenoisingLoop(Unet(echo), 16), task)
        made[name] = latents(task)
    assert np.array_equal(made["plain"], made["whole"])
    assert np.array_equal(made["none"], made["off"])
    assert not np.array_equal(made["plain"], made["off"])


def test_two_prompts_with_bounds_of_their_own_end_where_each_says() -> None:
    embeds = np.ones((2, 3, 2), np.float32)
    steps = np.array([[4], [6]], np.int32)
    task = begun({"prompt_embeds": embeds, "negative_prompt_embeds": embeds, "num_inference_steps": steps, "step_end": steps})
    finish(DenoisingLoop(Unet(), 16), task)
    assert [run.step for run in task.runs] == [4, 6]


def test_small_pictures_wait_for_one_large_step_and_not_for_a_large_run() -> None:
    """Costs are told: a large step takes as long as a hundred small ones, so a small run passes a large one."""
    unet = Unet()
    loop = DenoisingLoop(unet, 16)
    large, small = begun(request(width=whole(256))), seeded(2)
    for task, seconds in ((large, 1.0), (small, 0.01)):
        key = cost_key(Variant.FULL, task.runs[0].shape)
        for _ in range(20):
            loop.costs.learn(key, 2, seconds)
    loop.advance([large])
    before = len(unet.calls)
    while not small.done:
        loop.advance([large, small])
    widths = [call["sample"][-1] for call in unet.calls[before:]]
    assert widths.count(32) <= 1


def sized(width: int, due: float, **inputs: Array) -> ImageTask:
    task = begun(request(width=whole(width), **inputs))
    task.due = due
    return task


def test_where_all_are_over_soon_what_is_due_first_ends_first_and_its_mates_go_along() -> None:
    first, mate, other = sized(256, 10.0), sized(256, 30.0), sized(128, 20.0)
    loop = DenoisingLoop(Unet(), 16, earliest_due_first=True)
    while not first.done:
        loop.advance([other, mate, first])
    assert mate.done
    assert other.step == 0
    shared = [sized(256, 10.0), sized(128, 20.0)]
    loop = DenoisingLoop(Unet(), 16)
    for _ in range(4):
        loop.advance(shared)
    assert [task.step for task in shared] == [2, 2]


def test_one_of_which_nobody_knows_how_long_it_takes_is_not_passed_over_for_ever() -> None:
    unknown = sized(128, math.inf)
    loop, now = DenoisingLoop(Unet(), 16, earliest_due_first=True), time.monotonic()
    unknown.runs[0].waits_since = now
    early, late = sized(256, now - 1), sized(256, now + 1)
    loop.advance([early, unknown])
    assert unknown.step == 0
    loop.advance([late, unknown])
    assert (late.step, unknown.step) == (0, 1)


def test_a_better_priority_goes_before_what_is_due_first() -> None:
    first, better = sized(256, 10.0), sized(128, 20.0, priority=whole(1))
    loop = DenoisingLoop(Unet(), 16, earliest_due_first=True)
    loop.advance([first, better])
    assert (first.step, better.step) == (0, 1)


def test_one_of_a_worse_priority_lends_its_place_to_no_mate() -> None:
    waits, mate, other = sized(256, 10.0), sized(256, 30.0, priority=whole(1)), sized(128, 20.0, priority=whole(1))
    loop = DenoisingLoop(Unet(), 16, earliest_due_first=True)
    loop.advance([waits, mate, other])
    assert (mate.step, other.step) == (0, 1)


def test_a_lone_row_is_filled_up_for_an_engine_that_rounds_it_differently() -> None:
    """The engine here adds to a call of one row what a batch does not have."""

    def rounding(inputs: Mapping[str, Array]) -> Array:
        return echo(inputs) + np.float32(len(inputs["sample"]) == 1)

    unguided = {"guidance_scale": np.array([[1]], np.float32)}
    unet = Unet(rounding)
    alone, together = seeded(1, **unguided), [seeded(seed, **unguided) for seed in range(1, 4)]
    finish(DenoisingLoop(unet, 16, min_batch_size=2), alone)
    assert {call["sample"][0] for call in unet.calls} == {2}
    finish(DenoisingLoop(Unet(rounding), 16, min_batch_size=2), *together)
    assert np.array_equal(latents(alone), latents(together[0]))
    cut = Unet(rounding)  # a guided image's second row is a part of its own where the engine takes two rows of three
    finish(DenoisingLoop(cut, 2, min_batch_size=2), *(seeded(seed) for seed in range(1, 4)))
    assert {call["sample"][0] for call in cut.calls} == {2}

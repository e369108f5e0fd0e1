"""A solver that calls the network twice in a step: what counts steps, what counts calls, and the same bytes in any company."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from test_denoise_service import ask, draw, serving, watch

from nereid.diffusion.feature_cache import CacheCalibration, FeatureCache, Level, Variant
from nereid.diffusion.loop import DenoisingLoop
from nereid.diffusion.state import ImageTask
from nereid.flow.errors import InvalidRequestError

from image_forms import Array, SteppedUnet, Unet, begun, features, finish, pipeline, request, text, whole

SDE = {"scheduler": text("dpmpp_sde"), "num_inference_steps": whole(5)}
"""Nine calls."""


def answer(inputs: Mapping[str, Array]) -> Array:
    prompt = inputs["encoder_hidden_states"].mean((1, 2))[:, None, None, None]
    return np.sin(inputs["sample"] * np.float32(0.8) + inputs["timestep"][:, :, None, None] / np.float32(300) + prompt)


def floats(*values: float) -> Array:
    return np.array([values], np.float32)


def drawn(unet: Unet | None = None, **inputs: Array) -> ImageTask:
    task = begun(request(**{**SDE, **inputs}))
    finish(DenoisingLoop(unet or Unet(answer), 16), task)
    return task


def test_a_run_calls_the_network_twice_in_a_step_but_once_in_the_last() -> None:
    unet = Unet(answer)
    task = begun(request(**SDE))
    assert (task.step, task.end, task.runs[0].steps_left) == (0, 5, {Variant.FULL: 9})
    loop, steps = DenoisingLoop(unet, 16), []
    while not task.done:
        loop.advance([task])
        steps.append(task.step)
    assert steps == [0, 1, 1, 2, 2, 3, 3, 4, 5]
    assert len(unet.calls) == 9


@pytest.mark.parametrize(("strength", "begin", "calls"), [(0.2, 4, 1), (0.4, 3, 3), (1.0, 0, 9)])
def test_a_run_from_a_picture_joins_at_a_whole_step(strength: float, begin: int, calls: int) -> None:
    unet = Unet(answer)
    asked = {**SDE, "init_image": np.zeros((1, 64, 64, 3), np.uint8), "strength": floats(strength)}
    task = begun(request(**asked))
    assert (task.step, task.end) == (begin, 5)
    finish(DenoisingLoop(unet, 16), task)
    assert (len(unet.calls), task.step) == (calls, 5)


def test_guidance_begins_and_ends_with_steps() -> None:
    unet = Unet(answer)
    drawn(unet, guidance_interval=floats(0.2, 0.6))
    assert [call["sample"][0] for call in unet.calls] == [1, 1, 2, 2, 2, 2, 1, 1, 1]


def test_watchers_are_told_of_whole_steps() -> None:
    unet = SteppedUnet()
    with serving(unet=unet) as service:
        ask(service, ticket=text("t"), run_id=text("run"), after_step=whole(-1)).wait()
        draw(service, ticket=text("t"), run_id=text("run"), **SDE)
        for step in range(4):
            unet.allow(2)
            found = watch(service, "run", step).wait().outputs
            assert found is not None
            assert (found["step"].item(), found["num_inference_steps"].item()) == (step + 1, 5)


def test_segments_draw_what_a_whole_run_draws() -> None:
    first = drawn(step_end=whole(2))
    assert first.step == first.end == 2
    state = first.runs[0].state
    rest = drawn(step_begin=whole(2), latents=state.sample[None], solver_memory=state.memory[None])
    assert rest.runs[0].state.sample.tobytes() == drawn().runs[0].state.sample.tobytes()


def test_a_row_has_the_same_bytes_alone_and_with_others() -> None:
    others = ("ddim", "euler_a", "dpmpp_2s", "unipc", "dpmpp_sde_karras", "dpmpp_sde", "dpmpp_2m_sde")
    asked = [
        request(seed=np.array([[seed]]), scheduler=text(name), num_inference_steps=whole(3 + seed))
        for seed, name in enumerate(others)
    ]

    def latents(task: ImageTask) -> bytes:
        return task.runs[0].state.sample.tobytes()

    together = [begun(inputs) for inputs in asked]
    finish(DenoisingLoop(Unet(answer), 16), *together)
    for inputs, task in zip(asked, together, strict=True):
        alone = begun(inputs)
        finish(DenoisingLoop(Unet(answer), 16), alone)
        assert latents(alone) == latents(task)


CUT = pipeline(cache=FeatureCache(branch=0, channels=2))


def test_kept_features_are_kept_over_calls() -> None:
    unet = Unet(answer, features)
    task = begun(request(**SDE, cache_interval=whole(3)), CUT)
    finish(DenoisingLoop(unet, 16), task)
    assert [number for number, variant in enumerate(unet.variants) if variant is Variant.FULL] == [0, 3, 6]


def test_a_segment_that_needs_kept_features_is_refused_with_the_steps_that_do_not() -> None:
    kept = {"latents": np.zeros((1, 4, 8, 8), np.float32), "solver_memory": np.zeros((1, 4, 4, 8, 8), np.float32)}
    with pytest.raises(InvalidRequestError, match=r"step_begin: 1 is not allowed; it must be one of \[0, 2, 4\]"):
        begun(request(**SDE, cache_interval=whole(4), step_begin=whole(1), **kept), CUT)
    begun(request(**SDE, cache_interval=whole(4), step_begin=whole(2), **kept), CUT)


def test_a_calibration_has_curves_over_calls() -> None:
    level = {"threshold": 0.15, "psnr": 33.0}
    raw = {"scheduler": "dpmpp_sde", "steps": 5, "levels": dict.fromkeys(Level, level)}
    found = CacheCalibration.parse({**raw, "curves": [[0.1] * 9]})
    assert found.plan(Level.LIGHT, 0).full == {0, 2, 4, 6, 8}
    with pytest.raises(ValueError, match=r"a curve of \[5\] steps is not allowed"):
        CacheCalibration.parse({**raw, "curves": [[0.1] * 5]})

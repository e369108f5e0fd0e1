"""The loop with UNets whose answers are known in closed form."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from nereid.diffusion.feature_cache import CacheCalibration, CalibratedLevel, Level
from nereid.diffusion.loop import DenoisingLoop
from nereid.diffusion.options import first_step
from nereid.diffusion.plan import OUT, commit, pack
from nereid.diffusion.requests import guidance_embedding, parse_image_request
from nereid.diffusion.settings import Limits, Pipeline
from nereid.diffusion.state import ImageTask
from nereid.engines.costs import StepCosts
from nereid.flow.errors import EngineError, InvalidRequestError
from nereid.flow.noise import Purpose, derived_seed, normal
from nereid_protocol.field import MAX_SEED

from image_forms import Array, Unet, begun, known, pipeline, request, text, whole


def run(
    unet: Unet,
    *requests: dict[str, Array],
    max_batch_size: int = 16,
    facts: Pipeline | None = None,
    costs: StepCosts | None = None,
) -> list[ImageTask]:
    loop = DenoisingLoop(unet, max_batch_size, costs or StepCosts())
    limits = Limits(unet_max_batch_size=max_batch_size)
    tasks = [begun(inputs, facts or pipeline(), limits) for inputs in requests]
    while waiting := [task for task in tasks if not task.done and task.error is None]:
        loop.advance(waiting)
    return tasks


def test_unet_that_predicts_no_noise_scales_the_sample_by_the_signal() -> None:
    """With zero noise predicted, DDIM's sample / sqrt(alpha) never changes, so the end is the start over sqrt(alpha)."""
    (task,) = run(Unet(), request(scheduler=np.array([[b"ddim"]], object)))
    table = task.request.rows[0].table
    start = normal(3, Purpose.INITIAL_LATENTS, (4, 8, 8))
    end = task.runs[0].state.sample
    ratio = end / start
    assert np.allclose(ratio, ratio.mean(), rtol=1e-4)
    assert ratio.mean() == pytest.approx(1 / table.levels[0, 0], rel=1e-3)


def test_guidance_pushes_away_from_the_negative_prompt() -> None:
    """Outputs are the mean of the embeddings: 1 and -1, so guidance 4 makes -1 + 4 * 2 = 7."""
    task = begun(request(guidance_scale=np.array([[4.0]], np.float32)), pipeline(), Limits())
    call = pack(task.runs)
    inputs = call.inputs
    mean = inputs["encoder_hidden_states"].mean((1, 2))[:, None, None, None]
    commit(task.runs, call, {OUT: np.broadcast_to(mean, inputs["sample"].shape)})
    clean = task.runs[0].state.memory[1]
    weights = task.request.rows[0].table.clean[0]
    assert np.allclose((clean - weights[0] * inputs["sample"][0]) / weights[1], 7.0, atol=1e-4)


def test_requests_with_anything_different_but_their_shape_share_a_call() -> None:
    unet = Unet()
    run(
        unet,
        request(num_inference_steps=whole(4), scheduler=np.array([[b"unipc"]], object)),
        request(num_inference_steps=whole(4), guidance_scale=np.array([[1.0]], np.float32)),
        request(num_inference_steps=whole(4), seed=np.array([[9]]), scheduler=np.array([[b"ddpm"]], object)),
        costs=known(begun(request()).runs[0]),
    )
    assert [call["sample"][0] for call in unet.calls] == [2 + 1 + 2] * 4


def test_until_it_is_known_what_they_cost_calls_have_one_image_and_then_twice_as_many() -> None:
    unet = Unet()
    run(unet, *(request(num_inference_steps=whole(1), guidance_scale=np.array([[1.0]], np.float32)) for _ in range(3)))
    assert [call["sample"][0] for call in unet.calls] == [1, 2]


def test_pictures_of_different_sizes_do_not_share_a_call() -> None:
    unet = Unet()
    run(unet, request(num_inference_steps=whole(1)), request(num_inference_steps=whole(1), width=whole(128)))
    assert sorted(call["sample"] for call in unet.calls) == [(2, 4, 8, 8), (2, 4, 8, 16)]


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_no_call_exceeds_the_engines_batch(limit: int) -> None:
    unet = Unet()
    run(unet, *(request(num_inference_steps=whole(2), seed=np.array([[i]])) for i in range(5)), max_batch_size=limit)
    assert max(call["sample"][0] for call in unet.calls) <= limit
    assert sum(call["sample"][0] for call in unet.calls) == 5 * 2 * 2


def test_failed_call_fails_only_the_requests_in_it() -> None:
    def answer(inputs: Mapping[str, Array]) -> Array:
        if inputs["sample"].shape[-1] == 16:
            raise EngineError("unet: broken")
        return np.zeros_like(inputs["sample"])

    good, bad = run(Unet(answer), request(), request(width=whole(128)))
    assert good.done
    assert str(bad.error) == "unet: broken"


def test_few_step_model_warns_of_guidance() -> None:
    facts = pipeline(few_step=True, default_guidance=1.0, default_steps=4)
    limits = Limits()
    assert parse_image_request(request(), facts, limits).warnings == ()
    guided = parse_image_request(request(guidance_scale=np.array([[7.0]], np.float32)), facts, limits)
    assert "guidance_scale: 7 is unsuitable" in guided.warnings[0]


@pytest.mark.parametrize(("scheduler", "guidance", "said"), [("lcm", 7.0, 1), ("tcd", 7.0, 1), ("lcm", 1.5, 0), ("ddim", 7.0, 0)])
def test_a_few_step_scheduler_warns_of_guidance_whatever_the_checkpoint(scheduler: str, guidance: float, said: int) -> None:
    """A LoRA has made a few-step model of it."""
    asked = request(scheduler=text(scheduler), guidance_scale=np.array([[guidance]], np.float32))
    assert len(parse_image_request(asked, pipeline(), Limits()).warnings) == said


@pytest.mark.parametrize(("interval", "said"), [((0.0, 0.1), 1), ((0.0, 0.3), 0), ((1.0, 1.0), 0)])
def test_an_interval_of_guidance_in_which_no_step_begins_warns(interval: tuple[float, float], said: int) -> None:
    asked = request(guidance_interval=np.array([interval], np.float32), num_inference_steps=np.array([[4]], np.int32))
    warnings = parse_image_request(asked, pipeline(), Limits()).warnings
    assert [warning.startswith("guidance_interval: no step of 4 begins within 0 to 0.1") for warning in warnings] == [True] * said


def test_a_calibrated_level_warns_of_what_it_was_not_measured_at() -> None:
    level = CalibratedLevel(threshold=0.1, psnr=30.0)
    found = CacheCalibration(scheduler="ddim", steps=5, curves=((0.2,) * 5,), levels={Level.LIGHT: level})
    facts = pipeline(guidance_calibrations=(found,))
    for more, said in (({}, 0), ({"guidance_scale": np.array([[9]], np.float32)}, 1), ({"width": whole(128)}, 1)):
        warnings = parse_image_request(request(guidance_cache=text("light"), **more), facts, Limits()).warnings
        assert len(warnings) == said
        assert all("guidance_cache: 'light' was measured at guidance_scale 7.5 and 64 x 64" in text for text in warnings)


def test_more_steps_than_training_has_are_refused_by_name() -> None:
    with pytest.raises(InvalidRequestError, match="num_inference_steps: 1000 is not allowed"):
        parse_image_request(request(num_inference_steps=whole(1000)), pipeline(), Limits(max_steps=1000))


def test_guidance_distilled_model_is_told_its_guidance_and_runs_no_unconditional_half() -> None:
    unet = Unet()
    run(unet, request(num_inference_steps=whole(2)), facts=pipeline(time_cond_proj_dim=8))
    assert unet.calls[0]["timestep_cond"] == (1, 8)


def test_guidance_embedding_equals_diffusers() -> None:
    torch = pytest.importorskip("torch")
    from diffusers import LatentConsistencyModelPipeline

    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, torch.tensor([6.5]), 32)
    assert np.allclose(guidance_embedding(7.5, 32), theirs.numpy()[0], atol=1e-4)


@pytest.mark.parametrize(("steps", "strength", "first"), [(20, 0.7, 6), (20, 1.0, 0), (10, 0.3, 7), (50, 0.8, 10)])
def test_strength_as_float32_takes_no_step_away(steps: int, strength: float, first: int) -> None:
    assert first_step(steps, float(np.float32(strength))) == first


def test_noise_is_a_pure_function_of_seed_purpose_and_step() -> None:
    first = normal(5, Purpose.SOLVER_STEP, (3, 4), step=2)
    assert np.array_equal(first, normal(5, Purpose.SOLVER_STEP, (3, 4), step=2))
    others = [normal(6, Purpose.SOLVER_STEP, (3, 4), step=2), normal(5, Purpose.SOLVER_STEP, (3, 4), step=3)]
    others.append(normal(5, Purpose.INITIAL_LATENTS, (3, 4), step=2))
    assert not any(np.array_equal(first, other) for other in others)


def test_noise_is_standard_normal_across_seeds() -> None:
    """Mean and variance of 400,000 numbers, each within five standard errors."""
    values = np.concatenate([normal(seed, Purpose.INITIAL_LATENTS, (1000,)) for seed in range(400)])
    assert abs(values.mean()) < 5 / np.sqrt(values.size)
    assert abs(values.var() - 1) < 5 * np.sqrt(2 / values.size)


def test_derived_seeds_differ_and_stay_in_range() -> None:
    seeds = {derived_seed(seed, index) for seed in (0, 1, MAX_SEED) for index in range(50)}
    assert len(seeds) == 150
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
    assert derived_seed(77, 0) == 77


def test_limits_name_the_parameter_that_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"max_inflight.*'many'"):
        Limits.from_parameters({"max_inflight": "many"})
    with pytest.raises(ValueError, match=r"max_pixels: 0 is not allowed; it must be 1 to"):
        Limits.from_parameters({"max_pixels": "0"})
    assert Limits.from_parameters({"max_queue": "0"}).max_queue == 0


def test_prompt_embeddings_are_required() -> None:
    with pytest.raises(InvalidRequestError, match="prompt_embeds"):
        parse_image_request({}, pipeline(), Limits())

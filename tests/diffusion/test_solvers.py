"""Every scheduler against diffusers' own, driven with the same model outputs and the same noise."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from nereid.diffusion.solvers import (
    SCHEDULERS,
    ScheduleError,
    SchedulerConfig,
    SchedulerName,
    SolverState,
    Spacing,
    advance,
    build_table,
    default_scheduler,
    needs_noise,
)
from nereid.diffusion.solvers.choices import ETA, SIGMAS, TIMESTEPS
from nereid.diffusion.solvers.schedule import spaced_timesteps

diffusers = pytest.importorskip("diffusers")
from diffusers_runs import SHAPE, BrownianPath, model, noise_at, run_diffusers, run_ours, scheduler_class

pytestmark = pytest.mark.torch

SD15 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def reference(name: SchedulerName, config: dict[str, Any]) -> Any:
    """The diffusers scheduler that `name` stands for."""
    classes = {
        "ddpm": (diffusers.DDPMScheduler, {}),
        "ddim": (diffusers.DDIMScheduler, {}),
        "euler": (diffusers.EulerDiscreteScheduler, {}),
        "euler_a": (diffusers.EulerAncestralDiscreteScheduler, {}),
        "dpmpp_2s": (diffusers.DPMSolverSinglestepScheduler, {"lower_order_final": True}),
        "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}),
        "dpmpp_3m": (diffusers.DPMSolverMultistepScheduler, {"solver_order": 3}),
        "dpmpp_2m_sde": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
        "dpmpp_sde": (scheduler_class("DPMSolverSDEScheduler"), {}),
        "lcm": (diffusers.LCMScheduler, {}),
        "tcd": (diffusers.TCDScheduler, {}),
        "unipc": (diffusers.UniPCMultistepScheduler, {}),
    }
    kind, extra = classes[name.family]
    if name.karras:
        extra = {**extra, "use_karras_sigmas": True}
    return kind.from_config({**config, **extra})


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 1e-5


@pytest.mark.parametrize("steps", [1, 4, 20, 50])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_whole_run_equals_diffusers(name: SchedulerName, prediction: str, steps: int) -> None:
    config = {**SD15, "prediction_type": prediction}
    assert_close(run_ours(name, config, steps), run_diffusers(reference(name, config), steps))


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name not in (SchedulerName.LCM, SchedulerName.TCD)])
def test_every_timestep_spacing_equals_diffusers(name: SchedulerName, spacing: str) -> None:
    config = {**SD15, "timestep_spacing": spacing}
    assert_close(run_ours(name, config, 13), run_diffusers(reference(name, config), 13))


@pytest.mark.parametrize("train", [50, 999, 1000])
@pytest.mark.parametrize("spacing", Spacing)
def test_every_number_of_steps_visits_as_many_timesteps(spacing: Spacing, train: int) -> None:
    """61 of 1000, for one: with trailing timesteps, rounding once made a last one below 0 of it."""
    config = SchedulerConfig(num_train_timesteps=train, timestep_spacing=spacing)
    for steps in [*range(1, 100), train - 1, train]:
        if steps > train:
            continue
        for intervals in (False, True):
            visited = spaced_timesteps(config, steps, spacing, intervals=intervals)
            assert len(visited) == steps
            assert visited.min() >= 0


def test_trailing_timesteps_that_clipping_leaves_no_room_for_are_refused() -> None:
    config = SchedulerConfig.from_diffusers(
        {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -2.0, "timestep_spacing": "trailing"}
    )
    with pytest.raises(
        ScheduleError, match="num_inference_steps: 50 is not allowed; with this spacing, lambda_min_clipped leaves"
    ):
        build_table(SchedulerName.DPMPP_2M, config, 50)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_run_from_an_image_equals_diffusers(name: SchedulerName) -> None:
    image = np.random.default_rng(7).standard_normal(SHAPE).astype(np.float32)
    theirs = run_diffusers(reference(name, SD15), 20, 8, image)
    assert_close(run_ours(name, SD15, 20, 8, image), theirs)


@pytest.mark.parametrize("begin", [0, 8])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_run_that_draws_a_part_anew_equals_diffusers(name: SchedulerName, begin: int) -> None:
    image = np.random.default_rng(7).standard_normal(SHAPE).astype(np.float32)
    mask = np.random.default_rng(8).random(SHAPE[2:]) < 0.5
    ours = run_ours(name, SD15, 20, begin, image, mask=mask)
    assert_close(ours, run_diffusers(reference(name, SD15), 20, begin, image, mask=mask))
    assert np.array_equal(ours[..., ~mask], image[..., ~mask])


def k_diffusion_dpmpp_sde(config: dict[str, Any], steps: int, eta: float) -> np.ndarray:
    """k-diffusion's `sample_dpmpp_sde` in its own units, written from its formulas."""
    scheduler = reference(SchedulerName.DPMPP_SDE, config)
    scheduler.set_timesteps(steps)
    timesteps, levels = scheduler.timesteps.numpy(), [*scheduler.sigmas.numpy().astype(float)[::2], 0.0]
    path = BrownianPath()
    sample = noise_at(-1).astype(float) * levels[0]

    def predicted(x: np.ndarray, sigma: float, call: int) -> np.ndarray:
        path.call = call
        return x - sigma * model((x / np.sqrt(sigma**2 + 1)).astype(np.float32), float(timesteps[call]))

    def ancestral(start: float, end: float) -> tuple[float, float]:
        up = min(end, eta * np.sqrt(end**2 * (start**2 - end**2) / start**2))
        return np.sqrt(end**2 - up**2), up

    for i, (start, end) in enumerate(pairwise(levels)):
        clean = predicted(sample, start, 2 * i)
        if end == 0:
            sample = clean
            break
        middle = np.sqrt(start * end)
        down, up = ancestral(start, middle)
        half = down / start * sample + (1 - down / start) * clean + path(start, middle).numpy() * up
        clean = predicted(half, middle, 2 * i + 1)
        down, up = ancestral(start, end)
        sample = down / start * sample + (1 - down / start) * clean + path(start, end).numpy() * up
    return sample


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_the_share_of_fresh_noise_in_dpmpp_sde_is_k_diffusions(eta: float, steps: int) -> None:
    assert_close(run_ours(SchedulerName.DPMPP_SDE, SD15, steps, eta=eta), k_diffusion_dpmpp_sde(SD15, steps, eta))
    table = build_table(SchedulerName.DPMPP_SDE, replace(SchedulerConfig.from_diffusers(SD15), eta=eta), steps)
    noisy = [needs_noise(table, call) for call in range(len(table))]
    assert noisy == [eta > 0] * (len(table) - 1) + [False]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_table_has_as_many_rows_as_the_network_is_called(name: SchedulerName) -> None:
    config = SchedulerConfig.from_diffusers(SD15)
    assert [name.first_call(step, 4) for step in range(5)] == ([0, 2, 4, 6, 7] if "dpmpp_sde" in name else [0, 1, 2, 3, 4])
    for begin in range(4):
        table = build_table(name, config, 4, begin)
        assert len(table) == name.calls(4) - name.first_call(begin, 4)
        assert table.calls_per_step == name.calls_per_step
    assert len(build_table(name, config, 1)) == 1


@pytest.mark.parametrize("name", ["ddim", "euler", "euler_a", "dpmpp_2m", "unipc"])
def test_zero_terminal_snr_equals_diffusers(name: str) -> None:
    config = {
        **SD15,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    assert_close(run_ours(SchedulerName(name), config, 20), run_diffusers(reference(SchedulerName(name), config), 20))


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", ["ddpm", "ddim", "euler", "dpmpp_3m"])
def test_other_beta_schedules_equal_diffusers(name: str, schedule: str) -> None:
    config = {"beta_schedule": schedule, "clip_sample": False}
    assert_close(run_ours(SchedulerName(name), config, 20), run_diffusers(reference(SchedulerName(name), config), 20))


@pytest.mark.parametrize("steps", [1, 2, 8, 50])
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("name", [name for name in ETA if name.family is not SchedulerName.DPMPP_SDE])
def test_stochastic_runs_equal_diffusers(name: SchedulerName, eta: float, steps: int) -> None:
    config = {**SD15, "prediction_type": "v_prediction"}
    assert_close(run_ours(name, config, steps, eta=eta), run_diffusers(reference(name, config), steps, eta=eta))


@pytest.mark.parametrize("eta", [0.2, 0.3, 0.6, 0.8, 0.9])
def test_tcd_with_an_eta_of_a_request_equals_diffusers(eta: float) -> None:
    """It comes as float32; a product with a timestep that should be whole must not lose one to its last digit."""
    timesteps = [990, 700, 350, 90, 10]
    theirs = run_diffusers(reference(SchedulerName.TCD, SD15), 0, timesteps=timesteps, eta=eta)
    for given in (eta, float(np.float32(eta))):
        assert_close(run_ours(SchedulerName.TCD, SD15, 5, timesteps=timesteps, eta=given), theirs)


@pytest.mark.parametrize("name", ["lcm", "tcd"])
@pytest.mark.parametrize("steps", [1, 4])
def test_distillation_in_more_steps_than_were_trained_is_refused(name: str, steps: int) -> None:
    with pytest.raises(ScheduleError, match="original_inference_steps: 50 is not allowed; it must be 20 at most"):
        build_table(SchedulerName(name), SchedulerConfig(num_train_timesteps=20), steps)


@pytest.mark.parametrize("timesteps", [[999], [999, 499], [999, 850, 736, 645, 545, 455, 343, 233, 124, 24], [700, 3, 0]])
@pytest.mark.parametrize("name", TIMESTEPS)
def test_timesteps_of_a_request_equal_diffusers(name: SchedulerName, timesteps: list[int]) -> None:
    """Among them those of Align Your Steps (Sabour et al., 2024)."""
    theirs = run_diffusers(reference(name, SD15), 0, timesteps=timesteps)
    assert_close(run_ours(name, SD15, len(timesteps), timesteps=timesteps), theirs)


@pytest.mark.parametrize(
    "sigmas", [[14.615, 0.0], [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]]
)
@pytest.mark.parametrize("name", SIGMAS)
def test_sigmas_of_a_request_equal_diffusers(name: SchedulerName, sigmas: list[float]) -> None:
    assert_close(run_ours(name, SD15, len(sigmas) - 1, sigmas=sigmas), run_diffusers(reference(name, SD15), 0, sigmas=sigmas))


@pytest.mark.parametrize(
    ("name", "chosen", "words"),
    [
        ("ddim", {"timesteps": (999, 499)}, "timesteps: it has no meaning for scheduler ddim; these take it: ddpm, euler"),
        ("dpmpp_2m_karras", {"timesteps": (999, 499)}, "timesteps: it has no meaning for scheduler dpmpp_2m_karras"),
        ("lcm", {"sigmas": (14.0, 1.0, 0.0)}, "sigmas: it has no meaning for scheduler lcm; these take it: euler"),
        (
            "euler",
            {"eta": 0.5},
            "eta: it has no meaning for scheduler euler; these take it: ddim, dpmpp_sde, ",
        ),
        ("euler", {"timesteps": (499, 999)}, "timesteps: .* is not allowed; they must fall, from 999"),
        ("euler", {"timesteps": (999, 999)}, "timesteps: "),
        ("euler", {"timesteps": (1000, 1)}, "timesteps: "),
        ("euler", {"timesteps": (5, -1)}, "timesteps: "),
        ("euler", {"sigmas": (14.0, 1.0, 1.0)}, "sigmas: "),
        ("euler", {"sigmas": (float("inf"), 1.0, 0.0)}, "sigmas: "),
        ("euler", {"sigmas": (1.0, 0.5, -0.1)}, "sigmas: "),
        ("euler", {"sigmas": (14.0, 1.0, 0.0), "timesteps": (9, 1)}, "sigmas: they are not allowed with timesteps"),
        ("euler", {"timesteps": (9, 5, 1)}, "num_inference_steps: 2 is not allowed with timesteps of 3 steps"),
        ("euler", {"sigmas": (9.0, 1.0)}, "num_inference_steps: 2 is not allowed with sigmas of 1 steps"),
    ],
)
def test_choices_that_the_solver_does_not_take_are_refused_by_name(name: str, chosen: dict[str, Any], words: str) -> None:
    with pytest.raises(ScheduleError, match=words):
        build_table(SchedulerName(name), replace(SchedulerConfig(), **chosen), 2)


def test_rows_of_different_runs_advance_as_if_alone() -> None:
    config = SchedulerConfig.from_diffusers(SD15)
    names = list(SCHEDULERS)
    tables = [build_table(name, config, 5 + i) for i, name in enumerate(names)]
    steps = [min(i, len(table) - 1) for i, table in enumerate(tables)]
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((len(names), 4, 6, 5)).astype(np.float32)
    memory = rng.standard_normal((len(names), 4, 4, 6, 5)).astype(np.float32)
    clean = rng.standard_normal(samples.shape).astype(np.float32)
    noises = [
        noise_at(i)[0] if needs_noise(table, step) else None for i, (table, step) in enumerate(zip(tables, steps, strict=True))
    ]
    together = [SolverState(samples[i].copy(), memory[i].copy()) for i in range(len(names))]
    advance(tables, steps, together, clean, noises)
    for i in range(len(names)):
        alone = SolverState(samples[i].copy(), memory[i].copy())
        advance([tables[i]], [steps[i]], [alone], clean[i : i + 1], [noises[i]])
        assert np.array_equal(alone.sample, together[i].sample)
        assert np.array_equal(alone.memory, together[i].memory)


def test_what_a_row_does_not_use_cannot_reach_it() -> None:
    """A row's solver may leave values behind that its next step has no weight for, infinite or not a number."""
    config = SchedulerConfig.from_diffusers(SD15)
    table, company = build_table(SchedulerName.EULER, config, 5), build_table(SchedulerName.DPMPP_3M, config, 5)
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((2, 4, 6, 5)).astype(np.float32)
    clean = rng.standard_normal(samples.shape).astype(np.float32)
    memory = rng.standard_normal((2, 4, 4, 6, 5)).astype(np.float32)
    memory[0] = np.nan
    memory[0, 1] = np.inf
    alone = SolverState.start(samples[0].copy())
    advance([table], [2], [alone], clean[:1], [None])
    states = [SolverState(samples[row].copy(), memory[row].copy()) for row in range(2)]
    advance([table, company], [2, 2], states, clean, [None, None])
    assert np.array_equal(states[0].sample, alone.sample)
    assert np.isfinite(states[1].sample).all()


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"_class_name": "PNDMScheduler"}, "dpmpp_2m"),
        ({"_class_name": "DDIMScheduler"}, "ddim"),
        ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}, "euler_karras"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "dpmpp_3m"),
        ({"_class_name": "LCMScheduler"}, "lcm"),
        ({"_class_name": "DPMSolverSDEScheduler"}, "dpmpp_sde"),
        ({"_class_name": "DPMSolverSDEScheduler", "use_karras_sigmas": True}, "dpmpp_sde_karras"),
    ],
)
def test_checkpoint_scheduler_is_recognised(config: dict[str, Any], name: str) -> None:
    assert default_scheduler(config) == name


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"clip_sample": True}, "clip_sample"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule"),
        ({"prediction_type": "flow_prediction"}, "prediction_type"),
        ({"variance_type": "learned_range"}, "variance_type"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ScheduleError, match=words):
        SchedulerConfig.from_diffusers(config)


@pytest.mark.parametrize(("name", "steps"), [("lcm", 51), ("ddim", 1001), ("euler", 0), ("dpmpp_2m", 1000)])
def test_step_counts_out_of_range_are_refused(name: str, steps: int) -> None:
    with pytest.raises(ScheduleError, match="num_inference_steps"):
        build_table(SchedulerName(name), SchedulerConfig(), steps)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 4, 13])
def test_lcm_from_zero_signal_equals_diffusers(prediction: str, steps: int) -> None:
    config = {**SD15, "prediction_type": prediction, "rescale_betas_zero_snr": True}
    ours = run_ours(SchedulerName.LCM, config, steps)
    assert np.isfinite(ours).all()
    assert_close(ours, run_diffusers(reference(SchedulerName.LCM, config), steps))


def test_lcm_that_predicts_noise_cannot_start_from_zero_signal() -> None:
    with pytest.raises(ScheduleError, match="rescale_betas_zero_snr"):
        build_table(SchedulerName.LCM, SchedulerConfig.from_diffusers({**SD15, "rescale_betas_zero_snr": True}), 4)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_lu_lambdas": True},
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"},
        {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 1},
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "solver_order": 3},
        {"_class_name": "DPMSolverSinglestepScheduler", "solver_order": 3},
        {"_class_name": "UniPCMultistepScheduler", "predict_x0": False},
        {"_class_name": "UniPCMultistepScheduler", "disable_corrector": [0]},
    ],
)
def test_settings_that_the_solver_does_not_do_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ScheduleError, match=list(settings)[-1]):
        SchedulerConfig.from_diffusers({**SD15, **settings})

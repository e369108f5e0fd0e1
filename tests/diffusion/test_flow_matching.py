"""Solvers of a rectified flow against diffusers', and what a flow's scheduler file and requests may say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nereid.diffusion.solvers import (
    ScheduleError,
    SchedulerConfig,
    SchedulerName,
    Spacing,
    build_table,
    default_scheduler,
    noise_levels,
    require_spacing,
)
from nereid.diffusion.solvers.choices import FLOW as FLOW_SOLVERS
from nereid.diffusion.solvers.terms import Term

diffusers = pytest.importorskip("diffusers")
from diffusers_runs import noise_at, run_diffusers, run_ours

pytestmark = pytest.mark.torch

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 1e-5


@pytest.mark.parametrize("steps", [1, 4, 16])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_euler_equals_diffusers_flow_matching(shift: float, steps: int) -> None:
    config = {**FLOW, "shift": shift}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.init_noise_sigma, scheduler.scale_model_input = 1.0, lambda sample, timestep: sample
    theirs = run_diffusers(scheduler, steps, sigmas=list(np.linspace(1, 1 / steps, steps)))
    assert_close(run_ours(SchedulerName.EULER, config, steps), theirs)


@pytest.mark.parametrize("kind", ["FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"])
def test_lcm_of_a_flow_is_diffusers_stochastic_euler_and_its_lcm(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    steps = 6
    scheduler = getattr(diffusers, kind)(shift=0.5)
    scheduler.init_noise_sigma, scheduler.scale_model_input = 1.0, lambda sample, timestep: sample
    if kind == "FlowMatchEulerDiscreteScheduler":
        scheduler.register_to_config(stochastic_sampling=True)
        # Only Euler draws here: it has no other noise than this, and steps count themselves.
        monkeypatch.setattr(torch, "randn_like", lambda like: torch.from_numpy(noise_at(scheduler.step_index)))
    theirs = run_diffusers(scheduler, steps, sigmas=list(np.linspace(1, 1 / steps, steps)))
    assert_close(run_ours(SchedulerName.LCM, {**FLOW, "shift": 0.5}, steps), theirs)


def test_a_file_of_diffusers_flow_lcm_means_lcm_on_the_same_levels() -> None:
    """As diffusers writes it, with a shift."""
    config = dict(diffusers.FlowMatchLCMScheduler(shift=0.3).config)
    settings = {**config, "_class_name": "FlowMatchLCMScheduler"}
    assert default_scheduler(settings) is SchedulerName.LCM
    assert SchedulerConfig.from_diffusers(settings) == SchedulerConfig.from_diffusers({**FLOW, "shift": 0.3})
    SchedulerConfig.from_diffusers({**settings, "scale_factors": [], "upscale_mode": "nearest"})


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("scale_factors", [0.5, 0.75], r"\[0.5, 0.75\] is not supported; it must be \[\]"),
        ("use_dynamic_shifting", True, "True is not supported; it must be false"),
        ("shift_terminal", 0.1, "0.1 is not supported; it must be null"),
        ("invert_sigmas", True, "True is not supported; it must be false"),
        ("use_beta_sigmas", True, "True is not supported; it must be false"),
    ],
)
def test_what_would_change_a_flow_lcms_answer_is_refused_by_name(setting: str, value: object, said: str) -> None:
    with pytest.raises(ScheduleError, match=f"scheduler setting {setting}: {said}"):
        SchedulerConfig.from_diffusers({"_class_name": "FlowMatchLCMScheduler", setting: value})


@pytest.mark.parametrize(("kind", "setting"), [("LCM", "stochastic_sampling"), ("EulerDiscrete", "scale_factors")])
def test_a_setting_of_the_other_flow_class_is_not_known(kind: str, setting: str) -> None:
    with pytest.raises(ScheduleError, match=f"scheduler setting {setting} is not known"):
        SchedulerConfig.from_diffusers({"_class_name": f"FlowMatch{kind}Scheduler", setting: True})


def test_linspace_visits_diffusers_own_levels() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(7)
    config = replace(SchedulerConfig.from_diffusers({**FLOW, "shift": 3.0}), timestep_spacing=Spacing.LINSPACE)
    table = build_table(SchedulerName.EULER, config, 7)
    np.testing.assert_allclose(table.timesteps, scheduler.timesteps.numpy(), rtol=1e-5)


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "unipc"])
def test_solvers_with_memory_equal_diffusers_on_the_same_levels(name: str, steps: int) -> None:
    import torch

    options: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    kinds = {
        "dpmpp_2m": lambda: diffusers.DPMSolverMultistepScheduler(**options),
        "dpmpp_3m": lambda: diffusers.DPMSolverMultistepScheduler(**options, solver_order=3),
        "unipc": lambda: diffusers.UniPCMultistepScheduler(**options),
    }
    scheduler = kinds[name]()
    told = scheduler.set_timesteps
    levels = np.append(np.linspace(1, 1 / steps, steps), 0.0)
    levels[0] = 1 - 2.0**-24  # pure noise has no logarithm of a ratio

    def set_timesteps(count: int) -> None:
        told(count)
        scheduler.sigmas = torch.from_numpy(levels.astype(np.float32))
        scheduler.timesteps = torch.from_numpy(np.float32(1000) * np.linspace(1, 1 / steps, steps).astype(np.float32))

    scheduler.set_timesteps = set_timesteps
    assert_close(run_ours(SchedulerName(name), FLOW, steps), run_diffusers(scheduler, steps))


def test_given_sigmas_are_a_run_from_the_middle() -> None:
    config = SchedulerConfig.from_diffusers(FLOW)
    whole = build_table(SchedulerName.EULER, config, 4)
    rest = build_table(SchedulerName.EULER, replace(config, sigmas=(0.5, 0.25, 0.0)), 2)
    np.testing.assert_allclose(rest.timesteps, whole.timesteps[2:])
    np.testing.assert_allclose(rest.next_sample, whole.next_sample[2:], atol=1e-7)


@pytest.mark.parametrize("spacing", [Spacing.TRAILING, Spacing.LINSPACE])
def test_lcm_of_a_flow_takes_sigmas_as_euler_does(spacing: Spacing) -> None:
    config = replace(SchedulerConfig.from_diffusers({**FLOW, "shift": 0.5}), timestep_spacing=spacing)
    whole = build_table(SchedulerName.LCM, config, 4)
    levels = tuple((whole.timesteps[2:] / 1000).tolist())
    rest = build_table(SchedulerName.LCM, replace(config, sigmas=(*levels, 0.0)), 2)
    np.testing.assert_allclose(rest.timesteps, whole.timesteps[2:])
    np.testing.assert_allclose(rest.next_sample, whole.next_sample[2:], atol=1e-7)


@pytest.mark.parametrize("name", FLOW_SOLVERS)
def test_every_solver_of_a_flow_takes_its_spacing(name: SchedulerName) -> None:
    require_spacing(name, SchedulerConfig.from_diffusers(FLOW))
    with pytest.raises(ScheduleError, match="timestep_spacing: it has no meaning for scheduler lcm; these take it: ddpm"):
        require_spacing(SchedulerName.LCM, SchedulerConfig())


@pytest.mark.parametrize("shift", [0.08, 1.0, 3.0])
def test_levels_from_the_middle_are_spaced_as_those_from_the_start(shift: float) -> None:
    whole = noise_levels(8, shift)
    assert (whole[0], whole[-1]) == (1, 0)
    np.testing.assert_allclose(noise_levels(3, shift, float(whole[2])), whole[2::2], rtol=1e-9)


def test_a_flow_is_euler_where_nobody_names_a_solver() -> None:
    assert default_scheduler(FLOW) is SchedulerName.EULER
    assert default_scheduler({**FLOW, "stochastic_sampling": False}) is SchedulerName.EULER


def test_a_flow_whose_file_says_stochastic_sampling_is_lcm() -> None:
    config = {**FLOW, "stochastic_sampling": True}
    assert default_scheduler(config) is SchedulerName.LCM
    assert build_table(SchedulerName.LCM, SchedulerConfig.from_diffusers(config), 4).next_sample[:3, Term.NOISE].all()


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("ddim", {}, "scheduler: ddim is not allowed for a rectified flow"),
        ("euler_karras", {}, "scheduler: euler_karras is not allowed"),
        ("euler", {"timesteps": (900, 100)}, "timesteps: they have no meaning for a rectified flow"),
        ("euler", {"timestep_spacing": Spacing.LEADING}, "timestep_spacing: leading is not allowed"),
        ("euler", {"sigmas": (1.5, 0.0)}, "sigmas: 1.5 is not allowed"),
    ],
)
def test_what_a_flow_does_not_take_is_refused_by_name(name: str, changes: dict[str, Any], said: str) -> None:
    config = replace(SchedulerConfig.from_diffusers(FLOW), **changes)
    with pytest.raises(ScheduleError, match=said):
        build_table(SchedulerName(name), config, config.steps(2))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting: True is not supported"),
        ({"stochastic_sampling": "yes"}, "stochastic_sampling: 'yes' is not supported"),
        ({"shift": 0}, "shift: 0 is not supported"),
        ({"beta_start": 0.1}, "beta_start is not known"),
    ],
)
def test_settings_of_a_flow_that_are_not_honoured_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ScheduleError, match=said):
        SchedulerConfig.from_diffusers({**FLOW, **settings})

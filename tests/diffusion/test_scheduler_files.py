"""Every setting of a checkpoint's scheduler_config.json is honoured as diffusers does, or refused by its name."""

from __future__ import annotations

import inspect
import itertools
import logging
from typing import Any

import numpy as np
import pytest

from nereid.diffusion.solvers import ScheduleError, SchedulerConfig, default_scheduler

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
from diffusers_runs import run_diffusers, run_ours, scheduler_class

pytestmark = pytest.mark.torch

VALUES: dict[str, list[Any]] = {
    "num_train_timesteps": [500],
    "beta_schedule": ["scaled_linear", "linear", "squaredcos_cap_v2", "sigmoid"],
    "beta_start": [0.00085],
    "trained_betas": [[0.001 + 0.00002 * i for i in range(1000)]],
    "prediction_type": ["v_prediction", "sample", "flow_prediction"],
    "timestep_spacing": ["leading", "linspace", "trailing"],
    "steps_offset": [1],
    "rescale_betas_zero_snr": [True],
    "clip_sample": [False, True],
    "clip_sample_range": [2.0],
    "thresholding": [True],
    "sample_max_value": [2.0],
    "set_alpha_to_one": [False, True],
    "use_karras_sigmas": [True],
    "use_exponential_sigmas": [True],
    "use_beta_sigmas": [True],
    "use_lu_lambdas": [True],
    "use_flow_sigmas": [True],
    "use_dynamic_shifting": [True],
    "flow_shift": [3.0],
    "final_sigmas_type": ["sigma_min"],
    "variance_type": ["fixed_small", "fixed_large", "fixed_small_log", "learned"],
    "algorithm_type": ["dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"],
    "solver_order": [1, 3],
    "solver_type": ["heun", "bh1"],
    "lower_order_final": [False],
    "euler_at_final": [True],
    "lambda_min_clipped": [-3.0],
    "sigma_min": [0.1],
    "sigma_max": [10.0],
    "interpolation_type": ["log_linear"],
    "timestep_type": ["continuous"],
    "original_inference_steps": [25],
    "timestep_scaling": [5.0],
    "predict_x0": [False],
    "disable_corrector": [[0]],
    "shift_terminal": [0.1],
}
CLASSES = [
    "DDPMScheduler",
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "LCMScheduler",
    "UniPCMultistepScheduler",
]


def settings_of(kind: Any) -> list[dict[str, Any]]:
    """The class's settings, one by one and in pairs."""
    names = [name for name in inspect.signature(kind.__init__).parameters if name in VALUES]
    single = [{name: value} for name in names for value in VALUES[name]]
    pairs = [{**a, **b} for a, b in itertools.combinations(single, 2) if a.keys() != b.keys()]
    lacking = "Ancestral" in kind.__name__ or "SDE" in kind.__name__  # diffusers' have no such prediction
    return [{}, *(made for made in single + pairs if not lacking or made.get("prediction_type") != "sample")]


def assert_honoured_or_refused(kind: Any, settings: dict[str, Any], steps: int) -> bool:
    name = kind.__name__
    config = {"_class_name": name, "clip_sample": False, **settings}
    try:
        with np.errstate(all="ignore"):
            ours = run_ours(default_scheduler(config), config, steps)
    except ScheduleError as error:
        if not any(setting in str(error) for setting in settings):
            raise
        return False
    assert np.isfinite(ours).all()
    scheduler = kind.from_config(config)
    try:
        with np.errstate(all="ignore"):
            theirs = run_diffusers(scheduler, steps)
    except torch.linalg.LinAlgError:
        return True
    if np.isfinite(theirs).all():  # UniPC of diffusers divides by the infinite length of a last step, or fails there
        # Euler in diffusers holds samples as large as their noise level, in float32.
        rounding = 3e-8 * float(scheduler.init_noise_sigma)
        assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < max(1e-5, rounding), (settings, steps)
    return True


@pytest.mark.parametrize("name", CLASSES)
def test_settings_alone_and_in_pairs_are_honoured_or_refused_by_name(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "diffusers")  # which warns of each
    kind = scheduler_class(name)
    honoured = [
        assert_honoured_or_refused(kind, settings, steps)
        for settings in settings_of(kind)
        for steps in ((1, 5, 20) if len(settings) < 2 else (20,))
    ]
    assert honoured[0]
    assert 0.2 * len(honoured) < sum(honoured) < len(honoured)


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_karras_levels_down_to_the_lowest_equal_diffusers(algorithm: str, solver_type: str) -> None:
    settings = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}
    more = {"algorithm_type": algorithm, "solver_type": solver_type}
    assert assert_honoured_or_refused(diffusers.DPMSolverMultistepScheduler, {**settings, **more}, 20)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_clipping_that_a_class_does_unasked_is_refused(name: str) -> None:
    with pytest.raises(ScheduleError, match=rf"clip_sample: True, which {name} takes where nothing is said"):
        SchedulerConfig.from_diffusers({"_class_name": name})


@pytest.mark.parametrize("settings", [{"beta_shedule": "linear"}, {"eta": 0.3}, {"max_shift": 1.15}])
def test_settings_that_nobody_knows_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ScheduleError, match=f"{next(iter(settings))} is not known"):
        SchedulerConfig.from_diffusers({"_class_name": "EulerDiscreteScheduler", **settings})


@pytest.mark.parametrize("name", ["FlowMatchHeunDiscreteScheduler", "EDMEulerScheduler", "Nonsense"])
def test_classes_of_other_noise_levels_are_refused_by_name(name: str) -> None:
    with pytest.raises(ScheduleError, match=f"scheduler {name} is not supported"):
        SchedulerConfig.from_diffusers({"_class_name": name})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_train_timesteps", 0),
        ("num_train_timesteps", "many"),
        ("num_train_timesteps", 10.5),
        ("beta_end", 2),
        ("trained_betas", [0.1, 0.2]),
        ("trained_betas", "none"),
        ("steps_offset", -1),
        ("original_inference_steps", 0),
        ("sigma_max", float("nan")),
        ("set_alpha_to_one", "false"),
        ("prediction_type", ["epsilon"]),
    ],
)
def test_values_of_another_kind_or_out_of_range_are_refused_by_name(setting: str, value: object) -> None:
    with pytest.raises(ScheduleError, match=f"scheduler setting {setting}"):
        SchedulerConfig.from_diffusers({setting: value})


def test_files_as_they_are_shipped_are_accepted() -> None:
    for name in CLASSES:
        SchedulerConfig.from_diffusers({**scheduler_class(name)().config, "clip_sample": False})
    shared = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "trained_betas": None}
    old = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1, **shared}
    SchedulerConfig.from_diffusers(old)
    turbo = {**old, "_class_name": "EulerAncestralDiscreteScheduler", "sample_max_value": 1.0, "interpolation_type": "linear"}
    SchedulerConfig.from_diffusers({**turbo, "timestep_spacing": "trailing", "use_karras_sigmas": False})

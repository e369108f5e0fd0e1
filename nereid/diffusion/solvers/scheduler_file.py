"""What a diffusers `scheduler_config.json` means, class by class: settings are resolved to values, or refused by name.

Knows which settings the solvers here honour, and nothing of how they do it. A setting is one of four: honoured, without effect,
allowed at the one value that changes nothing, or not known; the last is refused, for nobody knows what it would change.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any


class ScheduleError(ValueError):
    """A scheduler setting that cannot be honoured; the message names it."""


class PredictionType(StrEnum):
    """What the UNet predicts."""

    EPSILON = "epsilon"
    V_PREDICTION = "v_prediction"
    SAMPLE = "sample"
    FLOW = "flow_prediction"
    """A rectified flow's velocity, noise - clean."""


class Spacing(StrEnum):
    LINSPACE = "linspace"
    LEADING = "leading"
    TRAILING = "trailing"


_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "DDPMScheduler": {"clip_sample": True},
    "DDIMScheduler": {"clip_sample": True},
    "DPMSolverSinglestepScheduler": {"lower_order_final": False},
    "LCMScheduler": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "TCDScheduler": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "DPMSolverSDEScheduler": {"beta_start": 0.00085, "beta_end": 0.012},
    "HeunDiscreteScheduler": {"beta_start": 0.00085, "beta_end": 0.012},
    "KDPM2DiscreteScheduler": {"beta_start": 0.00085, "beta_end": 0.012},
    "KDPM2AncestralDiscreteScheduler": {"beta_start": 0.00085, "beta_end": 0.012},
}
"""What a class takes a setting for that its file does not name, where that is not what the solvers here take it for."""

_CLASSES = (
    *_DEFAULTS,
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "UniPCMultistepScheduler",
    # Trained on the same noise levels, and served by DPM++ 2M unless a request names another solver.
    "DEISMultistepScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
)

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "clip_sample": (False,),
    "thresholding": (False,),
    "use_flow_sigmas": (False,),
    "use_exponential_sigmas": (False,),
    "use_beta_sigmas": (False,),
    "use_lu_lambdas": (False,),
    "use_dynamic_shifting": (False,),
    "predict_epsilon": (True,),
    "shift_terminal": (),
    "solver_p": (),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
}
"""Settings that are honoured at these values (and null) only."""

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": tuple(Spacing),
    "final_sigmas_type": ("zero", "sigma_min"),
    "variance_type": ("fixed_small", "fixed_large"),
    "solver_type": ("midpoint", "heun", "bh1", "bh2", "logrho"),
}

_NUMBERS: Mapping[str, tuple[float, float]] = {
    "num_train_timesteps": (1, 100_000),
    "beta_start": (1e-8, 0.999),
    "beta_end": (1e-8, 0.999),
    "steps_offset": (0, 100_000),
    "lambda_min_clipped": (-math.inf, 100),
    "sigma_min": (1e-8, 1e8),
    "sigma_max": (1e-8, 1e8),
    "original_inference_steps": (1, 100_000),
    "timestep_scaling": (1e-8, 1e8),
}
_WHOLE = ("num_train_timesteps", "steps_offset", "original_inference_steps")
_FLAGS = ("set_alpha_to_one", "rescale_betas_zero_snr", "lower_order_final", "euler_at_final", "use_karras_sigmas")

_WITHOUT_EFFECT = (
    "skip_prk_steps",  # PNDM's own way to start
    "dynamic_thresholding_ratio",  # with `thresholding`
    "sample_max_value",
    "clip_sample_range",  # with `clip_sample`
    "flow_shift",  # with `use_flow_sigmas`
    "time_shift_type",  # with `use_dynamic_shifting`
    "noise_sampler_seed",  # requests bring their own
    "tensor_format",  # of old files
)
_FLOW_EULER, _FLOW_LCM = "FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"
FLOW_MATCHING = (_FLOW_EULER, _FLOW_LCM)
"""diffusers' schedulers of rectified flows."""
_FLOW_NUMBERS = {"num_train_timesteps": (1.0, 100_000.0), "shift": (1e-3, 1e3)}
_FLOW_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "use_dynamic_shifting": (False,),
    "use_karras_sigmas": (False,),
    "use_exponential_sigmas": (False,),
    "use_beta_sigmas": (False,),
    "invert_sigmas": (False,),
    "shift_terminal": (),
}
_FLOW_OWN: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    _FLOW_EULER: {"stochastic_sampling": (False, True)},  # `default_scheduler` reads it
    _FLOW_LCM: {"scale_factors": ([],)},  # else its samples grow from step to step
}
"""Settings that one class alone has."""
_FLOW_WITHOUT_EFFECT = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type")
"""With `use_dynamic_shifting`."""
_FLOW_WITHOUT_EFFECT_OWN = {_FLOW_EULER: (), _FLOW_LCM: ("upscale_mode",)}
"""With `scale_factors`."""
_READ_ELSEWHERE = ("algorithm_type", "solver_order", "predict_x0", "disable_corrector", "trained_betas")


def resolve(config: Mapping[str, Any], wanted: Collection[str]) -> dict[str, Any]:
    """The `wanted` settings of a scheduler_config.json, where it or its class says anything of them.

    Raises ScheduleError naming the first setting that cannot be honoured; names that begin with `_` are diffusers' own.
    """
    kind = str(config.get("_class_name", "")).removeprefix("Flax")
    if kind in FLOW_MATCHING:
        return _resolve_flow(kind, config)
    if kind and kind not in _CLASSES:
        supported = sorted((*_CLASSES, *FLOW_MATCHING))
        raise ScheduleError(f"scheduler {kind} is not supported; it must be one of {', '.join(supported)}")
    full = {**_DEFAULTS.get(kind, {}), **{name: value for name, value in config.items() if value is not None}}
    for name, value in full.items():
        if not name.startswith("_"):
            _check(name, value, "" if name in config else f", which {kind} takes where nothing is said,")
    _refuse_what_the_class_would_do(kind, full)
    known = {name: full[name] for name in wanted if name in full}
    for name in ("lambda_min_clipped", "sigma_min", "sigma_max"):
        if name in known:
            known[name] = float(known[name])
    if "trained_betas" in known:
        known["trained_betas"] = _trained_betas(full)
    if "timestep_spacing" in known:
        known["timestep_spacing"] = Spacing(known["timestep_spacing"])
    if "prediction_type" in known:
        known["prediction_type"] = PredictionType(known["prediction_type"])
    if kind == "UniPCMultistepScheduler" and "solver_order" in full:
        known["unipc_order"] = full["solver_order"]
    return known


def _resolve_flow(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Of diffusers' schedulers of rectified flows, whose levels have no betas."""
    neutral, without_effect = {**_FLOW_NEUTRAL, **_FLOW_OWN[kind]}, (*_FLOW_WITHOUT_EFFECT, *_FLOW_WITHOUT_EFFECT_OWN[kind])
    known: dict[str, Any] = {"flow": True, "prediction_type": PredictionType.FLOW, "timestep_spacing": Spacing.TRAILING}
    for name, value in config.items():
        if name.startswith("_") or value is None or name in without_effect:
            continue
        if name in neutral:
            _check(name, value, "", neutral)
        elif name in ("num_train_timesteps", "shift"):
            _check(name, value, "", numbers=_FLOW_NUMBERS)
            known[name] = value if name == "num_train_timesteps" else float(value)
        else:
            raise ScheduleError(f"scheduler setting {name} is not known, nor what it would change; remove it if that is nothing")
    return known


def _check(
    name: str,
    value: Any,
    why: str,
    neutral: Mapping[str, tuple[Any, ...]] = _NEUTRAL,
    numbers: Mapping[str, tuple[float, float]] = _NUMBERS,
) -> None:
    def refuse(allowed: str) -> ScheduleError:
        return ScheduleError(f"scheduler setting {name}: {value!r}{why} is not supported; it must be {allowed}")

    if name in neutral:
        if not any(value is allowed or value == allowed for allowed in neutral[name]):
            raise refuse(" or ".join(map(_json, neutral[name])) or "null")
    elif name in _CHOICES:
        if value not in _CHOICES[name]:
            raise refuse(f"one of {', '.join(_CHOICES[name])}")
    elif name in _FLAGS:
        if not isinstance(value, bool):
            raise refuse("true or false")
    elif name in numbers:
        low, high = numbers[name]
        try:
            number = float(value)  # diffusers writes infinity as text
        except (TypeError, ValueError):
            raise refuse("a number") from None
        if not low <= number <= high or (name in _WHOLE and not isinstance(value, int)):
            raise refuse(f"{'a whole number from ' if name in _WHOLE else ''}{low:g} to {high:g}")
    elif name not in (*_WITHOUT_EFFECT, *_READ_ELSEWHERE):
        raise ScheduleError(f"scheduler setting {name} is not known, nor what it would change; remove it if that is nothing")


def _json(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _trained_betas(config: Mapping[str, Any]) -> tuple[float, ...]:
    try:
        betas = tuple(float(beta) for beta in config["trained_betas"])
    except (TypeError, ValueError):
        raise ScheduleError("scheduler setting trained_betas: it must be a list of numbers") from None
    expected = config.get("num_train_timesteps", 1000)
    if len(betas) != expected or not all(0 < beta < 1 for beta in betas):
        raise ScheduleError(f"scheduler setting trained_betas: it must be {expected} numbers between 0 and 1")
    return betas


def _refuse_what_the_class_would_do(kind: str, config: Mapping[str, Any]) -> None:
    """Settings that mean something only to one diffusers class, and that its solver here does not do."""
    sde = str(config.get("algorithm_type", "")).startswith("sde-")
    choices: dict[str, tuple[Any, ...]] = {}
    if kind in ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"):
        both = kind == "DPMSolverMultistepScheduler"
        choices["algorithm_type"] = ("dpmsolver++", "sde-dpmsolver++") if both else ("dpmsolver++",)
        choices["solver_order"] = (2, 3) if both and not sde else (2,)
    if kind == "UniPCMultistepScheduler":
        choices.update(predict_x0=(True,), disable_corrector=([], ()), solver_order=(1, 2, 3))
    for name, allowed in choices.items():
        if name in config and config[name] not in allowed:
            spelled = ", ".join(map(str, allowed))
            raise ScheduleError(f"scheduler setting {name}: {config[name]!r} is not supported with {kind}; allowed: {spelled}")

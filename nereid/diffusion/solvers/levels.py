"""Which noise levels a run visits, for each family of solvers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nereid.diffusion.solvers import schedule
from nereid.diffusion.solvers.names import SchedulerName
from nereid.diffusion.solvers.schedule import Array, SchedulerConfig
from nereid.diffusion.solvers.scheduler_file import PredictionType, ScheduleError, Spacing


@dataclass(frozen=True, slots=True)
class Levels:
    """Step i takes a sample at noise-to-signal ratio `sigmas[i]` (which the UNet knows as `timesteps[i]`) to `targets[i]`.

    A step here is one call of the network: of solvers that call it twice in a step, the second call is a step of its own.
    `skipped` counts the steps of the whole run before the first one here. A sample is alpha x clean + noise x fresh noise, with
    both amplitudes' squares adding up to 1; where `flow`, with the amplitudes themselves adding up to 1 (rectified flow).
    """

    timesteps: Array
    sigmas: Array
    targets: Array
    initial_scale: float = 1.0
    skipped: int = 0
    flow: bool = False

    def __len__(self) -> int:
        return len(self.timesteps)

    def since(self, begin: int) -> Levels:
        """The same run from step `begin` on."""
        rest = self.timesteps[begin:], self.sigmas[begin:], self.targets[begin:]
        return Levels(*rest, self.initial_scale, begin, self.flow)

    def alpha(self, sigmas: Array) -> Array:
        """Signal's amplitude at noise-to-signal ratios."""
        return 1 / (sigmas + 1) if self.flow else 1 / np.sqrt(sigmas**2 + 1)

    def noise(self, sigmas: Array) -> Array:
        """Noise's amplitude at noise-to-signal ratios."""
        return sigmas / (sigmas + 1) if self.flow else sigmas / np.sqrt(sigmas**2 + 1)

    def amplitudes(self, sigma: float) -> tuple[float, float]:
        """Of signal and noise at one ratio."""
        ratio = np.array([sigma])
        return float(self.alpha(ratio)[0]), float(self.noise(ratio)[0])


def visited_levels(name: SchedulerName, config: SchedulerConfig, steps: int) -> Levels:
    """The levels of a whole run; raises ScheduleError when the scheduler cannot take that many steps."""
    if config.flow:
        return _flow_levels(config, steps)
    match name.family:
        case SchedulerName.DDPM | SchedulerName.DDIM:
            return _point_levels(name, config, steps)
        case SchedulerName.EULER | SchedulerName.EULER_A:
            return _euler_levels(name, config, steps)
        case SchedulerName.DPMPP_SDE:
            return _halved(_euler_levels(name, config, steps), _training_sigmas(config))
        case SchedulerName.LCM | SchedulerName.TCD:
            return _distilled_levels(name, config, steps)
        case _:
            return _interval_levels(name, config, steps)


def _given(config: SchedulerConfig) -> Array | None:
    return None if config.timesteps is None else np.array(config.timesteps, np.float64)


def _training_sigmas(config: SchedulerConfig) -> Array:
    return schedule.sigmas_of(schedule.alphas_cumprod(config), zero_snr=config.rescale_betas_zero_snr)


def _last_sigma(config: SchedulerConfig) -> float:
    return 0.0 if config.final_sigmas_type == "zero" else float(_training_sigmas(config)[0])


def _interval_levels(name: SchedulerName, config: SchedulerConfig, steps: int) -> Levels:
    """DPM-Solver and UniPC: integer timesteps that split the range into `steps` intervals, or Karras sigmas."""
    training = _training_sigmas(config)
    last = _last_sigma(config)
    if name.karras:
        low = config.sigma_min if config.sigma_min is not None else float(training[0])
        high = config.sigma_max if config.sigma_max is not None else float(training[-1])
        sigmas = schedule.karras_sigmas(low, high, steps)
        timesteps = schedule.timesteps_of_sigmas(sigmas, training)
        cosine = config.beta_schedule == "squaredcos_cap_v2" and name.family not in (SchedulerName.UNIPC, SchedulerName.DPMPP_2S)
        timesteps = np.floor(timesteps) if cosine else timesteps.round()
        if name.family is SchedulerName.UNIPC and last > 0:
            last = float(sigmas[-1])
    else:
        singlestep = name.family is SchedulerName.DPMPP_2S
        spacing = Spacing.LINSPACE if singlestep else config.timestep_spacing or Spacing.LINSPACE
        given = _given(config)
        timesteps = schedule.spaced_timesteps(config, steps, spacing, intervals=True).round() if given is None else given
        sigmas = np.interp(timesteps, np.arange(len(training)), training)
    return Levels(timesteps, sigmas, np.append(sigmas[1:], last))


def _euler_levels(name: SchedulerName, config: SchedulerConfig, steps: int) -> Levels:
    training = _training_sigmas(config)
    spacing = config.timestep_spacing or Spacing.LINSPACE
    last = _last_sigma(config) if name.family is SchedulerName.EULER else 0.0
    timesteps = _given(config)
    if timesteps is None:
        timesteps = schedule.spaced_timesteps(config, steps, spacing, intervals=False)
    sigmas = np.interp(timesteps, np.arange(len(training)), training)
    if name.karras:
        low = config.sigma_min if config.sigma_min is not None else float(sigmas[-1])
        high = config.sigma_max if config.sigma_max is not None else float(sigmas[0])
        sigmas = schedule.karras_sigmas(low, high, steps)
        timesteps = schedule.timesteps_of_sigmas(sigmas, training)
    if config.sigmas is not None:
        *given, last = config.sigmas
        sigmas = np.array(given)
        timesteps = schedule.timesteps_of_sigmas(sigmas, training)
    # Euler starts from noise as large as its largest sigma, which the input's scaling brings just below 1.
    made = Levels(timesteps, sigmas, np.append(sigmas[1:], last))
    return made if spacing is Spacing.LEADING else replace(made, initial_scale=float(made.noise(sigmas[:1])[0]))


def _halved(whole: Levels, training: Array) -> Levels:
    """Each step in two, at the level whose logarithm is in the middle, but the last one, which ends at no noise."""
    middles = np.sqrt(whole.sigmas[:-1] * whole.sigmas[1:])
    places = np.arange(1, len(whole))
    sigmas = np.insert(whole.sigmas, places, middles)
    timesteps = np.insert(whole.timesteps, places, schedule.timesteps_of_sigmas(middles, training))
    return Levels(timesteps, sigmas, np.append(sigmas[1:], whole.targets[-1]), whole.initial_scale)


_MOST_NOISE = 2.0**24
"""The noise-to-signal ratio that stands for pure noise, whose own is infinite; in float32 nothing is left of the signal."""


def _flow_levels(config: SchedulerConfig, steps: int) -> Levels:
    """Rectified flow (Liu et al., 2022): noise amplitudes from 1 to 0, shifted.

    Trailing, as few steps want it, they are equal steps that end at 0; `linspace` is diffusers' own (FlowMatchEuler): equal
    steps to the lowest level trained on, and from there to 0.
    """
    train, shift = config.num_train_timesteps, config.shift
    amplitudes: Array
    if config.sigmas is not None:
        amplitudes = np.array(config.sigmas, np.float64)
    elif config.timestep_spacing is Spacing.LINSPACE:
        lowest = float(schedule.shifted(np.array([1 / train]), shift)[0])
        amplitudes = np.append(schedule.shifted(np.linspace(1, lowest, steps), shift), 0.0)
    else:
        amplitudes = schedule.noise_levels(steps, shift)
    signal = np.maximum(1 - amplitudes, 1 / (1 + _MOST_NOISE))
    ratios = amplitudes / signal
    return Levels(float(train) * amplitudes[:-1], ratios[:-1], ratios[1:], flow=True)


def _point_levels(name: SchedulerName, config: SchedulerConfig, steps: int) -> Levels:
    """DDPM and DDIM: `steps` points of the training range. DDPM goes to the next one, DDIM down by a whole ratio."""
    alphas = schedule.alphas_cumprod(config)
    spacing = config.timestep_spacing or Spacing.LEADING
    timesteps = _given(config)
    if timesteps is None:
        timesteps = schedule.spaced_timesteps(config, steps, spacing, intervals=False).round()
    points = timesteps.astype(int)
    if points.max() >= config.num_train_timesteps:
        raise ScheduleError(
            f"num_inference_steps: {steps} is not allowed; with this spacing and steps_offset it goes beyond the last training "
            f"timestep ({config.num_train_timesteps - 1})"
        )
    if name is SchedulerName.DDIM:
        below = points - config.num_train_timesteps // steps
        final = 1.0 if config.set_alpha_to_one else alphas[0]
        targets = np.where(below >= 0, alphas[np.maximum(below, 0)], final)
    else:
        targets = np.append(alphas[points[1:]], 1.0)
    return Levels(timesteps, _visited_sigmas(config, alphas[points]), np.sqrt((1 - targets) / targets))


def _visited_sigmas(config: SchedulerConfig, alphas: Array) -> Array:
    """Noise-to-signal ratios of levels that a run starts steps from; zero signal becomes a ratio large, but finite."""
    if alphas.min() <= 0 and config.prediction_type is PredictionType.EPSILON:
        raise ScheduleError("rescale_betas_zero_snr: a model that predicts noise cannot start from zero signal")
    visited = np.maximum(alphas, 1e-30)
    return np.sqrt((1 - visited) / visited)


def _distilled_levels(name: SchedulerName, config: SchedulerConfig, steps: int) -> Levels:
    """Luo et al. (2023): a subset of the timesteps that the model was distilled on. LCM ends at no noise, TCD at timestep 0."""
    timesteps = _given(config)
    if timesteps is None:
        original = config.original_inference_steps
        if original > config.num_train_timesteps:
            raise ScheduleError(
                f"original_inference_steps: {original} is not allowed; it must be {config.num_train_timesteps} at most, as many "
                "as num_train_timesteps"
            )
        if steps > original:
            raise ScheduleError(f"num_inference_steps: {steps} is not allowed; {name} takes 1 to {original}")
        distilled = (np.arange(1, original + 1) * (config.num_train_timesteps // original) - 1)[::-1]
        chosen = np.floor(np.linspace(0, len(distilled), steps, endpoint=False)).astype(int)
        timesteps = distilled[chosen].astype(np.float64)
    alphas = schedule.alphas_cumprod(config)[timesteps.astype(int)]
    sigmas = _visited_sigmas(config, alphas)
    return Levels(timesteps, sigmas, np.append(sigmas[1:], 0.0))

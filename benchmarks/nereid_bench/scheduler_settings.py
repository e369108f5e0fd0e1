"""What `nereid bench schedulers` measures: every scheduler, step count and variation that a checkpoint's requests can ask for."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from nereid.diffusion.solvers import ScheduleError, SchedulerConfig, SchedulerName, SolverTable, Spacing, build_table, needs_noise
from nereid.diffusion.solvers.choices import ETA, SIGMAS, SPACING
from nereid.diffusion.solvers.schedule import alphas_cumprod, sigmas_of
from nereid_protocol.image_fields import BY_NAME

OWN, EXPONENTIAL, OTHER_ETA = "own", "exponential", "eta"
VARIATIONS = (OWN, *Spacing, EXPONENTIAL, OTHER_ETA)
"""Of a scheduler: as the checkpoint has it; with another spacing; with sigmas even in their logarithm; with other fresh noise.

Karras sigmas are not among them: the schedulers that have them have names of their own.
"""
_ETAS = {name: 1.0 if name is SchedulerName.DDIM else 0.0 for name in ETA}
"""The other end of what a solver takes where nothing is said: ddim adds no noise, the others some."""
REFERENCE_STEPS = 200
REFERENCE_WHY = (
    "DPM++ 2M of second order adds no noise, so that it nears the one solution that a seed has; linspace begins at the noisiest "
    "timestep however many steps there are, where leading, with many, begins far below it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way to draw; `fields` are the request's, by the names of the SDK."""

    scheduler: str
    variation: str
    steps: int
    noise: bool
    """Whether its steps take fresh noise: its pictures are then others than the reference's, not worse ones."""
    fields: Mapping[str, Any]

    @property
    def calls(self) -> int:
        """Of the UNet, for a picture."""
        return SchedulerName(self.scheduler).calls(self.steps)

    @property
    def label(self) -> str:
        """How a person calls it."""
        return " ".join([self.scheduler, *([] if self.variation == OWN else [self.variation]), str(self.steps)])

    def sdk(self, more: Mapping[str, Any]) -> str:
        """The call of the SDK that draws so, with `more` fields."""
        told = "".join(f", {name}={value!r}" for name, value in {**self.fields, **more}.items())
        return f"client.generate_image(PROMPT{told})"

    def command(self, more: Mapping[str, Any]) -> str:
        """The command that draws so, with `more` fields."""
        words = [word for name, value in {**self.fields, **more}.items() for word in (str(BY_NAME[name].option), _word(value))]
        return shlex.join(["nereid", "generate", "PROMPT", *words])


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


@dataclass(slots=True)
class _Grid:
    """Settings found so far, by all that a solver does: two that do the same are one."""

    found: dict[bytes, Setting] = field(default_factory=dict)
    left_out: dict[str, list[int]] = field(default_factory=dict)
    """Step counts by the sentence that says why."""

    def add(self, setting: Setting, config: SchedulerConfig) -> None:
        named = setting.label.removesuffix(f" {setting.steps}")
        try:
            table = build_table(SchedulerName(setting.scheduler), config, setting.steps)
        except ScheduleError as error:
            self._leave_out(f"{named} is left out: {error}", setting.steps)
            return
        same = self.found.setdefault(_all_of(table), replace(setting, noise=_is_noisy(table)))
        if same.fields != setting.fields:
            other = same.label.removesuffix(f" {same.steps}")
            self._leave_out(f"{named} is left out: it draws what {other} draws", setting.steps)

    def _leave_out(self, sentence: str, steps: int) -> None:
        self.left_out.setdefault(sentence, []).append(steps)


def settings_of(
    config: SchedulerConfig,
    schedulers: Iterable[str],
    steps: Iterable[int],
    variations: Iterable[str],
    say: Callable[[str], None],
) -> list[Setting]:
    """All that the checkpoint's `config` can be asked for; what it cannot take, or would draw twice, is said by name."""
    grid, chosen, counts = _Grid(), tuple(variations), tuple(dict.fromkeys(steps))
    for name in dict.fromkeys(schedulers):
        for count in counts:
            for setting, varied in _variations(SchedulerName(name), config, count):
                if setting.variation.partition("=")[0] in chosen:
                    grid.add(setting, varied)
    for sentence, left in grid.left_out.items():
        say(f"{sentence} ({', '.join(map(str, left))} steps)")
    return list(grid.found.values())


def _variations(name: SchedulerName, config: SchedulerConfig, steps: int) -> Iterator[tuple[Setting, SchedulerConfig]]:
    """Every variation that the scheduler takes, and the checkpoint's `config` with it."""
    asked = {"scheduler": str(name), "num_inference_steps": steps}

    def setting(variation: str, **fields: Any) -> Setting:
        return Setting(scheduler=str(name), variation=variation, steps=steps, noise=False, fields=fields)

    yield setting(OWN, **asked), config
    if name in SPACING:
        for spacing in Spacing:
            yield setting(spacing, **asked, timestep_spacing=str(spacing)), replace(config, timestep_spacing=spacing)
    if name in SIGMAS:
        sigmas = exponential_sigmas(config, steps)
        yield setting(EXPONENTIAL, scheduler=str(name), sigmas=sigmas), replace(config, sigmas=tuple(sigmas))
    if name in ETA:
        eta = _ETAS[name]
        yield setting(f"{OTHER_ETA}={eta:g}", **asked, eta=eta), replace(config, eta=eta)


def exponential_sigmas(config: SchedulerConfig, steps: int) -> list[float]:
    """Noise levels from the checkpoint's largest to its smallest, even in their logarithm, then 0: `steps` + 1 values."""
    training = sigmas_of(alphas_cumprod(config), zero_snr=config.rescale_betas_zero_snr)
    return [float(f"{sigma:.6g}") for sigma in np.geomspace(training[-1], training[0], steps)] + [0.0]


def reference_of(config: SchedulerConfig, steps: int) -> Setting:
    """What the others' pictures are compared with, REFERENCE_WHY; raises ScheduleError."""
    build_table(SchedulerName.DPMPP_2M, replace(config, timestep_spacing=Spacing.LINSPACE), steps)
    name, spacing = str(SchedulerName.DPMPP_2M), str(Spacing.LINSPACE)
    fields = {"scheduler": name, "num_inference_steps": steps, "timestep_spacing": spacing}
    return Setting(scheduler=name, variation=spacing, steps=steps, noise=False, fields=fields)


def _all_of(table: SolverTable) -> bytes:
    arrays = (table.timesteps, table.clean, table.next_sample, table.next_base, np.float32(table.initial_scale))
    return b"".join(array.tobytes() for array in arrays)


def _is_noisy(table: SolverTable) -> bool:
    return any(needs_noise(table, step) for step in range(len(table)))

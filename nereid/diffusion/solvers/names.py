"""The schedulers a request may name, and which one a checkpoint's own scheduler settings stand for."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

KARRAS_SUFFIX = "_karras"


class SchedulerName(StrEnum):
    """A scheduler as requests spell it; `_karras` variants use the noise levels of Karras et al. (2022), eq. 5."""

    DDPM = "ddpm"
    DDIM = "ddim"
    EULER = "euler"
    EULER_KARRAS = "euler_karras"
    EULER_A = "euler_a"
    DPMPP_2S = "dpmpp_2s"
    DPMPP_2S_KARRAS = "dpmpp_2s_karras"
    DPMPP_2M = "dpmpp_2m"
    DPMPP_2M_KARRAS = "dpmpp_2m_karras"
    DPMPP_3M = "dpmpp_3m"
    DPMPP_3M_KARRAS = "dpmpp_3m_karras"
    DPMPP_2M_SDE = "dpmpp_2m_sde"
    DPMPP_2M_SDE_KARRAS = "dpmpp_2m_sde_karras"
    DPMPP_SDE = "dpmpp_sde"
    DPMPP_SDE_KARRAS = "dpmpp_sde_karras"
    LCM = "lcm"
    TCD = "tcd"
    UNIPC = "unipc"
    UNIPC_KARRAS = "unipc_karras"

    @property
    def karras(self) -> bool:
        return self.endswith(KARRAS_SUFFIX)

    @property
    def family(self) -> SchedulerName:
        """The same scheduler without Karras noise levels."""
        return SchedulerName(self.removesuffix(KARRAS_SUFFIX))

    @property
    def calls_per_step(self) -> int:
        """Network calls that a step takes; the last one of a run, which ends at no noise, takes one in any case."""
        return 2 if self.family is SchedulerName.DPMPP_SDE else 1

    def calls(self, steps: int) -> int:
        """Network calls of a run of so many steps."""
        return self.first_call(steps, steps)

    def first_call(self, step: int, steps: int) -> int:
        """Calls of a run of so many `steps` before this one begins."""
        each = self.calls_per_step
        return min(each * step, each * (steps - 1) + 1)

    def calls_of(self, some: range, steps: int) -> range:
        """The calls of some steps of a run of so many."""
        return range(self.first_call(some.start, steps), self.first_call(some.stop, steps))


SCHEDULERS = tuple(SchedulerName)


def default_scheduler(config: Mapping[str, Any]) -> SchedulerName:
    """The scheduler that a diffusers `scheduler_config.json` stands for; DPM++ 2M where this project has no such one."""
    name = str(config.get("_class_name", "")).removeprefix("Flax")
    karras = bool(config.get("use_karras_sigmas"))
    match name:
        case "FlowMatchEulerDiscreteScheduler" if config.get("stochastic_sampling"):
            family = SchedulerName.LCM
        case "DPMSolverMultistepScheduler" if str(config.get("algorithm_type", "")).startswith("sde-"):
            family = SchedulerName.DPMPP_2M_SDE
        case "DPMSolverMultistepScheduler" if config.get("solver_order") == 3:
            family = SchedulerName.DPMPP_3M
        case _:
            family = _CLASSES.get(name, SchedulerName.DPMPP_2M)
    spelled = f"{family}{KARRAS_SUFFIX}"
    return SchedulerName(spelled) if karras and spelled in SCHEDULERS else family


_CLASSES = {
    "DDPMScheduler": SchedulerName.DDPM,
    "DDIMScheduler": SchedulerName.DDIM,
    "EulerDiscreteScheduler": SchedulerName.EULER,
    "EulerAncestralDiscreteScheduler": SchedulerName.EULER_A,
    "DPMSolverSinglestepScheduler": SchedulerName.DPMPP_2S,
    "DPMSolverSDEScheduler": SchedulerName.DPMPP_SDE,
    "LCMScheduler": SchedulerName.LCM,
    "TCDScheduler": SchedulerName.TCD,
    "UniPCMultistepScheduler": SchedulerName.UNIPC,
    "FlowMatchEulerDiscreteScheduler": SchedulerName.EULER,
    "FlowMatchLCMScheduler": SchedulerName.LCM,
}

"""AUTOMATIC1111's samplers and schedules by the names of solvers here; knows no HTTP.

Names and aliases are those of its `modules/sd_samplers_*.py` and `modules/sd_schedulers.py`. A solver here stands under its name
only where it is the same one: DPM++ 2S a, for instance, is ancestral, and DPM++ 2S is not. What its schedules are in terms of
timesteps is told in diffusers' documentation ("Schedulers": sgm_uniform and simple are trailing spacing, normal is linspace).
"""

from __future__ import annotations

from dataclasses import dataclass

from nereid.diffusion.solvers import SCHEDULERS, SchedulerName, Spacing
from nereid.diffusion.solvers.choices import ETA, SPACING
from nereid.diffusion.solvers.names import KARRAS_SUFFIX
from nereid.serving.gateway.errors import ApiError

SAMPLER, SCHEDULE, ETA_FIELD = "sampler_name", "scheduler", "eta"


@dataclass(frozen=True, slots=True)
class Sampler:
    """`by_itself`: whether its own schedule is Karras'."""

    name: str
    scheduler: SchedulerName
    aliases: tuple[str, ...] = ()
    by_itself: bool = False

    @property
    def has_karras(self) -> bool:
        return f"{self.scheduler}{KARRAS_SUFFIX}" in SCHEDULERS


SAMPLERS = (
    Sampler("Euler", SchedulerName.EULER, ("k_euler",)),
    Sampler("Euler a", SchedulerName.EULER_A, ("k_euler_a", "k_euler_ancestral")),
    Sampler("DPM++ 2M", SchedulerName.DPMPP_2M, ("k_dpmpp_2m",), by_itself=True),
    Sampler("DPM++ 2M SDE", SchedulerName.DPMPP_2M_SDE, ("k_dpmpp_2m_sde",), by_itself=True),
    Sampler("DPM++ 2S", SchedulerName.DPMPP_2S),
    Sampler("DPM++ 3M", SchedulerName.DPMPP_3M),
    Sampler("DDIM", SchedulerName.DDIM),
    Sampler("DDPM", SchedulerName.DDPM),
    Sampler("UniPC", SchedulerName.UNIPC),
    Sampler("LCM", SchedulerName.LCM, ("k_lcm",)),
    Sampler("TCD", SchedulerName.TCD),
)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which noise levels a run visits. `spacing` None: Karras', or what the sampler takes by itself."""

    name: str
    label: str
    spacing: Spacing | None = None


AUTOMATIC, KARRAS = Schedule("automatic", "Automatic"), Schedule("karras", "Karras")
SCHEDULES = (
    AUTOMATIC,
    Schedule("uniform", "Uniform", Spacing.LINSPACE),
    KARRAS,
    Schedule("sgm_uniform", "SGM Uniform", Spacing.TRAILING),
    Schedule("simple", "Simple", Spacing.TRAILING),
    Schedule("normal", "Normal", Spacing.LINSPACE),
    Schedule("ddim", "DDIM", Spacing.LEADING),
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a request means, by the fields of a run; None is the checkpoint's own. `label` is told in the answer."""

    scheduler: str | None = None
    timestep_spacing: str | None = None
    eta: float | None = None
    label: str = ""


def chosen(name: str | None, schedule_name: str | None, eta: float | None, *, flow: bool) -> Chosen:
    """Raises ApiError that names the field. `flow`: the model is a rectified flow, which has no Karras noise levels."""
    if name is None:
        if schedule_name is not None and _schedule(schedule_name) is not AUTOMATIC:
            raise ApiError(400, f"{SCHEDULE}: {schedule_name!r} is not allowed without {SAMPLER}", param=SCHEDULE)
        return Chosen(eta=eta)
    sampler, own = _sampler(name)
    schedule = own if schedule_name is None else _schedule(schedule_name)
    if schedule is AUTOMATIC:
        schedule = own  # the old names end with a schedule
    karras = schedule is KARRAS or (schedule is AUTOMATIC and sampler.by_itself and not flow)
    if karras and not sampler.has_karras:
        raise _no_such_schedule(sampler, schedule, [item.name for item in SAMPLERS if item.has_karras])
    if schedule.spacing is not None and sampler.scheduler not in SPACING:
        raise _no_such_schedule(sampler, schedule, [item.name for item in SAMPLERS if item.scheduler in SPACING])
    shown = KARRAS.label if karras else schedule.label if schedule is not AUTOMATIC else ""
    return Chosen(
        scheduler=f"{sampler.scheduler}{KARRAS_SUFFIX}" if karras else str(sampler.scheduler),
        timestep_spacing=None if schedule.spacing is None else str(schedule.spacing),
        eta=_eta(sampler, eta),
        label=f"{sampler.name} {shown}".strip(),
    )


def _eta(sampler: Sampler, eta: float | None) -> float | None:
    """Solvers that draw fresh noise draw all of it, which is 1; those that draw none do not read it."""
    if sampler.scheduler in ETA:
        return eta
    if eta not in (None, 1) and sampler.scheduler in (SchedulerName.EULER_A, SchedulerName.DPMPP_2M_SDE):
        sentence = f"{ETA_FIELD}: {eta:g} is not allowed with {sampler.name}; it must be 1, or absent"
        raise ApiError(400, sentence, param=ETA_FIELD)
    return None


def _sampler(name: str) -> tuple[Sampler, Schedule]:
    """By name, alias or the scheduler's name here; with the schedule that the name ends with."""
    wanted = name.strip().lower()
    for sampler in SAMPLERS:
        known = (sampler.name.lower(), *sampler.aliases, str(sampler.scheduler))
        if wanted in known:
            return sampler, AUTOMATIC
        for end in (" karras", KARRAS_SUFFIX, "_ka"):
            if wanted.endswith(end) and wanted.removesuffix(end) in known:
                return sampler, KARRAS
    names = ", ".join(sampler.name for sampler in SAMPLERS)
    raise ApiError(400, f"{SAMPLER}: {name[:80]!r} is not allowed; it must be one of {names}", param=SAMPLER)


def _schedule(name: str) -> Schedule:
    wanted = name.strip().lower()
    for schedule in SCHEDULES:
        if wanted in (schedule.name, schedule.label.lower()):
            return schedule
    labels = ", ".join(schedule.label for schedule in SCHEDULES)
    raise ApiError(400, f"{SCHEDULE}: {name[:80]!r} is not allowed; it must be one of {labels}", param=SCHEDULE)


def _no_such_schedule(sampler: Sampler, schedule: Schedule, samplers: list[str]) -> ApiError:
    sentence = f"{schedule.label!r} is not allowed with {sampler.name}; these take it: {', '.join(samplers)}"
    return ApiError(400, f"{SCHEDULE}: {sentence}", param=SCHEDULE)

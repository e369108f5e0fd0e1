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

SAMPLER, SCHEDULE, ETA_FIELD, S_NOISE = "sampler_name", "scheduler", "eta", "s_noise"


@dataclass(frozen=True, slots=True)
class Sampler:
    """`by_itself`: whether its own schedule is Karras'."""

    name: str
    scheduler: SchedulerName
    aliases: tuple[str, ...] = ()
    by_itself: bool = False


SAMPLERS = (
    Sampler("Euler", SchedulerName.EULER, ("k_euler",)),
    Sampler("Euler a", SchedulerName.EULER_A, ("k_euler_a", "k_euler_ancestral")),
    Sampler("DPM++ 2M", SchedulerName.DPMPP_2M, ("k_dpmpp_2m",), by_itself=True),
    Sampler("DPM++ 2M SDE", SchedulerName.DPMPP_2M_SDE, ("k_dpmpp_2m_sde",), by_itself=True),
    Sampler("DPM++ SDE", SchedulerName.DPMPP_SDE, ("k_dpmpp_sde",), by_itself=True),
    Sampler("DPM++ 2S", SchedulerName.DPMPP_2S),
    Sampler("DPM++ 3M", SchedulerName.DPMPP_3M),
    Sampler("DDIM", SchedulerName.DDIM),
    Sampler("DDPM", SchedulerName.DDPM),
    Sampler("UniPC", SchedulerName.UNIPC),
    Sampler("LCM", SchedulerName.LCM, ("k_lcm",)),
    Sampler("TCD", SchedulerName.TCD),
)


_WITHOUT_NOISE = {SchedulerName.EULER_A: SchedulerName.EULER, SchedulerName.DPMPP_2M_SDE: SchedulerName.DPMPP_2M}
"""What solvers with fresh noise are without it; others read `eta` themselves."""
_TAKES_S_NOISE = (SchedulerName.DPMPP_2M_SDE, SchedulerName.DPMPP_SDE)
"""Those whose fresh noise AUTOMATIC1111 multiplies by `s_noise`."""


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


def chosen(
    name: str | None,
    schedule_name: str | None,
    eta: float | None,
    s_noise: float | None = None,
    *,
    flow: bool,
    own: SchedulerName | None = None,
) -> Chosen:
    """Raises ApiError that names the field.

    `flow`: the model is a rectified flow, which has no Karras noise levels. `own` is what it takes where nothing is said.
    """
    wanted = AUTOMATIC if schedule_name is None else _schedule(schedule_name)
    if name is None and own is not None:
        if wanted is AUTOMATIC:
            return _own(own, eta, s_noise)
        name = str(own.family)
    if name is None:
        if wanted is not AUTOMATIC:
            raise ApiError(400, f"{SCHEDULE}: {schedule_name!r} is not allowed without {SAMPLER}", param=SCHEDULE)
        return Chosen(eta=eta)
    sampler, ending = _sampler(name)
    schedule = ending if wanted is AUTOMATIC else wanted  # the old names end with a schedule
    solver, kept = _noise(sampler, eta, s_noise)
    karras = schedule is KARRAS or (schedule is AUTOMATIC and sampler.by_itself and not flow)
    if karras and not _has_karras(solver):
        raise _no_such_schedule(sampler, schedule, [item.name for item in SAMPLERS if _has_karras(item.scheduler)])
    if schedule.spacing is not None and solver not in SPACING:
        raise _no_such_schedule(sampler, schedule, [item.name for item in SAMPLERS if item.scheduler in SPACING])
    shown = KARRAS.label if karras else schedule.label if schedule is not AUTOMATIC else ""
    return Chosen(
        scheduler=f"{solver}{KARRAS_SUFFIX}" if karras else str(solver),
        timestep_spacing=None if schedule.spacing is None else str(schedule.spacing),
        eta=kept,
        label=f"{sampler.name} {shown}".strip(),
    )


def _own(own: SchedulerName, eta: float | None, s_noise: float | None) -> Chosen:
    """The checkpoint's own solver and timesteps, without its fresh noise where that is asked."""
    sampler = next(item for item in SAMPLERS if item.scheduler == own.family)
    solver, kept = _noise(sampler, eta, s_noise)
    end = KARRAS_SUFFIX if own.karras else ""
    label = f"{sampler.name} {KARRAS.label if own.karras else ''}".strip()
    return Chosen(scheduler=None if solver is own.family else f"{solver}{end}", eta=kept, label=label)


def _has_karras(solver: SchedulerName) -> bool:
    return f"{solver}{KARRAS_SUFFIX}" in SCHEDULERS


def _noise(sampler: Sampler, eta: float | None, s_noise: float | None) -> tuple[SchedulerName, float | None]:
    """The solver for so much fresh noise, and the `eta` that it reads.

    Of other solvers that draw fresh noise it is all of it, which is 1; with 0 they are another one. Those that draw none do not
    read it.
    """
    solver = sampler.scheduler
    if solver in _WITHOUT_NOISE:
        if eta == 0:
            return _WITHOUT_NOISE[solver], None
        if eta not in (None, 1):
            sentence = f"{ETA_FIELD}: {eta:g} is not allowed with {sampler.name}; it must be 1, 0, or absent"
            raise ApiError(400, sentence, param=ETA_FIELD)
    if s_noise not in (None, 1) and solver in _TAKES_S_NOISE and eta != 0:
        raise ApiError(400, f"{S_NOISE}: {s_noise:g} is not allowed with {sampler.name}; it must be 1, or absent", param=S_NOISE)
    return solver, eta if solver in ETA else None


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

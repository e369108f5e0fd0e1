"""What of an image request needs no tensors: counts, sizes, schedules, memory; and the place in the queue asked for with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from nereid.diffusion.cache_options import OFF, cache_plan, guidance_plan
from nereid.diffusion.feature_cache import CachePlan
from nereid.diffusion.init_pictures import require_encodable
from nereid.diffusion.settings import Decoder, Limits, Pipeline
from nereid.diffusion.solvers import (
    SCHEDULERS,
    ScheduleError,
    SchedulerConfig,
    SchedulerName,
    SolverTable,
    Spacing,
    build_table,
    require_spacing,
)
from nereid.diffusion.vae_tiles import PARTS, VaeTiling
from nereid.flow.errors import InvalidRequestError
from nereid.flow.fields import FieldReader, Inputs
from nereid.flow.tickets import USUAL_PRIORITY
from nereid_protocol.image_fields import BY_NAME
from nereid_protocol.run_fields import RUN_ID_FORM

T = TypeVar("T")

_OF_GUIDANCE = {"guidance_interval": (0.0, 1.0), "guidance_cache": OFF, "guidance_cache_interval": None}
"""What has no meaning without an unconditional half, each with the value that says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A place asked for before anything is encoded: how many images, for how long, and whether they will be watched.

    `memory_bytes`: what their engine runs need together.
    """

    ticket: str
    run_id: str
    rows: int
    memory_bytes: float
    timeout_seconds: float
    watched: bool
    priority: int


def parse_reservation(inputs: Inputs, pipeline: Pipeline, limits: Limits) -> Reservation:
    """Check everything that can be checked without embeddings; raises InvalidRequestError."""
    fields = FieldReader(inputs, len(inputs["ticket"]), limits)
    images = images_of(fields, limits)
    size = size_of(fields, pipeline, limits)
    options = [resolve(fields, prompt, pipeline) for prompt in range(fields.batch_size) for _ in range(images)]
    needs = [(its.guided, its.cache is not None) for its in options]
    return Reservation(
        ticket=read_id(fields, "ticket"),
        run_id=read_id(fields, "run_id"),
        rows=fields.batch_size * images,
        memory_bytes=memory_of(fields, size, needs, pipeline, limits, tiling_of(fields, pipeline, limits)),
        timeout_seconds=fields.value("timeout_seconds", limits.default_timeout_seconds),
        watched=fields.given("after_step"),
        priority=fields.value("priority", USUAL_PRIORITY),
    )


def read_id(fields: FieldReader, name: str) -> str:
    """A run's or a ticket's id, "" where absent; raises InvalidRequestError for one that is no id."""
    value = fields.value(name, "")
    if value and not re.fullmatch(RUN_ID_FORM, value):
        raise InvalidRequestError.of(name, value, "1 to 64 characters of A-Z, a-z, 0-9, _ and -")
    return str(value)


def images_of(fields: FieldReader, limits: Limits) -> int:
    """Images of each prompt."""
    images = int(fields.value("num_images_per_prompt", 1))
    count = fields.batch_size * images
    most = limits.images_in_one_request
    if count > most:
        each = f" for each of {fields.batch_size} prompts" if fields.batch_size > 1 else ""
        raise InvalidRequestError(
            f"num_images_per_prompt: {images}{each} is not allowed; one request may have {most} images at most "
            "(max_images_per_request)",
            "num_images_per_prompt",
        )
    return images


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One prompt's options that need no tensors."""

    guidance: float
    guided: bool
    interval: tuple[float, float]
    scheduler: SchedulerName
    schedule: SchedulerConfig
    """The checkpoint's noise levels, with what the request chooses of them."""
    steps: int
    cache: CachePlan | None
    """Of a run that begins at its first step."""
    guidance_cache: CachePlan | None
    """The same of the unconditional prediction."""


def resolve(fields: FieldReader, prompt: int, pipeline: Pipeline) -> Options:
    """The options of one prompt of a batch, defaults filled in; raises InvalidRequestError."""
    guidance = fields.values("guidance_scale", pipeline.default_guidance)[prompt]
    interval = fields.values("guidance_interval", (0.0, 1.0))[prompt]
    if interval[0] > interval[1]:
        raise InvalidRequestError.of("guidance_interval", interval, "two fractions, the smaller one first")
    why_not = unguided(guidance, pipeline)
    for name, nothing in _OF_GUIDANCE.items():
        value = fields.values(name, nothing)[prompt]
        if why_not and (value.strip() if isinstance(value, str) else value) != nothing:
            raise InvalidRequestError(f"{name}: it has no meaning {why_not}", name)
    scheduler = scheduler_named(fields.values("scheduler", pipeline.default_scheduler)[prompt])
    schedule = _schedule(fields, prompt, pipeline, scheduler)
    steps = steps_of(fields, pipeline, prompt)
    guided = scheduler.calls_of(guided_steps(interval, steps), steps)
    solver_table(scheduler, schedule, steps, 0)
    return Options(
        guidance=guidance,
        guided=not why_not,
        interval=interval,
        scheduler=scheduler,
        schedule=schedule,
        steps=steps,
        cache=cache_plan(fields, prompt, pipeline, scheduler=scheduler, steps=steps, origin=0),
        guidance_cache=guidance_plan(fields, prompt, pipeline, guided=guided, scheduler=scheduler, steps=steps, origin=0),
    )


def unguided(guidance: float, pipeline: Pipeline) -> str:
    """Why runs of this guidance have no unconditional half, in words that end a sentence; "" where they have one."""
    if pipeline.time_cond_proj_dim is not None:
        return "for this model, whose UNet is told the guidance"
    return "" if guidance > 1 else f"without guidance (guidance_scale {guidance:g})"


def steps_of(fields: FieldReader, pipeline: Pipeline, prompt: int = 0) -> int:
    """Steps of one prompt's runs: as many as timesteps or sigmas are given, else what is asked for."""
    default = pipeline.default_steps
    if fields.given("timesteps"):
        default = len(fields.values("timesteps", ())[prompt])
    elif fields.given("sigmas"):
        default = len(fields.values("sigmas", ())[prompt]) - 1
    return int(fields.values("num_inference_steps", default)[prompt])


def _schedule(fields: FieldReader, prompt: int, pipeline: Pipeline, name: SchedulerName) -> SchedulerConfig:
    chosen = {key: fields.values(key, None)[prompt] for key in ("timesteps", "sigmas", "eta")}
    spacing = fields.values("timestep_spacing", None)[prompt]
    if spacing is not None:
        if spacing not in tuple(Spacing):
            raise InvalidRequestError.of("timestep_spacing", spacing, ", ".join(Spacing))
        if own := next((key for key in ("timesteps", "sigmas") if chosen[key] is not None), ""):
            raise InvalidRequestError(
                f"timestep_spacing: it has no meaning with {own}, which say where the run goes", "timestep_spacing"
            )
        _of_the_solver(lambda: require_spacing(name, pipeline.scheduler))
        chosen["timestep_spacing"] = Spacing(spacing)
    return replace(pipeline.scheduler, **{key: value for key, value in chosen.items() if value is not None})


def solver_table(name: SchedulerName, schedule: SchedulerConfig, steps: int, begin: int) -> SolverTable:
    """The solver's coefficients of a run that begins at step `begin`; raises InvalidRequestError."""
    return _of_the_solver(lambda: build_table(name, schedule, steps, begin))


def _of_the_solver(work: Callable[[], T]) -> T:
    """Its refusals begin with the field."""
    try:
        return work()
    except ScheduleError as error:
        field = str(error).partition(":")[0]
        raise InvalidRequestError(str(error), field if field in BY_NAME else "num_inference_steps") from None


def size_of(fields: FieldReader, pipeline: Pipeline, limits: Limits) -> tuple[int, int]:
    """(height, width) of all images of a request."""
    picture = fields.array("init_image", np.uint8, 4)
    height, width = (pipeline.default_height, pipeline.default_width) if picture is None else picture.shape[1:3]
    if picture is not None and fields.given("latent_upscale"):
        require_encodable((height, width), pipeline.vae_scale_factor, limits.max_pixels)
    sides = {"height": int(fields.value("height", height)), "width": int(fields.value("width", width))}
    for name, side in sides.items():
        if side < 1 or side % pipeline.size_multiple:  # a picture may have no pixels
            raise InvalidRequestError.of(name, side, f"a multiple of {pipeline.size_multiple}")
    if sides["width"] * sides["height"] > limits.max_pixels:
        shown = f"{sides['width']} x {sides['height']}"
        raise InvalidRequestError.of("width x height", shown, f"at most {limits.max_pixels} pixels")
    return sides["height"], sides["width"]


def tiling_of(fields: FieldReader, pipeline: Pipeline, limits: Limits) -> VaeTiling:
    """How the VAE cuts this request's pictures."""
    scale = pipeline.vae_scale_factor
    side = int(fields.value("tile_sample_min_size", limits.tile_sample_min_size))
    if side % (PARTS * scale):
        raise InvalidRequestError.of("tile_sample_min_size", side, f"a multiple of {PARTS * scale}")
    return replace(limits.tiling(scale), tile_sample_min_size=side)


def decoder_of(fields: FieldReader, pipeline: Pipeline) -> Decoder:
    """Which VAE decoder makes this request's pictures."""
    return Decoder.parse(fields.value("decoder", Decoder.FULL), tiny=pipeline.tiny_decoder)


def memory_of(
    fields: FieldReader,
    size: tuple[int, int],
    needs: Sequence[tuple[bool, bool]],
    pipeline: Pipeline,
    limits: Limits,
    tiling: VaeTiling,
) -> float:
    """What a request's images need together, each at its largest engine, the features that are kept of it, and previews.

    `needs` says of each image whether it is guided and whether it caches features.
    """
    height, width = size
    pixels, decoder = height * width, decoder_of(fields, pipeline)
    picture = fields.array("init_image", np.uint8, 4)
    encoded = 0 if picture is None else picture.shape[1] * picture.shape[2]
    item = np.dtype(limits.feature_type).itemsize
    needed = 0.0
    for guided, cached in needs:
        needed += pipeline.image_bytes(
            pixels, guided=guided, encoded_pixels=encoded, tiling=tiling, decoder=decoder, caching=cached
        )
        needed += pipeline.feature_bytes(pixels, guided=guided, item_bytes=item) if cached else 0
    if fields.given("after_step"):
        needed += pipeline.preview_bytes(pixels, tiling)
    _require_shared(pipeline, limits, size, needs)
    most = limits.memory_budget_bytes
    if most and needed > most:
        need = "1 image needs" if len(needs) == 1 else f"{len(needs)} images need"
        raise InvalidRequestError(
            f"width x height: at {width} x {height}, {need} {needed / 1e9:.3g} GB of memory; at most {most / 1e9:.3g} GB are "
            "allowed (memory_budget_bytes)",
            "width",
        )
    return needed


def _require_shared(pipeline: Pipeline, limits: Limits, size: tuple[int, int], needs: Sequence[tuple[bool, bool]]) -> None:
    """Raise InvalidRequestError where features of one image do not go through shared memory."""
    height, width = size
    rows = max((2 if guided else 1 for guided, cached in needs if cached), default=0)
    needed = limits.concurrent_calls * pipeline.shared_bytes(height * width, rows)
    if limits.features_shared_bytes and not limits.on_gpu and needed > limits.features_shared_bytes:
        raise InvalidRequestError(
            f"cache: at {width} x {height} features of one image need {needed / 2**20:.0f} MiB of /dev/shm; at most "
            f"{limits.features_shared_bytes / 2**20:.0f} MiB are allowed (features_shared_bytes)",
            "cache",
        )


def scheduler_named(text: str) -> SchedulerName:
    """Raises InvalidRequestError where there is none of this name."""
    try:
        return SchedulerName(text)
    except ValueError:
        raise InvalidRequestError.of("scheduler", text, f"one of {', '.join(SCHEDULERS)}") from None


def default_strength(*, masked: bool) -> float:
    """As diffusers has it: a part that is drawn anew is replaced altogether."""
    return 1.0 if masked else 0.8


def first_step(steps: int, strength: float) -> int:
    """Where img2img joins a run of `steps` steps; `strength` comes as float32, whose last digits must not cost a step."""
    return steps - min(int(round(steps * strength, 4)), steps)


def guided_steps(interval: tuple[float, float], steps: int) -> range:
    """The steps of a whole run that are guided: from the first fraction on, before the last (as diffusers' guiders count)."""
    return range(*(int(round(fraction * steps, 4)) for fraction in interval))

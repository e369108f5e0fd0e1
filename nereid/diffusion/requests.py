"""The one place that validates image requests: from raw arrays to concrete, frozen rows; knows nothing of Triton.

A request is a batch of prompts (rows of the inputs), each with its own parameters; `num_images_per_prompt` multiplies rows.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.cache_options import cache_plan, guidance_plan, needs_nothing_kept
from nereid.diffusion.dynamic_width import WidthTable
from nereid.diffusion.families import Conditioning, family_of
from nereid.diffusion.feature_cache import CachePlan, Caching
from nereid.diffusion.init_pictures import LatentUpscale, picture_of, upscale_of
from nereid.diffusion.inpainting import Fill, fill_of, mask_of, require_same_noise, what_stays
from nereid.diffusion.options import (
    Options,
    decoder_of,
    default_strength,
    first_step,
    guided_steps,
    images_of,
    memory_of,
    read_id,
    resolve,
    size_of,
    solver_table,
    tiling_of,
)
from nereid.diffusion.settings import Decoder, Limits, Pipeline
from nereid.diffusion.solvers import SolverTable
from nereid.diffusion.unsuitable import unsuitable
from nereid.diffusion.vae_tiles import VaeTiling
from nereid.flow.errors import InvalidRequestError
from nereid.flow.fields import FieldReader, Inputs
from nereid.flow.noise import derived_seed
from nereid.flow.tickets import USUAL_PRIORITY

MEMORY_ARRAYS = 4
LARGEST_LATENT = 1e4
"""Latents are a few units large; beyond this they come of a mistake and would overflow."""


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """Part of a sample that is known: `values` where `mask` is true, both of the sample's shape. It stays as it is, clean."""

    values: NDArray[np.float32]
    mask: NDArray[np.bool_]

    def put(self, sample: NDArray[np.float32]) -> NDArray[np.float32]:
        """The sample with what is known."""
        return np.where(self.mask, self.values, sample)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageRow:
    """One image to make, every option resolved; or what else is denoised (a layout's boxes), with what an image alone has left
    at its default. `begin`, `origin` and `end` are absolute steps of the run, as its table counts them: calls of the network.

    `guided` are the absolute ones that have classifier-free guidance; elsewhere no unconditional half is computed. `engine` is
    what errors call the network, where it is no UNet. `widths` says which slice of it computes a step; None where all of it does.
    `upscale` brings an `image` of another size to the run's. `mask`: which pixels are drawn anew, None: all; `fill`: what they
    begin as; `from_noise`: the run starts as if there were no image; `tells_mask`: the network is told mask and image.
    """

    table: SolverTable
    begin: int
    end: int
    seed: int
    positive: Conditioning
    latent_shape: tuple[int, ...]
    origin: int = 0
    guidance_scale: float = 1.0
    guided: range = range(0)
    negative: Conditioning | None = None
    latents: NDArray[np.float32] | None = None
    memory: NDArray[np.float32] | None = None
    image: NDArray[np.uint8] | None = None
    upscale: LatentUpscale | None = None
    mask: NDArray[np.bool_] | None = None
    fill: Fill = Fill.ORIGINAL
    from_noise: bool = False
    tells_mask: bool = False
    cache: Caching | None = None
    guidance_cache: CachePlan | None = None
    given: Given | None = None
    engine: str = ""
    widths: WidthTable | None = None

    def steps_before(self, call: int) -> int:
        """Steps as a request counts them that are done where this call is the next one."""
        each, calls = self.table.calls_per_step, self.origin + len(self.table)
        return -(-call // each) if call == calls else call // each


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageRequest:
    """All rows of one request."""

    rows: tuple[ImageRow, ...]
    warnings: tuple[str, ...]
    timeout_seconds: float
    tiling: VaeTiling
    decoder: Decoder = Decoder.FULL
    memory_bytes: float = 0.0
    run_id: str = ""
    ticket: str = ""
    priority: int = USUAL_PRIORITY
    deadline_seconds: float | None = None
    """A soft goal, from arrival on."""


def parse_image_request(inputs: Inputs, pipeline: Pipeline, limits: Limits) -> ImageRequest:
    """Validate the inputs of `denoise`; raises InvalidRequestError naming field, value and what is allowed."""
    fields = FieldReader(inputs, _batch_size(inputs), limits)
    images = images_of(fields, limits)
    size, tiling = size_of(fields, pipeline, limits), tiling_of(fields, pipeline, limits)
    parser = _RowParser(fields, pipeline, size, images, limits.feature_type)
    parser.warnings += [text for text in fields.values("tokenizer_warnings", "") if text]
    rows = tuple(parser.row(prompt, image) for prompt in range(fields.batch_size) for image in range(images))
    return ImageRequest(
        rows=rows,
        warnings=tuple(dict.fromkeys(parser.warnings)),
        tiling=tiling,
        decoder=decoder_of(fields, pipeline),
        memory_bytes=memory_of(
            fields, size, [(bool(row.guided), row.cache is not None) for row in rows], pipeline, limits, tiling
        ),
        timeout_seconds=fields.value("timeout_seconds", limits.default_timeout_seconds),
        run_id=read_id(fields, "run_id"),
        ticket=read_id(fields, "ticket"),
        priority=fields.value("priority", USUAL_PRIORITY),
        deadline_seconds=fields.value("deadline_seconds", None),
    )


def _batch_size(inputs: Inputs) -> int:
    embeds = inputs.get("prompt_embeds")
    if embeds is None or embeds.ndim < 1 or embeds.shape[0] < 1:
        shape = None if embeds is None else embeds.shape
        raise InvalidRequestError.of("shape of prompt_embeds", shape, "prompts x tokens x width, one prompt at least")
    return int(embeds.shape[0])


@dataclass(slots=True)
class _RowParser:
    fields: FieldReader
    pipeline: Pipeline
    size: tuple[int, int]
    images: int
    feature_dtype: type
    warnings: list[str] = field(default_factory=list)

    def row(self, prompt: int, image: int) -> ImageRow:
        fields, pipeline = self.fields, self.pipeline
        options = resolve(fields, prompt, pipeline)
        scheduler, steps = options.scheduler, options.steps
        upscale, fill = upscale_of(fields, prompt), fill_of(fields, prompt)
        picture = picture_of(fields, prompt, self.size, upscale)
        mask = mask_of(fields, prompt, self.size, needed=pipeline.inpainting)
        strength = fields.values("strength", default_strength(masked=mask is not None))[prompt]
        if picture is None and fields.given("strength"):
            raise InvalidRequestError("strength: it has no meaning without init_image", "strength")
        origin = 0 if picture is None else first_step(steps, strength)
        if origin == steps:
            raise InvalidRequestError.of("strength", strength, f"at least 1/num_inference_steps ({1 / steps:.3g})")
        begin, end = self._segment(prompt, origin, steps)
        cache, guidance_cache = self._caches(prompt, options, origin, begin)
        self.warnings += unsuitable(fields, prompt, pipeline, options, self.size)
        if mask is not None:
            require_same_noise(fields, resumes=begin > origin, ends_early=end < steps)
            self.warnings += [] if pipeline.inpainting else what_stays(mask, self._latent_shape[1:])
        latents, memory = self._state(prompt, image, begin > origin)
        positive = self._conditioning("", prompt, options.guidance)
        negative = self._negative(prompt, options.guidance) if options.guided else None
        if negative is not None and negative.shapes != positive.shapes:
            shape = None if negative.states is None else negative.states.shape
            raise InvalidRequestError.of("shape of negative_prompt_embeds", shape, "that of prompt_embeds")
        seeds = fields.values("seed", None)
        return ImageRow(
            table=solver_table(scheduler, options.schedule, steps, origin),
            begin=scheduler.first_call(begin, steps),
            end=scheduler.first_call(end, steps),
            origin=scheduler.first_call(origin, steps),
            seed=secrets.randbits(63) if seeds[prompt] is None else derived_seed(seeds[prompt], image),
            guidance_scale=options.guidance,
            guided=scheduler.calls_of(guided_steps(options.interval, steps), steps) if options.guided else range(0),
            positive=positive,
            negative=negative,
            latent_shape=self._latent_shape,
            latents=latents,
            memory=memory,
            image=None if memory is not None and mask is None else picture,
            upscale=upscale,
            mask=mask,
            fill=fill,
            from_noise=mask is not None and strength == 1 and fill is Fill.ORIGINAL,
            tells_mask=pipeline.inpainting,
            cache=cache,
            guidance_cache=guidance_cache,
        )

    def _caches(self, prompt: int, options: Options, origin: int, begin: int) -> tuple[Caching | None, CachePlan | None]:
        """The plans from `origin` on. A segment has nothing kept by the one before it: it must begin where nothing is needed."""
        cache, reuse = options.cache, options.guidance_cache if options.guided else None
        scheduler, steps = options.scheduler, options.steps
        guided, first = scheduler.calls_of(guided_steps(options.interval, steps), steps), scheduler.first_call(origin, steps)
        if origin:
            told = (self.fields, prompt, self.pipeline)
            cache = cache_plan(*told, scheduler=scheduler, steps=steps, origin=first)
            if reuse is not None:
                reuse = guidance_plan(*told, guided=guided, scheduler=scheduler, steps=steps, origin=first)

        def begins_anew(step: int) -> bool:
            return needs_nothing_kept(scheduler.first_call(step, steps), first, cache, reuse, guided)

        if not begins_anew(begin):
            possible = [step for step in range(origin, steps) if begins_anew(step)]
            raise InvalidRequestError.of("step_begin", begin, f"one of {possible}, which need nothing that was kept")
        facts, caching = self.pipeline.cache, None
        if cache is not None and facts is not None:
            caching = Caching(plan=cache, dtype=self.feature_dtype, attends=facts.attends)
        return caching, reuse

    @property
    def _latent_shape(self) -> tuple[int, ...]:
        return (self.pipeline.latent_channels, *(side // self.pipeline.vae_scale_factor for side in self.size))

    def _segment(self, prompt: int, origin: int, steps: int) -> tuple[int, int]:
        begin = self.fields.values("step_begin", origin)[prompt]
        end = self.fields.values("step_end", steps)[prompt]
        if end > steps:
            raise InvalidRequestError.of("step_end", end, f"1 to {steps}")
        if not origin <= begin < end:
            raise InvalidRequestError.of("step_begin", begin, f"at least {origin} and below step_end ({end})")
        return begin, end

    def _state(self, prompt: int, image: int, resumes: bool) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        """Latents (and, for a resumed run, the solver's memory) of one image; they come one row an image."""
        shape = self._latent_shape
        latents = self.fields.array("latents", np.float32, 4)
        memory = self.fields.array("solver_memory", np.float32, 5)
        if resumes and (latents is None or memory is None):
            missing = "latents" if latents is None else "solver_memory"
            raise InvalidRequestError(f"{missing}: nothing is not allowed; a run resumed at step_begin > 0 needs it", missing)
        for name, value, expected in (("latents", latents, shape), ("solver_memory", memory, (MEMORY_ARRAYS, *shape))):
            if value is None:
                continue
            wanted = (self.fields.batch_size * self.images, *expected)
            if value.shape != wanted:
                raise InvalidRequestError.of(f"shape of {name}", value.shape, f"{wanted} for this size")
            if not (np.abs(value) <= LARGEST_LATENT).all():  # so written, NaN is refused, too
                raise InvalidRequestError.of(name, "NaN, infinite or huge", f"finite and within {LARGEST_LATENT:g} everywhere")
        row = prompt * self.images + image
        return None if latents is None else latents[row], memory[row] if resumes and memory is not None else None

    def _negative(self, prompt: int, guidance: float) -> Conditioning:
        made = self._conditioning("negative_", prompt, guidance)
        if self.pipeline.force_zeros_for_empty_prompt and "negative_prompt" not in self.fields.inputs:
            return family_of(self.pipeline.family).zeros_like(made)
        return made

    def _conditioning(self, half: str, prompt: int, guidance: float) -> Conditioning:
        def embeds(name: str, rank: int) -> NDArray[np.float32]:
            return self._embeds(name, rank)[prompt]

        made = family_of(self.pipeline.family).condition(embeds, half, self.size)
        for name, value in made.inputs.items():
            width = self.pipeline.embedding_widths.get(name, value.shape[-1])
            if value.shape[-1] != width:  # embeddings that the UNet cannot take would fail whoever shares the call
                shown = f"{half}prompt_embeds"
                raise InvalidRequestError.of(f"width of {shown}", value.shape[-1], f"{width}, as {name} of the UNet")
        if self.pipeline.time_cond_proj_dim is None:
            return made
        told = guidance_embedding(guidance, self.pipeline.time_cond_proj_dim)
        return Conditioning(states=made.states, extra={**made.extra, "timestep_cond": told})

    def _embeds(self, name: str, rank: int) -> NDArray[np.float32]:
        value = self.fields.array(name, np.float32, rank)
        if value is None:
            raise InvalidRequestError(f"{name}: nothing is not allowed; this model needs it", name)
        if value.shape[0] != self.fields.batch_size or 0 in value.shape:
            raise InvalidRequestError.of(f"shape of {name}", value.shape, f"{self.fields.batch_size} non-empty rows")
        if not np.isfinite(value).all():
            raise InvalidRequestError.of(name, "NaN or infinite", "finite everywhere")
        return value


def guidance_embedding(guidance_scale: float, width: int) -> NDArray[np.float32]:
    """How a guidance-distilled UNet is told the guidance (Luo et al., 2023): float32, sines then cosines of 1000 (w - 1)."""
    half = width // 2
    frequencies = np.exp(np.arange(half) * -(math.log(10_000) / (half - 1)))
    angles = 1000 * (guidance_scale - 1) * frequencies
    return np.pad(np.concatenate([np.sin(angles), np.cos(angles)]), (0, width % 2)).astype(np.float32)

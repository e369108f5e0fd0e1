"""The one place that validates image requests: from raw arrays to concrete, frozen rows; knows nothing of Triton.

A request is a batch of prompts (rows of the inputs), each with its own parameters; `num_images_per_prompt` multiplies rows.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.settings import Limits, Pipeline
from nereid.diffusion.solvers import SCHEDULERS, ScheduleError, SchedulerName, SolverTable, build_table
from nereid.flow.errors import InvalidRequestError
from nereid.flow.noise import MAX_SEED, derived_seed

Inputs = Mapping[str, np.ndarray]

MAX_IMAGES_PER_PROMPT = 64
MEMORY_ARRAYS = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conditioning:
    """What the UNet is told besides the latents, for one half of the guidance.

    `states` is float32 tokens x width; `extra` holds the family's further inputs (XL: `text_embeds`, `time_ids`).
    """

    states: NDArray[np.float32]
    extra: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageRow:
    """One image to make, every option resolved. `begin` and `end` are absolute steps of the run."""

    table: SolverTable
    begin: int
    end: int
    origin: int
    seed: int
    guidance_scale: float
    positive: Conditioning
    negative: Conditioning | None
    latent_shape: tuple[int, ...]
    latents: NDArray[np.float32] | None
    memory: NDArray[np.float32] | None
    image: NDArray[np.uint8] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageRequest:
    """All rows of one request."""

    rows: tuple[ImageRow, ...]
    warnings: tuple[str, ...]
    timeout_seconds: float


def parse_image_request(inputs: Inputs, pipeline: Pipeline, limits: Limits) -> ImageRequest:
    """Validate the inputs of `denoise`; raises InvalidRequestError naming field, value and what is allowed."""
    fields = _Fields(inputs)
    prompts = fields.batch_size
    images = fields.whole("num_images_per_prompt", 1, low=1, high=MAX_IMAGES_PER_PROMPT)
    if len(set(images)) > 1:
        raise InvalidRequestError.of("num_images_per_prompt", images, "the same for all prompts of a request")
    width, height = _size(fields, pipeline, limits)
    timeout = min(fields.real("timeout_seconds", limits.default_timeout_seconds, low=1e-3, high=86_400.0))
    warnings = [text for text in fields.texts("tokenizer_warnings", "") if text]
    count = prompts * images[0]
    if count > limits.max_inflight:
        raise InvalidRequestError.of("images in one request", count, f"at most {limits.max_inflight}")
    parser = _RowParser(fields, pipeline, limits, (height, width), images[0])
    rows = tuple(parser.row(prompt, image, warnings) for prompt in range(prompts) for image in range(images[0]))
    return ImageRequest(rows=rows, warnings=tuple(dict.fromkeys(warnings)), timeout_seconds=timeout)


@dataclass(slots=True)
class _RowParser:
    fields: _Fields
    pipeline: Pipeline
    limits: Limits
    size: tuple[int, int]
    images: int

    def row(self, prompt: int, image: int, warnings: list[str]) -> ImageRow:
        fields, pipeline = self.fields, self.pipeline
        guidance = fields.real("guidance_scale", pipeline.default_guidance, low=0.0, high=self.limits.max_guidance)[prompt]
        name = _scheduler(fields.texts("scheduler", pipeline.default_scheduler)[prompt])
        steps = fields.whole("num_inference_steps", pipeline.default_steps, low=1, high=self.limits.max_steps)[prompt]
        strength = fields.real("strength", 0.8, low=0.0, high=1.0)[prompt]
        picture = fields.array("init_image", np.uint8, 4)
        if picture is None and "strength" in fields.inputs:
            raise InvalidRequestError("strength: it has no meaning without init_image", "strength")
        origin = 0 if picture is None else first_step(steps, strength)
        if origin == steps:
            raise InvalidRequestError.of("strength", strength, f"at least 1/num_inference_steps ({1 / steps:.3g})")
        begin, end = self._segment(prompt, origin, steps)
        try:
            table = build_table(name, pipeline.scheduler, steps, origin)
        except ScheduleError as error:
            raise InvalidRequestError(str(error), "num_inference_steps") from None
        embedded = pipeline.time_cond_proj_dim is not None
        guided = guidance > 1 and not embedded
        if pipeline.few_step and guided:
            warnings.append(
                f"guidance_scale: {guidance:g} is unsuitable for this few-step model; "
                f"{pipeline.default_guidance:g} is what it was distilled for"
            )
        latents, memory = self._state(prompt, image, begin > origin)
        positive = self._conditioning("", prompt, guidance)
        negative = self._negative(prompt, guidance) if guided else None
        if negative is not None and negative.states.shape != positive.states.shape:
            raise InvalidRequestError.of("shape of negative_prompt_embeds", negative.states.shape, "that of prompt_embeds")
        seeds = fields.whole("seed", None, low=0, high=MAX_SEED)
        seed = derived_seed(seeds[prompt], image) if seeds else secrets.randbits(63)
        return ImageRow(
            table=table,
            begin=begin,
            end=end,
            origin=origin,
            seed=seed,
            guidance_scale=guidance,
            positive=positive,
            negative=negative,
            latent_shape=(pipeline.latent_channels, *(side // pipeline.vae_scale_factor for side in self.size)),
            latents=latents,
            memory=memory,
            image=None if picture is None or memory is not None else self._picture(picture[prompt]),
        )

    def _segment(self, prompt: int, origin: int, steps: int) -> tuple[int, int]:
        begin = self.fields.whole("step_begin", origin, low=0, high=steps - 1)[prompt]
        end = self.fields.whole("step_end", steps, low=1, high=steps)[prompt]
        if not origin <= begin < end:
            raise InvalidRequestError.of("step_begin", begin, f"at least {origin} and below step_end ({end})")
        return begin, end

    def _state(self, prompt: int, image: int, resumes: bool) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        """Latents (and, for a resumed run, the solver's memory) of one image; they come one row an image."""
        channels, scale = self.pipeline.latent_channels, self.pipeline.vae_scale_factor
        shape = (channels, *(side // scale for side in self.size))
        latents = self.fields.array("latents", np.float32, 4)
        memory = self.fields.array("solver_memory", np.float32, 5)
        if resumes and (latents is None or memory is None):
            missing = "latents" if latents is None else "solver_memory"
            raise InvalidRequestError(f"{missing}: nothing is not allowed; a run resumed at step_begin > 0 needs it", missing)
        for field, value, expected in (("latents", latents, shape), ("solver_memory", memory, (MEMORY_ARRAYS, *shape))):
            if value is None:
                continue
            wanted = (self.fields.batch_size * self.images, *expected)
            if value.shape != wanted:
                raise InvalidRequestError.of(f"shape of {field}", value.shape, f"{wanted} for this size")
            if not np.isfinite(value).all():
                raise InvalidRequestError.of(field, "NaN or infinite", "finite everywhere")
        row = prompt * self.images + image
        return None if latents is None else latents[row], memory[row] if resumes and memory is not None else None

    def _picture(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if picture.shape != (*self.size, 3):
            raise InvalidRequestError.of("shape of init_image", picture.shape, f"{(*self.size, 3)}, as height and width say")
        return picture

    def _negative(self, prompt: int, guidance: float) -> Conditioning:
        zeroed = self.pipeline.force_zeros_for_empty_prompt and "negative_prompt" not in self.fields.inputs
        made = self._conditioning("negative_", prompt, guidance)
        if not zeroed:
            return made
        extra = {name: np.zeros_like(value) if name == "text_embeds" else value for name, value in made.extra.items()}
        return Conditioning(states=np.zeros_like(made.states), extra=extra)

    def _conditioning(self, prefix: str, prompt: int, guidance: float) -> Conditioning:
        states = self.fields.embeds(f"{prefix}prompt_embeds", 3)[prompt]
        extra: dict[str, NDArray[np.float32]] = {}
        if self.pipeline.family == "sdxl":
            second = self.fields.embeds(f"{prefix}prompt_embeds_2", 3)[prompt]
            if second.shape[0] != states.shape[0]:
                raise InvalidRequestError.of(f"tokens of {prefix}prompt_embeds_2", second.shape[0], f"{states.shape[0]}")
            states = np.concatenate([states, second], axis=-1)
            extra["text_embeds"] = self.fields.embeds(f"pooled_{prefix}prompt_embeds", 2)[prompt]
            height, width = self.size  # original size, crop corner, target size
            extra["time_ids"] = np.array([height, width, 0, 0, height, width], dtype=np.float32)
        if self.pipeline.time_cond_proj_dim is not None:
            extra["timestep_cond"] = guidance_embedding(guidance, self.pipeline.time_cond_proj_dim)
        return Conditioning(states=states, extra=extra)


def first_step(steps: int, strength: float) -> int:
    """Where img2img joins a run of `steps` steps; `strength` comes as float32, whose last digits must not cost a step."""
    return steps - min(int(round(steps * strength, 4)), steps)


def guidance_embedding(guidance_scale: float, width: int) -> NDArray[np.float32]:
    """How a guidance-distilled UNet is told the guidance (Luo et al., 2023): float32, sines then cosines of 1000 (w - 1)."""
    half = width // 2
    frequencies = np.exp(np.arange(half) * -(math.log(10_000) / (half - 1)))
    angles = 1000 * (guidance_scale - 1) * frequencies
    return np.pad(np.concatenate([np.sin(angles), np.cos(angles)]), (0, width % 2)).astype(np.float32)


def _size(fields: _Fields, pipeline: Pipeline, limits: Limits) -> tuple[int, int]:
    """(width, height) of all images of a request."""
    picture = fields.array("init_image", np.uint8, 4)
    default_height, default_width = (
        picture.shape[1:3]
        if picture is not None
        else (
            pipeline.default_height,
            pipeline.default_width,
        )
    )
    sides = []
    for field, default in (("width", default_width), ("height", default_height)):
        values = fields.whole(field, default, low=1, high=2**16)
        if len(set(values)) > 1:
            raise InvalidRequestError.of(field, values, "the same for all prompts of a request")
        if values[0] % pipeline.size_multiple:
            raise InvalidRequestError.of(field, values[0], f"a multiple of {pipeline.size_multiple}")
        sides.append(values[0])
    if sides[0] * sides[1] > limits.max_pixels:
        raise InvalidRequestError.of("width x height", f"{sides[0]} x {sides[1]}", f"at most {limits.max_pixels} pixels")
    return sides[0], sides[1]


def _scheduler(text: str) -> SchedulerName:
    try:
        return SchedulerName(text)
    except ValueError:
        raise InvalidRequestError.of("scheduler", text, f"one of {', '.join(SCHEDULERS)}") from None


@dataclass(slots=True)
class _Fields:
    """Typed reading of raw inputs: one value a prompt, or the default for all."""

    inputs: Inputs

    @property
    def batch_size(self) -> int:
        embeds = self.inputs.get("prompt_embeds")
        if embeds is None or embeds.ndim < 1 or embeds.shape[0] < 1:
            shape = None if embeds is None else embeds.shape
            raise InvalidRequestError.of("shape of prompt_embeds", shape, "prompts x tokens x width, one prompt at least")
        return int(embeds.shape[0])

    def _values(self, field: str) -> np.ndarray | None:
        value = self.inputs.get(field)
        if value is None:
            return None
        if value.size != self.batch_size:
            raise InvalidRequestError.of(f"shape of {field}", value.shape, f"one value for each of {self.batch_size} prompts")
        return value.reshape(-1)

    def whole(self, field: str, default: int | None, *, low: int, high: int) -> list[int]:
        """Whole numbers within bounds; [] where absent without a default."""
        values = self._values(field)
        if values is None:
            return [] if default is None else [default] * self.batch_size
        for value in values:
            if not low <= value <= high:
                raise InvalidRequestError.of(field, int(value), f"{low} to {high}")
        return [int(value) for value in values]

    def real(self, field: str, default: float, *, low: float, high: float) -> list[float]:
        values = self._values(field)
        if values is None:
            return [default] * self.batch_size
        for value in values:
            if not low <= value <= high:  # also true of NaN
                raise InvalidRequestError.of(field, float(value), f"{low:g} to {high:g}")
        return [float(value) for value in values]

    def texts(self, field: str, default: str) -> list[str]:
        values = self._values(field)
        if values is None:
            return [default] * self.batch_size
        return [decode_text(field, value) for value in values]

    def array(self, field: str, dtype: type[np.generic], rank: int) -> np.ndarray | None:
        value = self.inputs.get(field)
        if value is not None and (value.dtype != dtype or value.ndim != rank):
            shown = f"{value.dtype} of rank {value.ndim}"
            raise InvalidRequestError.of(field, shown, f"{np.dtype(dtype)} of rank {rank}")
        return value

    def embeds(self, field: str, rank: int) -> NDArray[np.float32]:
        value = self.array(field, np.float32, rank)
        if value is None:
            raise InvalidRequestError(f"{field}: nothing is not allowed; this model needs it", field)
        if value.shape[0] != self.batch_size or 0 in value.shape:
            raise InvalidRequestError.of(f"shape of {field}", value.shape, f"{self.batch_size} non-empty rows")
        if not np.isfinite(value).all():
            raise InvalidRequestError.of(field, "NaN or infinite", "finite everywhere")
        return value


def decode_text(field: str, value: object) -> str:
    """Text of one BYTES element; raises InvalidRequestError when it is not UTF-8."""
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        raise InvalidRequestError.of(field, value, "UTF-8 text")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidRequestError.of(field, value, "UTF-8 text") from None

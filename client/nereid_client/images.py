"""An image request and its results as types, and their translation to and from the models' tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nereid_client.errors import InvalidRequestError

Tensors = dict[str, np.ndarray]

IMAGE_OUTPUTS = ("generated_image", "image_seed", "warnings", "timings")
STREAM_OUTPUTS = (
    "step",
    "num_inference_steps",
    "picture_shape",
    "preview",
    "generated_image",
    "image_seed",
    "warnings",
    "timings",
)
_INT64_MAX = 2**63 - 1


class ImageRequest(BaseModel):
    """What to draw. Everything but the prompt may be left to the model's own defaults.

    `init_image` is uint8, height x width x 3; `latents` is float32, channels x height/8 x width/8 (img2img and starting
    noise). The server checks ranges against its own limits; only types are checked here.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", frozen=True, strict=True)

    prompt: str
    negative_prompt: str | None = None
    num_inference_steps: int | None = Field(None, ge=-(2**31), lt=2**31)
    guidance_scale: float | None = None
    seed: int | None = Field(None, ge=-_INT64_MAX, le=_INT64_MAX)
    scheduler: str | None = None
    width: int | None = Field(None, ge=-(2**31), lt=2**31)
    height: int | None = Field(None, ge=-(2**31), lt=2**31)
    num_images_per_prompt: int | None = Field(None, ge=-(2**31), lt=2**31)
    init_image: Any = None
    strength: float | None = None
    latents: Any = None
    preview_interval: int | None = Field(None, ge=-(2**31), lt=2**31)

    @classmethod
    def of(cls, **fields: Any) -> ImageRequest:
        """Check types; raises InvalidRequestError naming the first field that is wrong."""
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise InvalidRequestError(f"{name}: {first['input']!r} is not allowed: {first['msg'].lower()}") from None

    def tensors(self, *, timeout: float | None, batched: bool) -> Tensors:
        """Inputs of the models by name; with a leading batch dimension of 1 where `batched`."""
        values: Tensors = {"prompt": _text(self.prompt)}
        if self.negative_prompt is not None:
            values["negative_prompt"] = _text(self.negative_prompt)
        if self.scheduler is not None:
            values["scheduler"] = _text(self.scheduler)
        for names, dtype in ((_WHOLE, np.int32), (("seed",), np.int64), (_REAL, np.float32)):
            for name in names:
                if (value := getattr(self, name)) is not None:
                    values[name] = np.array([value], dtype=dtype)
        if self.init_image is not None:
            values["init_image"] = np.asarray(_pixels(self.init_image))
        if self.latents is not None:
            values["latents"] = np.asarray(self.latents, dtype=np.float32)
        if timeout is not None:
            values["timeout_seconds"] = np.array([timeout], dtype=np.float32)
        return {name: value[None] for name, value in values.items()} if batched else values


_WHOLE = ("num_inference_steps", "width", "height", "num_images_per_prompt", "preview_interval")
_REAL = ("guidance_scale", "strength")


def _text(value: str) -> np.ndarray:
    return np.array([value.encode()], dtype=np.object_)


def _pixels(image: Any) -> np.ndarray:
    """A PIL image or an array as uint8 height x width x 3."""
    return np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResult:
    """Finished images of one request.

    `pixels` is uint8, images x height x width x 3; `seeds` reproduce each image alone; times are seconds on the server.
    """

    pixels: NDArray[np.uint8]
    seeds: tuple[int, ...]
    warnings: tuple[str, ...]
    queue_seconds: float
    denoise_seconds: float
    run_id: str = ""

    @property
    def image(self) -> Image.Image:
        """The first image."""
        return Image.fromarray(self.pixels[0])

    @property
    def images(self) -> tuple[Image.Image, ...]:
        return tuple(Image.fromarray(pixels) for pixels in self.pixels)

    @property
    def seed(self) -> int:
        """The first image's seed."""
        return self.seeds[0]

    @classmethod
    def from_tensors(cls, outputs: Mapping[str, np.ndarray]) -> ImageResult:
        pixels = outputs["generated_image"]
        texts = [text.decode() for text in outputs["warnings"].reshape(-1)]
        queue, denoise = (float(value) for value in outputs["timings"].reshape(-1)[:2])
        return cls(
            pixels=pixels if pixels.ndim == 4 else pixels[None],
            seeds=tuple(int(seed) for seed in outputs["image_seed"].reshape(-1)),
            warnings=tuple(line for line in texts[0].splitlines() if line) if texts else (),
            queue_seconds=queue,
            denoise_seconds=denoise,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProgress:
    """A request on its way: `step` of `num_inference_steps` are done; `preview` is uint8, height/8 x width/8 x 3."""

    step: int
    num_inference_steps: int
    preview: NDArray[np.uint8]

    @property
    def preview_image(self) -> Image.Image:
        return Image.fromarray(self.preview)


def from_stream(outputs: Mapping[str, np.ndarray]) -> ImageProgress | ImageResult:
    """One answer of the stream as a type."""
    if "generated_image" in outputs:
        return ImageResult.from_tensors(outputs)
    return ImageProgress(
        step=int(outputs["step"][0]),
        num_inference_steps=int(outputs["num_inference_steps"][0]),
        preview=outputs["preview"],
    )

"""Bodies of AUTOMATIC1111's txt2img, img2img and options as far as they can be honoured; all else is refused by name."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from nereid.serving.gateway.a1111.samplers import ETA_FIELD, SAMPLER, SCHEDULE, Chosen, chosen
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.image_models import ImageModel
from nereid.serving.gateway.picture_forms import MASK
from nereid.serving.gateway.pictures import Fit
from nereid.serving.gateway.sent import Sent
from nereid.serving.gateway.unused import unused_field
from nereid.serving.gateway.unused_field import IMG2IMG, MASKED, SETTINGS, TXT2IMG, UnusedField
from nereid_protocol.field import MAX_SEED

NAMES: Mapping[str, str] = {
    "num_inference_steps": "steps",
    "guidance_scale": "cfg_scale",
    "scheduler": SAMPLER,
    "timestep_spacing": SCHEDULE,
    "strength": "denoising_strength",
    "init_image": "init_images",
    "mask_image": MASK,
    "latent_upscale": "resize_mode",
}
"""The caller's names of the request's fields, for errors."""
PICTURE, INFO_PICTURE = "init_images.0", "image"
MODEL = "sd_model_checkpoint"
_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>")
_WEIGHT = re.compile(r"(?<!\\)[(\[][^()\[\]]*:\s*[0-9.]+\s*[)\]]")
_RANDOM_BITS = 32
MOST_PICTURES = 64
"""Of one request."""
_BY_LATENTS, _LATENT_UPSCALE = 3, "bilinear"
"""The `resize_mode` that is done to latents, and how."""
_FILLS = {2: "latent_noise", 3: "latent_nothing"}
"""What of `inpainting_fill` is done to latents."""
USUAL_BLUR, MOST_BLUR = 4.0, 256.0
"""Of a mask, in pixels."""


class Settings(Sent):
    """What a front end may set: the model, how pictures are written, and of other settings the value that they have."""

    place = SETTINGS
    casts = True

    sd_model_checkpoint: str | None = None
    samples_format: Literal["png", "jpg", "jpeg", "webp"] | None = None
    jpeg_quality: int | None = Field(default=None, ge=1, le=100)
    webp_lossless: bool | None = None


class DrawBody(Sent):
    """What txt2img and img2img share. Fields that are absent are the checkpoint's own."""

    casts = True

    prompt: str = ""
    negative_prompt: str = ""
    steps: int | None = Field(default=None, ge=1)
    cfg_scale: float | None = None
    width: int | None = Field(default=None, ge=1)
    height: int | None = Field(default=None, ge=1)
    seed: int = Field(default=-1, ge=-1, le=MAX_SEED)
    sampler_name: str | None = None
    sampler_index: str | None = None
    sampler: str | None = None
    scheduler: str | None = None
    eta: float | None = None
    s_noise: float | None = None
    batch_size: int = Field(default=1, ge=1, le=16)
    n_iter: int = Field(default=1, ge=1)
    override_settings: Settings = Field(default_factory=Settings)
    override_settings_restore_afterwards: bool = True
    send_images: bool = True

    @property
    def count(self) -> int:
        return self.batch_size * self.n_iter

    def check(self) -> None:
        """Raise ApiError for too many pictures, and for what a prompt asks beside words."""
        if self.count > MOST_PICTURES:
            sentence = f"n_iter: {self.n_iter} x batch_size {self.batch_size} is not allowed; it must be {MOST_PICTURES} at most"
            raise ApiError(400, sentence, param="n_iter")
        for name in ("prompt", "negative_prompt"):
            if found := _NETWORK.search(getattr(self, name)):
                sentence = f"{name}: {found[0][:80]!r} is not supported; LoRAs are fused when a model is exported"
                raise ApiError(400, sentence, param=name)

    def solver(self, model: ImageModel) -> Chosen:
        """Raises ApiError."""
        name = self.sampler_name or self.sampler_index or self.sampler or None
        return chosen(name, self.scheduler or None, self.eta, self.s_noise, flow=model.is_flow, own=model.scheduler)

    def seeds(self) -> tuple[int, ...]:
        """One for each picture, each one more than that before; raises ApiError where there are no more."""
        first = random.SystemRandom().getrandbits(_RANDOM_BITS) if self.seed < 0 else self.seed
        if first + self.count - 1 > MAX_SEED:
            raise ApiError(400, f"seed: {first} is not allowed for {self.count} pictures; it must be smaller", param="seed")
        return tuple(first + index for index in range(self.count))

    def side(self, name: str, model: ImageModel) -> int | None:
        """The width or height that is drawn of what is asked: as AUTOMATIC1111 does it, as many whole latents as it has."""
        asked: int | None = getattr(self, name)
        if asked is None or asked < model.size_multiple:
            return asked
        return asked - asked % model.size_multiple

    def options(self, sampler: Chosen, model: ImageModel) -> dict[str, Any]:
        """The request's fields by the SDK's names, without the seed."""
        return {
            "negative_prompt": self.negative_prompt or None,
            "num_inference_steps": self.steps,
            "guidance_scale": self.cfg_scale,
            "scheduler": sampler.scheduler,
            "timestep_spacing": sampler.timestep_spacing,
            ETA_FIELD: sampler.eta,
            "width": self.side("width", model),
            "height": self.side("height", model),
        }

    def warnings(self, model: ImageModel) -> Iterator[str]:
        """What is read in another way than its writer may think."""
        for name in ("width", "height"):
            if (drawn := self.side(name, model)) != getattr(self, name):
                yield f"{name}: {getattr(self, name)} is read as {drawn}, a multiple of {model.size_multiple}"
        for name in ("prompt", "negative_prompt"):
            if found := _WEIGHT.search(getattr(self, name)):
                yield f"{name}: weights such as {found[0][:40]!r} are read as plain text"


class TextToImageBody(DrawBody):
    place = TXT2IMG


class PictureInfoBody(Sent):
    """A picture whose texts are asked for."""

    image: str = Field(min_length=1)


class ImageToImageBody(DrawBody):
    """`resize_mode` 0 stretches a picture of other proportions, 1 cuts it, 2 fills what is missing with its edges, 3 stretches
    its latents.

    What is white in a `mask` is drawn anew; it begins as the colours around it (`inpainting_fill` 0), as it is (1), or as the
    former with noise (2) or nothing (3) in place of its latents.
    """

    place = IMG2IMG

    init_images: list[str] = Field(min_length=1, max_length=1)
    denoising_strength: float = 0.75
    resize_mode: Literal[0, 1, 2, 3] = 0
    include_init_images: bool = False
    mask: str | None = None
    mask_blur: float | None = Field(default=None, ge=0, le=MOST_BLUR)
    mask_blur_x: float = Field(default=USUAL_BLUR, ge=0, le=MOST_BLUR)
    mask_blur_y: float = Field(default=USUAL_BLUR, ge=0, le=MOST_BLUR)
    inpainting_mask_invert: int = Field(default=0, ge=0, le=1)
    inpainting_fill: int = Field(default=0, ge=0, le=3)
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = Field(default=0, ge=0)

    @classmethod
    def places_of(cls, value: Mapping[str, Any]) -> tuple[str, ...]:
        return (MASKED, IMG2IMG) if value.get(MASK) else (IMG2IMG,)

    @classmethod
    def row_of(cls, name: str) -> UnusedField | None:
        return unused_field(MASKED, name) or unused_field(IMG2IMG, name)

    @property
    def blur(self) -> tuple[float, float]:
        """Of the mask, across and down, in pixels."""
        return (self.mask_blur_x, self.mask_blur_y) if self.mask_blur is None else (self.mask_blur, self.mask_blur)

    @property
    def fit(self) -> Fit:
        return (Fit.STRETCHED, Fit.CUT, Fit.PADDED, Fit.STRETCHED)[self.resize_mode]

    def options(self, sampler: Chosen, model: ImageModel) -> dict[str, Any]:
        return {
            **super().options(sampler, model),
            "strength": self.denoising_strength,
            "latent_upscale": _LATENT_UPSCALE if self.resize_mode == _BY_LATENTS else None,
            "inpainting_fill": _FILLS.get(self.inpainting_fill) if self.mask else None,
        }

"""Bodies of OpenAI's API for images as far as they can be honoured; whatever else is sent is refused by name."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, create_model, field_validator

from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.image_models import ImageModel
from nereid.serving.gateway.picture_forms import IMAGE, MASK
from nereid.serving.gateway.pictures import Encoding, from_base64
from nereid.serving.gateway.sent import Sent
from nereid.serving.gateway.unused_field import EDITS, IMAGES, VARIATIONS
from nereid_client.images import OPTIONS, annotation
from nereid_protocol.field import Field as RequestField
from nereid_protocol.image_fields import BY_NAME

IMAGE_EXTENSIONS = tuple(field for field in OPTIONS if field.gateway)
"""Request fields that are taken beside OpenAI's own, under their own names."""
_OF_PICTURES = tuple(BY_NAME[name] for name in ("strength", "latent_upscale"))
_OF_PARTS = (*_OF_PICTURES, BY_NAME["inpainting_fill"])
"""Those that edits take, too; variations are of whole pictures."""
_CHOOSE_STEPS = ("num_inference_steps", "timesteps", "sigmas")
MOST_IMAGES = 16
B = TypeVar("B", bound="PictureBody")


class Quality(StrEnum):
    """How much work a picture is worth."""

    AUTO = "auto"
    STANDARD = "standard"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    HD = "hd"

    @property
    def share(self) -> float:
        """Of the checkpoint's usual steps."""
        return {Quality.LOW: 0.5, Quality.HIGH: 2.0, Quality.HD: 2.0}.get(self, 1.0)


class PictureBody(Sent):
    """What all endpoints for images have, and the request fields that are `taken` beside it, under their own names.

    Without `model` it is the only image model that is served.
    """

    taken: ClassVar[tuple[RequestField, ...]] = IMAGE_EXTENSIONS

    model: str | None = None
    n: int = Field(default=1, ge=1, le=MOST_IMAGES)
    size: str | None = None
    quality: Quality = Quality.AUTO
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int | None = Field(default=None, ge=0, le=100)

    @field_validator("size")
    @classmethod
    def _two_numbers(cls, value: str | None) -> str | None:
        if value is not None and value != "auto":
            parts = value.split("x")
            if len(parts) != 2 or not all(part.isdecimal() and len(part) < 6 for part in parts):
                raise ValueError("must be WIDTHxHEIGHT, such as 512x512, or auto")
        return value

    @property
    def sides(self) -> tuple[int, int] | None:
        """Width and height; None where they are left to the model."""
        if self.size in (None, "auto"):
            return None
        width, height = str(self.size).split("x")
        return int(width), int(height)

    @property
    def encoding(self) -> Encoding:
        return Encoding(format=self.output_format, compression=self.output_compression)

    def check(self) -> None:
        """Raise ApiError for fields that do not go together."""
        if self.output_format == "png" and self.output_compression not in (None, 100):
            allowed = "it must be 100, or absent, where output_format is png"
            raise ApiError(
                400, f"output_compression: {self.output_compression} is not allowed; {allowed}", param="output_compression"
            )

    def options(self, model: ImageModel) -> dict[str, Any]:
        """The request's fields, by the SDK's names; raises ApiError where `quality` cannot be had."""
        asked = {name: getattr(self, name) for name in (field.name for field in self.taken)}
        if self.quality.share != 1:
            asked["num_inference_steps"] = self._steps(model, asked)
        width, height = self.sides or (None, None)
        return {**asked, "width": width, "height": height}

    def _steps(self, model: ImageModel, asked: dict[str, Any]) -> int:
        for name in _CHOOSE_STEPS:
            if asked[name] is not None:
                raise ApiError(
                    400, f"quality: {self.quality} is not allowed with {name}, which chooses the work", param="quality"
                )
        if model.steps is None:
            raise ApiError(400, f"quality: {self.quality} is not allowed; this model does not say its steps", param="quality")
        return min(model.most_steps, max(1, round(self.quality.share * model.steps)))


class _StreamedBody(PictureBody):
    prompt: str = Field(min_length=1)
    stream: bool = False
    partial_images: int = Field(default=0, ge=0, le=3)

    def check(self) -> None:
        super().check()
        if self.stream and self.n != 1:
            raise ApiError(400, f"n: {self.n} images cannot be streamed; it must be 1", param="n")
        if self.stream and self.response_format != "b64_json":
            sentence = "response_format: url is not allowed with stream; it must be b64_json"
            raise ApiError(400, sentence, param="response_format")


class OpenAIImageBody(_StreamedBody):
    """What OpenAI's endpoint for generations has."""

    place = IMAGES


class OpenAIEditBody(_StreamedBody):
    """What OpenAI's endpoint for edits has, beside its pictures."""

    place = EDITS
    taken = (*IMAGE_EXTENSIONS, *_OF_PARTS)


class SentPicture(Sent):
    """A picture in JSON: a data: URL of it, under OpenAI's name or xAI's."""

    image_url: str | None = None
    url: str | None = None
    type: Literal["image_url"] | None = None


class OpenAIEditJsonBody(OpenAIEditBody):
    """The same in JSON, where pictures are data: URLs: OpenAI's `images`, or one that has the name which it has in a form."""

    images: list[SentPicture] | None = Field(default=None, min_length=1, max_length=1)
    image: str | SentPicture | None = None
    mask: str | SentPicture | None = None

    def pictures(self) -> tuple[bytes, bytes | None]:
        """The picture, and what says which part of it is changed; raises ApiError."""
        if self.images is not None and self.image is not None:
            raise ApiError(400, "image: it is not allowed beside images; it must be one of both", param=IMAGE)
        found = _bytes("images.0", self.images[0]) if self.images else _bytes(IMAGE, self.image)
        if found is None:
            sentence = "images: it is missing; it must be a list of one picture, as image_url, a data: URL of it"
            raise ApiError(400, sentence, param="images", code="missing_required_parameter")
        return found, _bytes(MASK, self.mask)


def _bytes(field: str, sent: str | SentPicture | None) -> bytes | None:
    if isinstance(sent, SentPicture):
        name = f"{field}.{'image_url' if sent.url is None else 'url'}"
        if not (address := sent.image_url or sent.url):
            raise ApiError(400, f"{name}: it is missing; it must be a data: URL of a picture", param=name)
        return from_base64(address, name)
    return from_base64(sent, field) if sent else None


class OpenAIVariationBody(PictureBody):
    """What OpenAI's endpoint for variations has, beside its picture, and a prompt, which may say what the picture shows."""

    place = VARIATIONS
    taken = (*IMAGE_EXTENSIONS, *_OF_PICTURES)

    prompt: str = ""


def _with_taken(name: str, base: type[B], doc: str) -> type[B]:
    """The body with the request fields that it takes."""
    members: Any = {field.name: (annotation(field), None) for field in base.taken}
    return create_model(name, __base__=base, __doc__=doc, **members)


ImageBody = _with_taken(
    "ImageBody", OpenAIImageBody, "What OpenAI's endpoint has, and the request fields that the table gives the gateway."
)
EditBody = _with_taken("EditBody", OpenAIEditBody, "The same of edits, and what is of pictures and their parts.")
EditJsonBody = _with_taken("EditJsonBody", OpenAIEditJsonBody, "The same in JSON.")
VariationBody = _with_taken("VariationBody", OpenAIVariationBody, "The same of variations, and what is of pictures.")

"""An image request and its results as types, and their translation to and from the models' tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError, create_model

from nereid_client.errors import InvalidRequestError
from nereid_protocol.field import DType
from nereid_protocol.field import Field as RequestField
from nereid_protocol.image_fields import IMAGE_FIELDS

Tensors = dict[str, np.ndarray]
T = TypeVar("T", bound=BaseModel)

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_TYPES: dict[DType, Any] = {
    DType.STRING: str,
    DType.INT32: Annotated[int, Field(ge=-(2**31), lt=2**31)],
    DType.INT64: Annotated[int, Field(ge=-(2**63), lt=2**63)],
    DType.FP32: Annotated[float, Field(ge=-_FLOAT32_MAX, le=_FLOAT32_MAX)],
}
_NUMPY = {DType.INT32: np.int32, DType.INT64: np.int64, DType.FP32: np.float32, DType.UINT8: np.uint8}
_SAID_ELSEWHERE = ("prompt", "timeout_seconds", "run_id")
"""Fields that a call has arguments of their own for."""

OPTIONS = tuple(field for field in IMAGE_FIELDS if field.client_side and field.name not in _SAID_ELSEWHERE)
"""The fields that `options` of an image request may name."""


class TypedRequest(BaseModel):
    """Fields whose types are checked, and no others."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", frozen=True, strict=True)

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """Check types; raises InvalidRequestError naming the first field that is wrong."""
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            message = f"{name}: {first['input']!r} is not allowed: {first['msg'].lower()}"
            raise InvalidRequestError(message, str(first["loc"][0])) from None


class _ImageRequest(TypedRequest):
    prompt: str

    def tensors(self, *, timeout: float | None, batched: bool) -> Tensors:
        """Inputs of the models by name; with a leading batch dimension of 1 where `batched`."""
        values: Tensors = {"prompt": _text("prompt", self.prompt)}
        for field in OPTIONS:
            if (value := getattr(self, field.name)) is not None:
                values[field.name] = tensor_of(field, value)
        if timeout is not None:
            values["timeout_seconds"] = np.array([timeout], dtype=np.float32)
        return {name: value[None] for name, value in values.items()} if batched else values


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def annotation(field: RequestField) -> Any:
    """A field's type in Python: numbers and texts are checked here, ranges by the server against its own limits."""
    if -1 in field.shape and not field.listed:
        return Any
    kind: Any = Annotated[str, BeforeValidator(_as_text)] if field.or_number else _TYPES[field.dtype]
    if field.scalar:
        return kind | None
    several: Any = tuple.__class_getitem__((kind, ...) if field.listed else (kind,) * field.shape[0])
    lenient: Any = Annotated[several, Strict(False)]
    return lenient | None


def request_model(name: str, doc: str, options: Sequence[RequestField], base: type[T]) -> type[T]:
    """A type of requests with a member for each option, None where it is left to the server."""
    members: Any = {field.name: (annotation(field), None) for field in options}
    return create_model(name, __base__=base, __doc__=doc, **members)


ImageRequest = request_model(
    "ImageRequest",
    "What to draw. Everything but the prompt may be left to the model's own defaults; docs/reference.md has all fields.",
    OPTIONS,
    _ImageRequest,
)


def tensor_of(field: RequestField, value: Any) -> np.ndarray:
    """A field's value without a batch dimension."""
    if field.dtype is DType.STRING:
        return _text(field.name, value)
    if field.dtype is DType.UINT8:
        return _pixels(value) if len(field.shape) == 3 else _mask(value)
    dtype = _NUMPY[field.dtype]
    return np.array([value], dtype) if field.scalar else np.asarray(value, dtype)


def _text(field: str, value: str) -> np.ndarray:
    return np.array([encoded(field, value)], dtype=np.object_)


def encoded(field: str, value: str) -> bytes:
    """A text as it is sent; raises InvalidRequestError where it holds a lone surrogate, which is no character."""
    try:
        return value.encode()
    except UnicodeEncodeError:
        shown = value[:80].encode(errors="backslashreplace").decode()
        raise InvalidRequestError(f"{field}: {shown!r} is not allowed; it must be Unicode text", field) from None


def _pixels(image: Any) -> np.ndarray:
    """A PIL image or an array as uint8 height x width x 3."""
    return np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)


def _mask(mask: Any) -> np.ndarray:
    """A PIL image (its greys), an array, or one of truth values as uint8 height x width."""
    made = np.asarray(mask.convert("L") if isinstance(mask, Image.Image) else mask)
    return made * np.uint8(255) if made.dtype == np.bool_ else made


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


PREVIEW_SCALE = 8
"""Of servers that do not say it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProgress:
    """A request on its way: `step` of `num_inference_steps` are done; `preview` is uint8, height x width x 3.

    One of its pixels is `preview_scale` of the picture's wide: 1 where the server decodes previews, else usually 8.
    """

    step: int
    num_inference_steps: int
    preview: NDArray[np.uint8]
    preview_scale: int = PREVIEW_SCALE

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
        preview_scale=int(outputs["preview_scale"][0]) if "preview_scale" in outputs else PREVIEW_SCALE,
    )

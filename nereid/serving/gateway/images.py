"""Images in OpenAI's form: pictures in base64 or by address, whole, or with partial ones on the way; knows no route."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nereid.diffusion.options import default_strength, first_step
from nereid.serving.gateway.image_bodies import PictureBody, Quality
from nereid.serving.gateway.image_models import ImageModel
from nereid.serving.gateway.masks import fitted_mask
from nereid.serving.gateway.pictures import Encoding, Fit, fitted, in_base64
from nereid.serving.gateway.waiting import Event
from nereid_client import AsyncClient, ImageProgress, ImageResult
from nereid_client.errors import InvalidRequestError

NAMES: Mapping[str, str] = {"num_images_per_prompt": "n", "width": "size", "height": "size"}
"""The caller's names of the request's fields, for errors."""
CHANGED_NAMES: Mapping[str, str] = {**NAMES, "init_image": "image", "mask_image": "mask"}
Link = Callable[[Sequence[bytes], str], list[str]]
"""Keeps files of a media type for the caller, and says their addresses; raises ApiError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What is to be drawn, by the SDK's names, and what is told of it; `kind` begins its events' names."""

    prompt: str
    options: Mapping[str, Any]
    kind: str = "image_generation"
    warnings: tuple[str, ...] = ()

    def steps(self, progress: ImageProgress) -> tuple[int, int]:
        """How many steps are done, and how many there are, of those that it takes: from a picture on the last ones."""
        begin = begin_of(self.options, progress.num_inference_steps)
        return max(0, progress.step - begin), progress.num_inference_steps - begin


def begin_of(options: Mapping[str, Any], steps: int) -> int:
    """The step that a run of so many joins at."""
    if options.get("init_image") is None:
        return 0
    strength = options.get("strength")
    if strength is None:
        strength = default_strength(masked=options.get("mask_image") is not None)
    return min(steps - 1, first_step(steps, strength))


def drawn_size(options: Mapping[str, Any], picture: Any, model: ImageModel) -> tuple[int, int]:
    """Width and height that are asked for of a drawing from a picture, or that the model draws of its like.

    Raises InvalidRequestError for more pixels than the model draws, and for none: the picture is brought to this size here.
    """
    usual = model.fitting(*picture.size)
    asked = options["width"], options["height"]
    width, height = (of if side is None else side for side, of in zip(asked, usual, strict=True))
    if not 1 <= width * height <= model.most_pixels:
        sentence = f"{width} x {height} is not allowed; it must be 1 to {model.most_pixels} pixels"
        raise InvalidRequestError(f"width: {sentence}", "width")
    return width, height


def from_picture(
    prompt: str,
    options: Mapping[str, Any],
    picture: Any,
    model: ImageModel,
    kind: str,
    *,
    mask: Any = None,
    fit: Fit = Fit.CUT,
) -> Drawing:
    """A drawing that starts from an RGB picture, which is brought to the size asked for, or to one that the model draws.

    Where there is a mask (of greys), what is white in it is drawn anew. With `latent_upscale` the server brings it to that size,
    whatever its proportions: it only gets sides that it can be encoded with.
    """
    width, height = drawn_size(options, picture, model)
    warnings: tuple[str, ...] = ()
    sent = (width, height)
    if options.get("latent_upscale") is not None:
        sent, fit = model.encoded(*picture.size), Fit.STRETCHED
    if picture.size != sent:
        shown = f"{picture.width} x {picture.height}"
        proportions = picture.width * sent[1] != picture.height * sent[0]
        how = f", and {fit} to these proportions" if proportions else ""
        warnings = (f"image: {shown} pixels were scaled to {sent[0]} x {sent[1]}{how}",)
        picture = fitted(picture, sent, fit)
    chosen = {**options, "width": width, "height": height, "init_image": picture}
    if mask is not None:
        chosen["mask_image"] = fitted_mask(mask, (width, height), fit)
    return Drawing(prompt=prompt, options=chosen, kind=kind, warnings=warnings)


def check_sides(drawing: Drawing, encoding: Encoding) -> None:
    """Before it is drawn; raises InvalidRequestError for a picture that could not be written in its format."""
    for side in ("width", "height"):
        pixels = drawing.options.get(side) or 0
        if encoding.longest_side is not None and pixels > encoding.longest_side:
            allowed = f"of {encoding.format} no side may have more than {encoding.longest_side} pixels"
            raise InvalidRequestError(f"{side}: a side of {pixels} pixels is not allowed; {allowed}", side)


MakeDrawing = Callable[[], Awaitable[Drawing]]


@dataclass(frozen=True, slots=True)
class _Told:
    """How pictures of one body are told."""

    body: PictureBody
    created: int = field(default_factory=lambda: int(time.time()))

    def facts(self, width: int, height: int) -> dict[str, Any]:
        return {
            "background": "opaque",
            "output_format": self.body.output_format,
            "size": f"{width}x{height}",
            "quality": _QUALITIES.get(self.body.quality, str(self.body.quality)),
        }


_QUALITIES = {Quality.AUTO: "auto", Quality.STANDARD: "medium", Quality.HD: "high"}
"""What answers call those that have another name."""


async def whole(
    client: AsyncClient, drawing: Drawing, body: PictureBody, request_id: str, link: Link | None = None
) -> dict[str, Any]:
    """All `n` images in one answer; by address where there is a `link`."""
    told = _Told(body)
    check_sides(drawing, body.encoding)
    result = await client.generate_image(drawing.prompt, num_images_per_prompt=body.n, request_id=request_id, **drawing.options)
    files = [await _encoded(pixels, body.encoding) for pixels in result.pixels]
    if link is None:
        data = [{"b64_json": in_base64(file)} for file in files]
    else:
        data = [{"url": url} for url in link(files, body.encoding.media_type)]
    height, width = result.pixels.shape[1:3]
    warnings = [*drawing.warnings, *result.warnings]
    return {"created": told.created, "data": data, **told.facts(width, height), "warnings": warnings}


async def stream(
    client: AsyncClient, drawing: Drawing, body: PictureBody, partial_images: int, request_id: str
) -> AsyncGenerator[Event, None]:
    """`partial_images` previews on the way, spread evenly, then the image, as (event name, body)."""
    told, shown = _Told(body), 0
    check_sides(drawing, body.encoding)
    answers = client.stream_image(drawing.prompt, request_id=request_id, **drawing.options)

    def event(name: str, file: bytes, width: int, height: int, **more: Any) -> Event:
        kind = f"{drawing.kind}.{name}"
        facts = {"created_at": told.created, **told.facts(width, height), **more}
        return kind, {"type": kind, "b64_json": in_base64(file), **facts}

    try:
        async for answer in answers:
            if isinstance(answer, ImageProgress):
                done, steps = drawing.steps(answer)
                due = (partial_images + 1) * done // steps
                if answer.preview is not None and shown < min(due, partial_images):
                    scale = answer.preview_scale
                    height, width = (scale * side for side in answer.preview.shape[:2])
                    file = await _encoded(answer.preview, body.encoding, scale)
                    yield event("partial_image", file, width, height, partial_image_index=shown)
                    shown += 1
            elif isinstance(answer, ImageResult):
                height, width = answer.pixels.shape[1:3]
                file = await _encoded(answer.pixels[0], body.encoding)
                yield event("completed", file, width, height, warnings=[*drawing.warnings, *answer.warnings])
    finally:
        await answers.aclose()


async def prepared(
    drawing: MakeDrawing, client: AsyncClient, body: PictureBody, partial_images: int, request_id: str
) -> AsyncGenerator[Event, None]:
    """The same of a drawing that is still to be made: where it cannot be, there is no first event."""
    events = stream(client, await drawing(), body, partial_images, request_id)
    try:
        async for event in events:
            yield event
    finally:
        await events.aclose()


async def _encoded(pixels: Any, encoding: Encoding, enlarge: int = 1) -> bytes:
    """On another thread: a large picture takes a while, and others wait for this loop."""
    return await asyncio.to_thread(encoding.encoded, pixels, enlarge=enlarge)

"""Images in OpenAI's form: base64 pictures, whole, or with partial ones on the way."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from PIL import Image

from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.schemas import OpenAIImageBody
from nereid.serving.gateway.waiting import Event
from nereid_client import AsyncClient, ImageProgress, ImageResult


def check(body: OpenAIImageBody) -> None:
    """Raise ApiError for fields that do not go together."""
    if body.stream and body.n != 1:
        raise ApiError(400, f"n: {body.n} images cannot be streamed; it must be 1", param="n")
    if body.output_format == "png" and body.output_compression not in (None, 100):
        allowed = "it must be 100, or absent, where output_format is png"
        raise ApiError(
            400, f"output_compression: {body.output_compression} is not allowed; {allowed}", param="output_compression"
        )


NAMES: Mapping[str, str] = {"num_images_per_prompt": "n", "width": "size", "height": "size"}
"""The caller's names of the request's fields, for errors."""


def _encode(pixels: Any, body: OpenAIImageBody, enlarge: int) -> str:
    picture = Image.fromarray(pixels)
    if enlarge > 1:  # a preview may be smaller than the picture
        picture = picture.resize((enlarge * picture.width, enlarge * picture.height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    compression = {} if body.output_compression is None or body.output_format == "png" else {"quality": body.output_compression}
    picture.save(buffer, body.output_format.upper(), **compression)
    return base64.b64encode(buffer.getvalue()).decode()


async def whole(client: AsyncClient, body: OpenAIImageBody, request_id: str) -> dict[str, Any]:
    """All `n` images in one answer."""
    created = int(time.time())
    result = await client.generate_image(body.prompt, num_images_per_prompt=body.n, request_id=request_id, **body.options)
    data = [{"b64_json": await _picture(pixels, body)} for pixels in result.pixels]
    return {"created": created, "data": data, "warnings": list(result.warnings)}


async def stream(client: AsyncClient, body: OpenAIImageBody, request_id: str) -> AsyncGenerator[Event, None]:
    """`partial_images` previews on the way, spread evenly, then the image, as (event name, body)."""
    shown, created = 0, int(time.time())
    answers = client.stream_image(body.prompt, request_id=request_id, **body.options)
    try:
        async for answer in answers:
            if isinstance(answer, ImageProgress):
                due = int((body.partial_images + 1) * answer.step / answer.num_inference_steps)
                if answer.preview is not None and shown < min(due, body.partial_images):
                    picture = await _picture(answer.preview, body, enlarge=answer.preview_scale)
                    yield _event("partial_image", picture, created, partial_image_index=shown)
                    shown += 1
            elif isinstance(answer, ImageResult):
                picture = await _picture(answer.pixels[0], body)
                yield _event("completed", picture, created, warnings=list(answer.warnings))
    finally:
        await answers.aclose()


def _event(name: str, picture: str, created: int, **more: Any) -> Event:
    kind = f"image_generation.{name}"
    return kind, {"type": kind, "b64_json": picture, "created_at": created, **more}


async def _picture(pixels: Any, body: OpenAIImageBody, enlarge: int = 1) -> str:
    """Encoded on another thread: a large picture takes a while, and others wait for this loop."""
    return await asyncio.to_thread(_encode, pixels, body, enlarge)

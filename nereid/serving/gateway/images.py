"""Images in OpenAI's form: base64 pictures, whole, or with partial ones on the way."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from PIL import Image

from nereid.serving.gateway.schemas import ImageBody
from nereid_client import AsyncClient, ImageProgress, ImageResult


def _encode(pixels: Any, kind: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind.upper())
    return base64.b64encode(buffer.getvalue()).decode()


def _enlarged(preview: Any) -> Any:
    """Previews have an eighth of the picture's sides."""
    small = Image.fromarray(preview)
    return np.asarray(small.resize((8 * small.width, 8 * small.height), Image.Resampling.BICUBIC))


async def whole(client: AsyncClient, body: ImageBody) -> dict[str, Any]:
    """All `n` images in one answer."""
    result = await client.generate_image(body.prompt, num_images_per_prompt=body.n, **body.options)
    return {"created": int(time.time()), "data": [{"b64_json": _encode(pixels, body.output_format)} for pixels in result.pixels]}


async def stream(client: AsyncClient, body: ImageBody) -> AsyncIterator[tuple[str | None, dict[str, Any]]]:
    """`partial_images` previews on the way, spread evenly, then the image, as (event name, body)."""
    shown = 0
    answers = client.stream_image(body.prompt, **body.options)
    try:
        async for answer in answers:
            if isinstance(answer, ImageProgress):
                due = int((body.partial_images + 1) * answer.step / answer.num_inference_steps)
                if answer.preview is not None and shown < min(due, body.partial_images):
                    kind = "image_generation.partial_image"
                    picture = _encode(_enlarged(answer.preview), body.output_format)
                    yield kind, {"type": kind, "b64_json": picture, "partial_image_index": shown, "created_at": int(time.time())}
                    shown += 1
            elif isinstance(answer, ImageResult):
                kind = "image_generation.completed"
                yield (
                    kind,
                    {"type": kind, "b64_json": _encode(answer.pixels[0], body.output_format), "created_at": int(time.time())},
                )
    finally:
        await answers.aclose()

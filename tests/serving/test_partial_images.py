"""Partial images of the gateway: as large as the picture, whether its previews are small or whole."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nereid.serving.gateway.image_bodies import ImageBody
from nereid.serving.gateway.images import Drawing, stream
from nereid_client import ImageProgress, ImageResult

PICTURE = np.zeros((1, 64, 48, 3), np.uint8)


class Client:
    """A client whose streams are written down."""

    def __init__(self, scale: int) -> None:
        self.scale = scale

    async def stream_image(self, prompt: str, **options: Any) -> AsyncGenerator[ImageProgress | ImageResult, None]:
        preview = np.ascontiguousarray(PICTURE[0, :: self.scale, :: self.scale])
        yield ImageProgress(step=1, num_inference_steps=2, preview=preview, preview_scale=self.scale)
        yield ImageResult(pixels=PICTURE, seeds=(1,), warnings=(), queue_seconds=0.0, denoise_seconds=0.0)


@pytest.mark.parametrize("scale", [1, 4, 8])
def test_a_partial_image_is_as_large_as_the_picture(scale: int) -> None:
    body = ImageBody(model="text_to_image", prompt="a box", stream=True, partial_images=1)

    async def sizes() -> list[tuple[int, int]]:
        drawing = Drawing(prompt="a box", options={})
        events = [event async for event in stream(Client(scale), drawing, body, 1, "id")]  # type: ignore[arg-type]
        return [Image.open(io.BytesIO(base64.b64decode(event["b64_json"]))).size for _, event in events]

    assert asyncio.run(sizes()) == [(48, 64)] * 2

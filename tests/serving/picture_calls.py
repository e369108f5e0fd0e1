"""Calls of /v1/images: pictures that are sent, forms of edits, and how answers are read."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx
import numpy as np
from PIL import Image

GENERATE, EDIT, VARY = "/v1/images/generations", "/v1/images/edits", "/v1/images/variations"
BODY: dict[str, Any] = {"prompt": "a box", "seed": 9}
BLUE = Image.new("RGB", (64, 48), (0, 0, 255))


def png(picture: Image.Image = BLUE) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def shown(item: dict[str, Any]) -> np.ndarray:
    return pixels(base64.b64decode(item["b64_json"]))


def edit(api: httpx.Client, route: str = EDIT, files: Any = None, **fields: Any) -> httpx.Response:
    return api.post(route, data={**BODY, **fields}, files=files or {"image": ("blue.png", png(), "image/png")})


def refused(answer: httpx.Response, param: str) -> str:
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error"), error
    return str(error["message"])


def half_clear(size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Its left half is transparent."""
    made = Image.new("RGBA", size, (0, 0, 255, 255))
    made.paste((9, 9, 9, 0), (0, 0, size[0] // 2, size[1]))
    return made


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]

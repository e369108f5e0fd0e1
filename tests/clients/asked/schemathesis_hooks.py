"""What Schemathesis sends is bound for models that are served, and asks for little; and every status is written down."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import schemathesis
from schemathesis.transport.serialization import Binary

_TEXTS = {"max_tokens": 4, "max_completion_tokens": 4, "max_output_tokens": 4}
_PICTURES = {"n": 2, "num_inference_steps": 4}
_WEBUI = {"steps": 4, "n_iter": 2, "batch_size": 2, "width": 16, "height": 16}
"""Of AUTOMATIC1111's API."""
_SAID = {
    "/v1/chat/completions": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
    "/v1/images/generations": ("num_inference_steps",),
    "/v1/images/edits": ("num_inference_steps",),
    "/v1/images/variations": ("num_inference_steps",),
    "/sdapi/v1/txt2img": ("steps", "width", "height"),
    "/sdapi/v1/img2img": ("steps", "width", "height"),
}
"""The limits that are sent where a body has none: what then holds is long."""
_PNG = "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAGklEQVR42mM8YaPBQApgYiARjGoY1TB0NAAAyUUBTEzmkP4AAAAASUVORK5CYII="
"""A picture of 16 x 16."""
_ADDRESS = f"data:image/png;base64,{_PNG}"
_STATUSES = Path(os.environ["NEREID_STATUSES"])


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """A model of any name would be refused before anything else is looked at; most of the others are left as they are."""
    body, path = case.body, case.operation.path
    if not isinstance(body, dict):
        return
    draws = path.startswith("/v1/images/")
    if isinstance(body.get("model"), str):
        body["model"] = "text_to_image" if draws else "tools_llm" if len(body) % 2 else "llm"
    if len(body) % 2:
        _send_true_pictures(body, case.media_type)
    limits = _PICTURES if draws else _WEBUI if path.startswith("/sdapi/") else _TEXTS
    for name, most in limits.items():
        if isinstance(body.get(name), int) and body[name] > most:
            body[name] = most
    body.update({name: limits[name] for name in _SAID.get(path, ()) if body.get(name) is None})


def _send_true_pictures(body: dict[str, Any], media_type: str) -> None:
    """What is no picture is refused before the rest is looked at; every other body has some."""
    for name in {"image", "images", "mask", "init_images"} & body.keys():
        if media_type == "multipart/form-data":
            body[name] = Binary(base64.b64decode(_PNG))
        elif isinstance(body[name], list):
            body[name] = [_PNG if name == "init_images" else {"image_url": _ADDRESS}]
        elif isinstance(body[name], str):
            body[name] = _ADDRESS


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    with _STATUSES.open("a") as file:
        file.write(f"{response.status_code}\n")

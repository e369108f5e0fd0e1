"""What Schemathesis sends is bound for models that are served, and asks for little; and every status is written down."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import schemathesis

_MODELS = {"/v1/images/generations": "text_to_image"}
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_LONGEST = 4
_WEBUI = {"steps": _LONGEST, "n_iter": 2, "batch_size": 2}
"""Of AUTOMATIC1111's API."""
_STATUSES = Path(os.environ["NEREID_STATUSES"])


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """A model of any name would be refused before anything else is looked at; most of the others are left as they are."""
    body = case.body
    if not isinstance(body, dict):
        return
    if isinstance(body.get("model"), str):
        body["model"] = _MODELS.get(case.operation.path, "tools_llm" if len(body) % 2 else "llm")
    for name in _LIMITS:
        if isinstance(body.get(name), int) and body[name] > _LONGEST:
            body[name] = _LONGEST
    for name, most in _WEBUI.items() if case.operation.path.startswith("/sdapi/") else ():
        if isinstance(body.get(name), int) and body[name] > most:
            body[name] = most
    if "messages" in body:
        body.setdefault("max_tokens", _LONGEST)
    if "input" in body:
        body.setdefault("max_output_tokens", _LONGEST)
    if case.operation.path in _MODELS and isinstance(body.get("num_inference_steps", 0), int):
        body["num_inference_steps"] = min(body.get("num_inference_steps") or _LONGEST, _LONGEST)


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    with _STATUSES.open("a") as file:
        file.write(f"{response.status_code}\n")

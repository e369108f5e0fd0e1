"""How many requests are inside, by model, from Triton's metrics page; knows names of gauges and nothing of models."""

from __future__ import annotations

import re
from collections.abc import Collection

from nereid.serving.pages import fetch

_GAUGE = re.compile(
    r"^(?:nv_inference_pending_request_count|nereid_\w*?(?:active_requests|queued_requests|requests_running|requests_waiting))"
    r'\{(?:[^}]*,)?model="([^"]+)"[^}]*\} (\S+)$',
    re.MULTILINE,
)


def requests_inside(metrics: str) -> dict[str, float]:
    """Requests that wait in Triton or are worked on by a model that says so, by model."""
    inside: dict[str, float] = {}
    for model, value in _GAUGE.findall(metrics):
        inside[model] = inside.get(model, 0.0) + float(value)
    return inside


def is_idle(metrics_url: str, besides: Collection[str] = ()) -> bool:
    """Whether no model but those `besides` has requests inside; False where Triton does not say."""
    try:
        page = fetch(metrics_url, 2)[1].decode(errors="replace")
    except (OSError, ValueError):
        return False
    return not any(value > 0 for model, value in requests_inside(page).items() if model not in besides)

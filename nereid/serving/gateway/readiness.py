"""Whether requests can be served now, as the supervisor's health port tells it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from nereid.serving.pages import fetch

_SECONDS = 3.0

_NOBODY = {"ready": False}


async def readiness(url: str) -> dict[str, Any]:
    """What `/ready` at `url` says: `ready`, and what is amiss."""
    return await asyncio.to_thread(readiness_now, url)


def readiness_now(url: str) -> dict[str, Any]:
    """The same where no loop runs yet."""
    try:
        said = json.loads(fetch(url, _SECONDS)[1])
    except (OSError, ValueError):
        return _NOBODY  # the supervisor is gone, and with it who keeps this process
    return said if isinstance(said, dict) and "ready" in said else _NOBODY

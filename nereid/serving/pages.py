"""Pages of this machine's own servers (Triton's metrics, the health port), never through a proxy of the environment."""

from __future__ import annotations

import urllib.error
import urllib.request

_MOST_BYTES = 64 * 2**20
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def fetch(url: str, seconds: float) -> tuple[int, bytes]:
    """Status and body; raises OSError where nobody answers in time."""
    try:
        with _OPENER.open(url, timeout=seconds) as answer:
            return answer.status, answer.read(_MOST_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(_MOST_BYTES)

"""What the gateway's connections may take, by number, bytes and seconds; knows no server and no socket."""

from __future__ import annotations

import resource
from dataclasses import dataclass, replace

RESERVED_DESCRIPTORS = 256
"""For the gateway's own files and calls, and for connections accepted and closed in one turn of its loop."""
FEWEST_CONNECTIONS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Each one ends or refuses a connection, and nothing else."""

    connections: int = 2048
    """Open at once. One more closes the oldest that has not finished asking; where all have, it is refused with 503."""
    head_bytes: int = 16 * 1024
    """Of a request's line and headers."""
    head_seconds: float = 10.0
    """From the connection (or a request's first byte) to the end of the headers."""
    body_bytes: int = 4 * 2**20
    file_bytes: int = 200 * 2**20
    """Of a body that brings a file to `/v1/files`."""
    picture_bytes: int = 32 * 2**20
    """Of a body that brings a picture: to `/v1/images/edits`, `/v1/images/variations`, `/sdapi/v1/img2img`."""
    pictures_bytes: int = 512 * 2**20
    """Of all such bodies together; one more is refused with 503."""
    picture_pixels: int = 32 * 2**20
    """Of a picture that is sent, before it is scaled."""
    body_seconds: float = 60.0
    """From the end of the headers to the end of the body."""
    idle_seconds: float = 30.0
    """Between an answer and the next request on the same connection."""
    send_seconds: float = 60.0
    """In which a caller that reads slowly must take `send_bytes` of what waits for it."""
    send_bytes: int = 64 * 1024


def within_descriptors(limits: Limits) -> Limits:
    """As many connections as this process may have files; its soft limit is raised to the hard one first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):  # a system may have a lower bound of its own
            pass
    if soft == resource.RLIM_INFINITY:
        return limits
    return replace(limits, connections=min(limits.connections, max(FEWEST_CONNECTIONS, soft - RESERVED_DESCRIPTORS)))

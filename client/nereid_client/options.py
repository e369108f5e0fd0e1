"""How a client reaches its server."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Protocol(StrEnum):
    GRPC = "grpc"
    HTTP = "http"


DEFAULT_PORTS = {Protocol.GRPC: 8001, Protocol.HTTP: 8000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Certificates as PEM files; without any, the system's authorities are trusted and no client certificate is shown."""

    root_certificates: Path | None = None
    private_key: Path | None = None
    certificate_chain: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """Everything about the connection, the same for both protocols.

    `retries` counts further attempts after an UNAVAILABLE, `backoff` is the first pause in seconds, doubled each time.
    """

    url: str
    protocol: Protocol = Protocol.GRPC
    tls: Tls | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    retries: int = 3
    backoff: float = 0.2

    def pauses(self) -> Iterator[float]:
        """Seconds to wait before each further attempt, spread so that many clients do not return at once."""
        for attempt in range(self.retries):
            yield self.backoff * 2**attempt * random.uniform(0.5, 1.5)


GRACE_SECONDS = 5.0
"""How much longer than the server the client waits, so that the server's own sentence arrives."""

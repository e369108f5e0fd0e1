"""How a client reaches its server."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Everything about the connection, the same for both protocols."""

    url: str
    protocol: Protocol = Protocol.GRPC
    tls: Tls | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

"""What `nereid serve` is asked for, checked before anything starts."""

from __future__ import annotations

import ipaddress
import socket
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from nereid.serving.errors import ServingError
from nereid.serving.installation import Installation, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Where to serve what. `health_port` answers /ready and /live honestly, which Triton's own readiness does not."""

    repository: Path
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    health_port: int = 8003
    triton: Source = Source.AUTO
    start_timeout: float = 600.0
    drain_seconds: float = 10.0
    log_file: Path | None = None
    follow: bool = False
    """Whether models are loaded that appear in the repository later, and unloaded when they go."""
    cache_dir: Path | None = None
    """Where compiled engines are kept for the next start; None: for this one only."""
    verbose: bool = False

    @classmethod
    def on_free_ports(cls, repository: Path, log_file: Path) -> ServeOptions:
        """For tests, demos and measurements: beside whatever else runs on this machine."""
        http, grpc, metrics, health = free_ports(4)
        return cls(
            repository=repository,
            http_port=http,
            grpc_port=grpc,
            metrics_port=metrics,
            health_port=health,
            drain_seconds=2.0,
            log_file=log_file,
        )

    @property
    def ports(self) -> dict[str, int]:
        return {
            "--http-port": self.http_port,
            "--grpc-port": self.grpc_port,
            "--metrics-port": self.metrics_port,
            "--health-port": self.health_port,
        }

    def check(self, installation: Installation) -> None:
        """Raise ServingError for a repository that is none, a busy port, or a host this Triton must not bind to."""
        if not self.repository.is_dir() or not any(self.repository.glob("*/config.pbtxt")):
            raise ServingError(
                f"--repository: {self.repository} is not a model repository; write one with `nereid export diffusion PATH`"
            )
        if installation.loopback_only and not is_loopback(self.host):
            raise ServingError(
                f"--host: {self.host} is not allowed with the Triton that pip installs (24.10), whose HTTP server has known "
                "security holes (CVE-2025-23310 and others); it must be a loopback address such as 127.0.0.1. "
                "To serve other machines use the container: `make docker-up`"
            )
        if len(set(self.ports.values())) < len(self.ports):
            raise ServingError(f"ports: {', '.join(map(str, self.ports.values()))} are not allowed; all must differ")
        if not 0 < self.start_timeout <= 86_400:
            raise ServingError(f"--start-timeout: {self.start_timeout:g} is not allowed; it must be above 0, 86400 at most")
        if not 0 <= self.drain_seconds <= 3600:
            raise ServingError(f"--drain-seconds: {self.drain_seconds:g} is not allowed; it must be 0 to 3600")
        for option, port in self.ports.items():
            require_free(option, self.host, port)

    @property
    def address(self) -> str:
        """The host as URLs want it: an IPv6 address in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def grpc_url(self) -> str:
        return f"{self.address}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self.address}:{self.metrics_port}/metrics"

    @property
    def ready_url(self) -> str:
        return f"http://{self.address}:{self.health_port}/ready"


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_free(option: str, host: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise ServingError(f"{option}: {port} is not allowed; it must be 1 to 65535")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServingError(f"{option}: port {port} on {host} cannot be used ({error.strerror})") from None


_HELD_PORTS = 64
_held: deque[socket.socket] = deque()
"""What `free_ports` gave last. A server that sets SO_REUSEADDR, as all of ours do, binds them; nobody gets them by chance."""


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, for tests and demos; the system gives them to nobody else before they are bound."""
    ports: list[int] = []
    for _ in range(count):
        holder = socket.socket()
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        _held.append(holder)
        ports.append(int(holder.getsockname()[1]))
    while len(_held) > _HELD_PORTS:
        _held.popleft().close()
    return ports

"""The gateway as the supervisor sees it: where it listens, and a process to keep up. Imports no web server."""

from __future__ import annotations

import itertools
import os
import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nereid.serving.child import Child
from nereid.serving.errors import ServingError
from nereid.serving.gateway.keys import Keys
from nereid.serving.gateway.launch import API_KEY, Launch, Rules
from nereid.serving.gateway.limits import Limits
from nereid.serving.listening import listen
from nereid.serving.options import ServeOptions, is_loopback
from nereid.serving.services import KeptService

_ORIGIN = re.compile(r"https?://[^/\s]+")
_BASE = re.compile(r"https?://[^/\s?#]+(?:/[^/\s?#]+)*")
BACKLOG = 1024
"""How many connections wait while the gateway is away or busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """Where the gateway listens, and what it allows."""

    port: int
    host: str = "127.0.0.1"
    rules: Rules = field(default_factory=Rules)

    @property
    def address(self) -> str:
        """The host as URLs want it: an IPv6 address in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host

    def check(self, served: ServeOptions) -> None:
        """Raise ServingError for a host that strangers reach without a key, a port given twice, or keys that are none."""
        keys = Keys.of(os.environ.get(API_KEY, ""), Path(self.rules.keys) if self.rules.keys else None)
        for origin in self.rules.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ServingError(f"--openai-cors: {origin!r} is not allowed; it must be an origin, https://HOST[:PORT], or *")
        if self.rules.stored_responses < 0:
            raise ServingError(f"--openai-stored: {self.rules.stored_responses} is not allowed; it must be at least 0")
        for name in ("url_megabytes", "url_total_megabytes", "files_megabytes", "files_total_megabytes"):
            if (megabytes := getattr(self.rules, name)) < 1:
                raise ServingError(f"--openai-{name.replace('_', '-')}: {megabytes} is not allowed; it must be at least 1")
        if not 1 <= self.rules.batches_days <= 3650:
            raise ServingError(f"--openai-batches-days: {self.rules.batches_days} is not allowed; it must be 1 to 3650")
        if not 1 <= self.rules.url_seconds <= 86_400:
            raise ServingError(f"--openai-url-seconds: {self.rules.url_seconds:g} is not allowed; it must be 1 to 86400")
        if self.rules.public_url and not _BASE.fullmatch(self.rules.public_url):
            sentence = "it must be http(s)://HOST[:PORT], with the path of the proxy where it has one, without a last /"
            raise ServingError(f"--openai-public-url: {self.rules.public_url!r} is not allowed; {sentence}")
        if not keys.callers and not is_loopback(self.host):
            raise ServingError(f"--openai-host: {self.host} is not allowed without a key; set {API_KEY}, or use 127.0.0.1")
        if not 1 <= self.port <= 65535:
            raise ServingError(f"--openai-port: {self.port} is not allowed; it must be 1 to 65535, or 0 for no gateway")
        if self.port in served.ports.values():
            raise ServingError(f"--openai-port: {self.port} is not allowed; another port option has it already")

    def bind(self) -> socket.socket:
        return listen("--openai-port", self.host, self.port, BACKLOG)


def gateway_service(
    served: ServeOptions,
    listener: socket.socket,
    marks: Mapping[str, str],
    limits: Limits | None = None,
    rules: Rules | None = None,
) -> KeptService:
    """The gateway's process before Triton of `served`; `marks` are the variables by which a serve's processes are known."""

    starts = itertools.count()

    def make(heart: int) -> Child:
        launch = Launch(
            repository=str(served.repository.resolve()),
            grpc_url=served.grpc_url,
            metrics_url=served.metrics_url,
            ready_url=served.ready_url,
            drain_seconds=served.drain_seconds,
            listener=listener.fileno(),
            heart=heart,
            first=next(starts) == 0,
            limits=limits or Limits(),
            rules=rules or Rules(),
        )
        # -P: the folder that serve was started in is not a place to import from.
        command = [sys.executable, "-P", "-m", "nereid.serving.gateway", launch.to_argument()]
        return Child(command, {**os.environ, **marks}, pass_fds=(listener.fileno(), heart))

    return KeptService("the gateway", make, sockets=[listener])

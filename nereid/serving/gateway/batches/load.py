"""What callers wait for just now, so that batches can run in the gaps; knows ASGI and no batch."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

_OWN = ("/v1/files", "/v1/batches")
"""Where nobody waits for a model."""


@dataclass(slots=True, eq=False)
class Load:
    """Used by one event loop."""

    inside: int = 0
    came: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when somebody has come; who waits for that clears it."""
    _idle_since: float = field(default_factory=time.monotonic)

    def enter(self) -> None:
        self.inside += 1
        self.came.set()

    def leave(self) -> None:
        self.inside -= 1
        if not self.inside:
            self._idle_since = time.monotonic()

    @property
    def idle_seconds(self) -> float:
        """How long nobody has waited for a model; 0 while somebody does."""
        return 0.0 if self.inside else time.monotonic() - self._idle_since


class Watched:
    """ASGI middleware: counts what is asked of models."""

    def __init__(self, app: ASGIApp, load: Load) -> None:
        self._app, self._load = app, load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"].startswith(_OWN):
            await self._app(scope, receive, send)
            return
        self._load.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            self._load.leave()

"""What callers wait for just now, so that batches can run in the gaps; knows ASGI and no batch."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from nereid.serving.gateway.places import ARRIVED

_OWN = ("/v1/files", "/v1/batches")
"""Where nobody waits for a model."""


@dataclass(slots=True, eq=False)
class Load:
    """Used by one event loop."""

    inside: int = 0
    came: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when somebody has come, or is known to wait for another model; who waits for that clears it."""
    _at: Counter[str] = field(default_factory=Counter)
    """How many of those inside are known to wait for which model."""
    _idle_since: float = field(default_factory=time.monotonic)

    def enter(self) -> None:
        self.inside += 1
        self.came.set()

    def reach(self, model: str) -> None:
        """One of those inside waits for this model."""
        self._at[model] += 1
        self.came.set()

    def leave(self, model: str | None = None) -> None:
        """One goes; `model` is what it is known to have waited for."""
        self.inside -= 1
        if model is not None:
            self._at[model] -= 1
        if not self.inside:
            self._idle_since = time.monotonic()

    def elsewhere(self, model: str) -> int:
        """How many are known to wait for other models than this."""
        return self._at.total() - self._at[model]

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
        reached: list[str] = []

        def arrived(model: str) -> None:
            if not reached:
                reached.append(model)
                self._load.reach(model)

        self._load.enter()
        before = ARRIVED.set(arrived)
        try:
            await self._app(scope, receive, send)
        finally:
            ARRIVED.reset(before)
            self._load.leave(*reached)

"""Files and batches of one gateway, put together: their routes, and what works them off while the gateway runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.routing import Route
from starlette.types import ASGIApp

from nereid.serving.gateway.batches.asking import Answer, ask
from nereid.serving.gateway.batches.load import Load
from nereid.serving.gateway.batches.routes import BatchRoutes
from nereid.serving.gateway.batches.runner import BatchRunner, Pace
from nereid.serving.gateway.batches.store import BatchStore


@dataclass(slots=True, eq=False)
class Batches:
    """`ask_with` is given the application that answers requests, before `running`."""

    store: BatchStore
    lenient: bool = False
    pace: Pace = field(default_factory=Pace)
    load: Load = field(default_factory=Load)
    _app: ASGIApp | None = None

    def routes(self) -> list[Route]:
        return BatchRoutes(self.store, self.lenient).routes()

    def ask_with(self, app: ASGIApp) -> None:
        """Without what stands before the routes: keys have been looked at, and nobody waits."""
        self._app = app

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Batches are worked off for as long as this lasts."""
        task = asyncio.ensure_future(BatchRunner(self.store, self.load, self._ask, self.pace).run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self.store.close()

    async def _ask(self, path: str, body: dict[str, Any], owner: str) -> Answer:
        assert self._app is not None
        return await ask(self._app, path, body, owner)

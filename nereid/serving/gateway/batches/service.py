"""Files and batches of one gateway, put together: their routes, and what works them off while the gateway runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from starlette.routing import Route
from starlette.types import ASGIApp

from nereid.serving.gateway.batches.asking import Answer, ask
from nereid.serving.gateway.batches.files import StorageLimits
from nereid.serving.gateway.batches.load import Load
from nereid.serving.gateway.batches.numbers import BatchNumbers
from nereid.serving.gateway.batches.pace import Pace
from nereid.serving.gateway.batches.routes import BatchRoutes
from nereid.serving.gateway.batches.runner import BatchRunner
from nereid.serving.gateway.batches.store import BatchStore
from nereid.serving.gateway.launch import Rules


@dataclass(slots=True, eq=False)
class Batches:
    """`ask_with` is given the application that answers requests, before `running`.

    `text_model` is the Triton model of a language model's name.
    """

    store: BatchStore
    lenient: bool = False
    pace: Pace = field(default_factory=Pace)
    load: Load = field(default_factory=Load)
    text_model: Callable[[object], str | None] = lambda name: None
    _app: ASGIApp | None = None
    _runner: BatchRunner = field(init=False)

    def __post_init__(self) -> None:
        self._runner = BatchRunner(self.store, self.load, self._ask, self.pace, self.text_model)

    @classmethod
    def of(
        cls, rules: Rules, at_once: int, text_model: Callable[[object], str | None], *, patient: bool = False
    ) -> Batches | None:
        """None where the rules have no folder for them. `patient` waits for one that cannot be used; else raises ServingError."""
        if rules.batches is None:
            return None
        limits = StorageLimits(key_bytes=rules.files_megabytes * 2**20, total_bytes=rules.files_total_megabytes * 2**20)
        return cls(
            BatchStore(Path(rules.batches), limits, patient, days=rules.batches_days),
            rules.lenient,
            Pace(at_once=at_once),
            text_model=text_model,
        )

    def routes(self) -> list[Route]:
        return BatchRoutes(self.store, self.lenient).routes()

    def ask_with(self, app: ASGIApp) -> None:
        """Without what stands before the routes: keys have been looked at, and nobody waits."""
        self._app = app

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Batches are worked off for as long as this lasts."""
        task = asyncio.ensure_future(self._runner.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self.store.close()

    def numbers(self) -> BatchNumbers:
        """How all stands; may be asked from any thread."""
        return replace(self.store.numbers(), running=len(self._runner.under_way), put_back=self._runner.under_way.put_back)

    async def _ask(self, path: str, body: dict[str, Any], owner: str) -> Answer:
        assert self._app is not None
        return await ask(self._app, path, body, owner)

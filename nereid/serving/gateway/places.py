"""How many requests the gateway has under way at each model: where they fill it by themselves, the next is refused here.

Asking the server would say the same, later: in a burst every question waits behind all that was asked before. Knows no route.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tritonclient.grpc.model_config_pb2 import ModelConfig

from nereid.diffusion.settings import Limits
from nereid.layout.settings import LayoutLimits
from nereid.llm.settings import LlmLimits
from nereid.page.settings import PageLimits
from nereid.serving.models import ServedModels
from nereid_client.errors import QueueFullError

T = TypeVar("T")

ARRIVED: ContextVar[Callable[[str], None]] = ContextVar("ARRIVED", default=lambda model: None)
"""Of a request: is told the model that it waits for, once that is known."""

_ON_THEIR_WAY = 4
"""Requests that have left the model but are still under way here: their images are decoded, their answers sent."""


@dataclass(slots=True, eq=False)
class Places:
    """Those of one model, used by one event loop; `most` requests may run and wait at the model itself."""

    most: int
    taken: int = 0
    at_once: int = 1
    """How many of them may run together."""
    name: str = ""
    """The Triton model's."""
    counting: int = 0
    """Requests that only count or write its tokens: as many may be under way, and they take no places of those that run."""

    @contextlib.asynccontextmanager
    async def taking(self, requests: int = 1) -> AsyncIterator[None]:
        """Take places for as long as this lasts; raises QueueFullError where the model cannot have any left."""
        self._require_room(self.taken)
        self.taken += requests
        ARRIVED.get()(self.name)
        try:
            await asyncio.sleep(0)  # others that have come are refused before the work of this one begins
            yield
        finally:
            self.taken -= requests

    @contextlib.asynccontextmanager
    async def taking_to_count(self) -> AsyncIterator[None]:
        """The same for one that its tokenizer alone works for, here: its model is not waited for."""
        self._require_room(self.counting)
        self.counting += 1
        try:
            await asyncio.sleep(0)
            yield
        finally:
            self.counting -= 1

    def _require_room(self, under_way: int) -> None:
        if under_way >= self.most + _ON_THEIR_WAY:
            raise QueueFullError(f"queue: {under_way} requests are under way already; at most {self.most} may run and wait")

    async def during(self, items: AsyncGenerator[T, None], requests: int = 1) -> AsyncGenerator[T, None]:
        """The same items; places are taken from the first on until there are no more."""
        async with contextlib.aclosing(items), self.taking(requests):
            async for item in items:
                yield item


def places_of(repository: Path, model: str) -> Places:
    """Those of a model where requests wait and run: `denoise`, `layout`, `page`, `llm`.

    Raises ServingError, ValueError over its config.
    """
    config = ServedModels.read(repository, [model]).configs.get(model, ModelConfig())
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    instances = max(1, sum(group.count for group in config.instance_group))
    if model.endswith("denoise"):
        images = Limits.from_parameters(parameters)
        return Places(instances * (images.max_inflight + images.max_queue), at_once=instances * images.max_inflight, name=model)
    if model.endswith("layout"):
        layouts = LayoutLimits.from_parameters(parameters)
        return Places(
            instances * (layouts.max_inflight + layouts.max_queue), at_once=instances * layouts.max_inflight, name=model
        )
    if model.endswith("page"):
        pages = PageLimits.from_parameters(parameters)
        return Places(instances * pages.max_pages, at_once=instances * pages.max_pages, name=model)
    texts = LlmLimits.from_parameters(parameters)
    return Places(instances * (texts.max_rows + texts.max_queue), at_once=instances * texts.max_rows, name=model)

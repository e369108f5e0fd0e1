"""Several streams as one: their items as they come, with the number of the stream; knows no route and no model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

T = TypeVar("T")

_END = object()


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """Ends with the last stream, or raises what the first that fails does. The others are closed, as they are by closing this.

    Streams wait for who reads this: each has one item in advance at most.
    """
    items: asyncio.Queue[tuple[int, object]] = asyncio.Queue(1)

    async def feed(place: int) -> None:
        try:
            async with contextlib.aclosing(streams[place]) as stream:
                async for item in stream:
                    await items.put((place, item))
        except Exception as error:
            await items.put((place, error))
        else:
            await items.put((place, _END))

    feeding = [asyncio.ensure_future(feed(place)) for place in range(len(streams))]
    try:
        left = len(streams)
        while left:
            place, item = await items.get()
            if isinstance(item, Exception):
                raise item
            if item is _END:
                left -= 1
            else:
                yield place, item  # type: ignore[misc]
    finally:
        for task in feeding:
            task.cancel()
        await asyncio.gather(*feeding, return_exceptions=True)

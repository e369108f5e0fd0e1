"""Pages, for which OpenAI's API has no form: one HTML file with what is said of it, whole, or on its way as events."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any

from nereid.serving.gateway.waiting import Event
from nereid_client import AsyncClient, PageProgress, PageResult


async def whole(client: AsyncClient, brief: str, options: dict[str, Any], model: str, request_id: str) -> dict[str, Any]:
    """The page in one answer."""
    created = int(time.time())
    made = await client.generate_page(brief, request_id=request_id, **options)
    return _page(made, model, created)


async def stream(
    client: AsyncClient, brief: str, options: dict[str, Any], model: str, request_id: str
) -> AsyncGenerator[Event, None]:
    """`page.progress` with the page so far after every piece of work, then `page.completed`, as (event name, body)."""
    created = int(time.time())
    answers = client.stream_page(brief, request_id=request_id, **options)
    try:
        async for answer in answers:
            if isinstance(answer, PageProgress):
                yield "page.progress", {"type": "page.progress", "created": created, "model": model, **asdict(answer)}
            else:
                yield "page.completed", {"type": "page.completed", **_page(answer, model, created)}
    finally:
        await answers.aclose()


def _page(made: PageResult, model: str, created: int) -> dict[str, Any]:
    return {"object": "page", "created": created, "model": model, "html": made.html, "page": made.answer}

"""Layouts of page sections, for which OpenAI's API has no form: boxes and what is said of them, whole, or as events of steps."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.waiting import Event
from nereid_client import AsyncClient, LayoutProgress, LayoutResult
from nereid_client.layouts import Canvas, Section


def section_of(html: str | None, elements: Sequence[Mapping[str, Any]] | None) -> Section:
    """The one of both that was sent; raises ApiError."""
    if html is not None and elements is None:
        return html
    if elements is not None and html is None:
        return elements
    sent = "nothing" if html is None else "html and elements"
    raise ApiError(400, f"html: {sent} is not allowed; it must be one of html and elements", param="html")


async def whole(
    client: AsyncClient, section: Section, canvas: Canvas, options: dict[str, Any], model: str, request_id: str
) -> dict[str, Any]:
    """The layout in one answer."""
    created = int(time.time())
    made = await client.generate_layout(section, canvas, request_id=request_id, **options)
    return _layout(made, model, created)


async def stream(
    client: AsyncClient, section: Section, canvas: Canvas, options: dict[str, Any], model: str, request_id: str
) -> AsyncGenerator[Event, None]:
    """`layout.progress` with what the boxes are predicted to be after every step, then `layout.completed`, as (name, body)."""
    created = int(time.time())
    answers = client.stream_layout(section, canvas, request_id=request_id, **options)
    try:
        async for answer in answers:
            if isinstance(answer, LayoutProgress):
                yield "layout.progress", {"type": "layout.progress", "created": created, "model": model, **answer.answer}
            else:
                yield "layout.completed", {"type": "layout.completed", **_layout(answer, model, created)}
    finally:
        await answers.aclose()


def _layout(made: LayoutResult, model: str, created: int) -> dict[str, Any]:
    return {"object": "layout", "created": created, "model": model, "layout": made.answer}

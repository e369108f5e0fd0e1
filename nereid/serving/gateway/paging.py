"""Part of a list, as the query's `limit`, `order` and `after` ask for it in OpenAI's API; knows no list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from nereid.serving.gateway.errors import ApiError

T = TypeVar("T")
_USUAL = 20


def paged(most: int) -> dict[str, Any]:
    """The query, as JSON schemas by name; `most` may stand in a page."""
    limit = {"type": "integer", "minimum": 1, "maximum": most}
    return {"limit": limit, "order": {"enum": ["asc", "desc"]}, "after": {"type": "string"}}


def page(
    asked: Mapping[str, str],
    items: Sequence[T],
    identity: Callable[[T], str],
    shown: Callable[[T], dict[str, Any]],
    most: int,
    usual: int = _USUAL,
) -> dict[str, Any]:
    """The part of `items`, which have the newest first, `usual` of them where nothing is said; raises ApiError."""
    limit, order, after = asked.get("limit", str(usual)), asked.get("order", "desc"), asked.get("after")
    if not (limit.isascii() and limit.isdecimal() and len(limit) <= 6 and 1 <= int(limit) <= most):
        raise ApiError(400, f"limit: {limit[:80]!r} is not allowed; it must be 1 to {most}", param="limit")
    if order not in ("asc", "desc"):
        raise ApiError(400, f"order: {order[:80]!r} is not allowed; it must be asc or desc", param="order")
    found = list(items) if order == "desc" else list(reversed(items))
    if after is not None:
        names = [identity(item) for item in found]
        if after not in names:
            raise ApiError(400, f"after: {after[:80]!r} is not allowed; it must be the id of one in the list", param="after")
        found = found[names.index(after) + 1 :]
    part = found[: int(limit)]
    first, last = (identity(part[0]), identity(part[-1])) if part else (None, None)
    data = [shown(item) for item in part]
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": len(found) > len(part)}

"""Part of a list, as the query's `limit`, `order` and `after` ask for it in OpenAI's API; knows no list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from nereid.serving.gateway.errors import ApiError

T = TypeVar("T")
_USUAL = 20


def paged(most: int) -> dict[str, Any]:
    """The query, as JSON schemas by name; `most` may stand in a page."""
    limit = {"type": "integer", "minimum": 1, "maximum": most}
    return {"limit": limit, "order": {"enum": ["asc", "desc"]}, "after": {"type": "string"}}


@dataclass(frozen=True, slots=True)
class Part:
    """`limit` items, the newest first unless `ascending`, of those behind the one whose id is `after`."""

    limit: int
    ascending: bool = False
    after: str | None = None

    @classmethod
    def of(cls, asked: Mapping[str, str], most: int, usual: int = _USUAL) -> Part:
        """What a query asks for, `usual` items where nothing is said; raises ApiError."""
        limit, order = asked.get("limit", str(usual)), asked.get("order", "desc")
        if not (limit.isascii() and limit.isdecimal() and len(limit) <= 6 and 1 <= int(limit) <= most):
            raise ApiError(400, f"limit: {limit[:80]!r} is not allowed; it must be 1 to {most}", param="limit")
        if order not in ("asc", "desc"):
            raise ApiError(400, f"order: {order[:80]!r} is not allowed; it must be asc or desc", param="order")
        return cls(int(limit), order == "asc", asked.get("after"))

    def not_there(self) -> ApiError:
        """What is answered where nothing in the list has that id."""
        allowed = "it must be the id of one in the list"
        return ApiError(400, f"after: {str(self.after)[:80]!r} is not allowed; {allowed}", param="after")

    def told(self, found: Sequence[T], identity: Callable[[T], str], shown: Callable[[T], dict[str, Any]]) -> dict[str, Any]:
        """The answer; `found` begins behind `after`, and has at least one more item than the part where there are more."""
        part = found[: self.limit]
        first, last = (identity(part[0]), identity(part[-1])) if part else (None, None)
        data = [shown(item) for item in part]
        return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": len(found) > len(part)}


def page(
    asked: Mapping[str, str],
    items: Sequence[T],
    identity: Callable[[T], str],
    shown: Callable[[T], dict[str, Any]],
    most: int,
) -> dict[str, Any]:
    """The part of `items`, which are in memory and have the newest first; raises ApiError."""
    part = Part.of(asked, most)
    found = list(reversed(items)) if part.ascending else list(items)
    if part.after is not None:
        names = [identity(item) for item in found]
        if part.after not in names:
            raise part.not_there()
        found = found[names.index(part.after) + 1 :]
    return part.told(found, identity, shown)

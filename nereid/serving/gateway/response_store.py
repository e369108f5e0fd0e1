"""Responses that may be asked for again or gone on with: in memory, bounded by number and bytes for each key."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Stored:
    """`given` are the items that came with the request, `conversation` all up to the end of its answer, in JSON."""

    response: dict[str, Any]
    given: Sequence[dict[str, Any]]
    conversation: Sequence[dict[str, Any]]

    @property
    def items(self) -> list[dict[str, Any]]:
        """Those that came, and those of the answer."""
        return [*self.given, *self.response.get("output", ())]


@dataclass(slots=True, eq=False)
class ResponseStore:
    """Used by one event loop. Where a key has too many, its oldest go; one that is too large by itself is not kept."""

    most: int
    most_bytes: int
    _shelves: dict[str, _Shelf] = field(default_factory=dict)

    def keep(self, key: str, stored: Stored) -> None:
        shelf = self._shelves.setdefault(key, _Shelf())
        size = len(json.dumps([stored.response, stored.given, stored.conversation], ensure_ascii=False).encode())
        if self.most < 1 or size > self.most_bytes:
            return
        shelf.add(stored, size)
        while len(shelf.kept) > self.most or shelf.bytes > self.most_bytes:
            shelf.remove(next(iter(shelf.kept)))

    def find(self, key: str, identity: str) -> Stored | None:
        """None too for what is another key's."""
        found = self._shelves.get(key, _Shelf()).kept.get(identity)
        return None if found is None else found[0]

    def find_item(self, key: str, identity: str) -> dict[str, Any] | None:
        """An item of one of the key's responses, or of what came with it, by its own id; of several the newest."""
        shelf = self._shelves.get(key, _Shelf())
        home = shelf.homes.get(identity)
        if home is None:
            return None
        return next((item for item in shelf.kept[home][0].items if item.get("id") == identity), None)

    def remove(self, key: str, identity: str) -> bool:
        """Whether it was there."""
        shelf = self._shelves.get(key)
        return shelf is not None and shelf.remove(identity)


@dataclass(slots=True, eq=False)
class _Shelf:
    """One key's, oldest first."""

    kept: OrderedDict[str, tuple[Stored, int]] = field(default_factory=OrderedDict)
    bytes: int = 0
    homes: dict[str, str] = field(default_factory=dict)
    """By the id of an item that of the response that it came with."""

    def add(self, stored: Stored, size: int) -> None:
        self.kept[stored.response["id"]] = (stored, size)
        self.bytes += size
        self.homes.update((str(item["id"]), stored.response["id"]) for item in stored.items if "id" in item)

    def remove(self, identity: str) -> bool:
        found = self.kept.pop(identity, None)
        if found is None:
            return False
        self.bytes -= found[1]
        for item in found[0].items:
            if self.homes.get(str(item.get("id"))) == identity:
                del self.homes[str(item["id"])]
        return True

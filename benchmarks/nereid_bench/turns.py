"""The order in which what is measured takes turns: every round begins with another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def turned(items: Sequence[T], turn: int) -> list[T]:
    """All of them, each round beginning with another."""
    first = turn % max(len(items), 1)
    return [*items[first:], *items[:first]]

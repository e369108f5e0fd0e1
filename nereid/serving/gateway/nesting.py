"""How deep objects and arrays stand in each other; knows no field."""

from __future__ import annotations

from typing import Any


def levels(value: Any) -> int:
    """Of objects and arrays in each other; not by recursion, whose limit is another one on every interpreter."""
    count, level = 0, [value]
    while level := [one for one in level if isinstance(one, (dict, list))]:
        count += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return count

"""Figures that an interrupted measurement leaves for the next one: one JSON file, of the very same things or not read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KeptFigures:
    """`of` is what was measured, as a digest; a file of anything else is written over."""

    file: Path
    of: str
    figures: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, file: Path, things: Mapping[str, Any]) -> KeptFigures:
        """What `file` has of these things, which JSON must take; nothing where it is damaged."""
        of = hashlib.sha256(json.dumps(things, sort_keys=True).encode()).hexdigest()
        try:
            found = json.loads(file.read_text())
            if found["of"] == of:
                return cls(file, of, dict(found["figures"]))
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return cls(file, of)

    def get(self, name: str, measure: Callable[[], T]) -> T:
        """What was measured under this name, now or before; lists come back as tuples."""
        if name not in self.figures:
            self.figures[name] = measure()
            beside = self.file.with_suffix(".new")
            beside.write_text(json.dumps({"of": self.of, "figures": self.figures}))
            beside.replace(self.file)
        return cast("T", _tuples(self.figures[name]))

    def forget(self) -> None:
        """All is published."""
        self.file.unlink(missing_ok=True)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value

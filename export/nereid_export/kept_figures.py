"""Figures that an interrupted measurement leaves for the next one: a record of the very same things, or not read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from nereid_export.resume import Record

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KeptFigures:
    """By the name of what was measured; written after each."""

    record: Record
    figures: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, file: Path, things: Mapping[str, Any]) -> KeptFigures:
        """What `file` has of these things, which JSON must take; nothing where it is damaged, or of other ones."""
        record = Record(file, json.loads(json.dumps(things)))
        return cls(record, record.read() or {})

    def get(self, name: str, measure: Callable[[], T]) -> T:
        """What was measured under this name, now or before; lists come back as tuples."""
        if name not in self.figures:
            self.figures[name] = measure()
            self.record.write(self.figures)
        return cast("T", _tuples(self.figures[name]))

    def forget(self) -> None:
        """All is published."""
        self.record.file.unlink(missing_ok=True)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value

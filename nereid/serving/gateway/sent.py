"""Objects that callers send, as pydantic reads them: what is common to all; knows no field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from nereid.serving.gateway.unused import UnusedField, taken_values, unused_field


class Sent(BaseModel):
    """An object that a caller sends: null is as absent, and so is a value that the table of unused fields allows."""

    model_config = ConfigDict(extra="forbid")

    place: ClassVar[str] = ""
    """Its name in the table of unused fields."""

    @model_validator(mode="before")
    @classmethod
    def _without_what_changes_nothing(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        places = cls.places_of(value)
        return {name: item for name, item in value.items() if item is not None and not _changes_nothing(places, name, item)}

    @classmethod
    def taken_beside(cls) -> dict[str, Any]:
        """JSON schemas of what it takes beside its fields, by name."""
        return taken_values(cls.place)

    @classmethod
    def places_of(cls, value: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of this object in that table, the one that counts most first."""
        return (cls.place,)

    @classmethod
    def row_of(cls, name: str) -> UnusedField | None:
        """The table's row that says what is allowed of a field that was refused."""
        return unused_field(cls.place, name)


def _changes_nothing(places: tuple[str, ...], name: str, value: Any) -> bool:
    rows = (unused_field(place, name) for place in places)
    row = next((row for row in rows if row is not None), None)
    return row is not None and row.allows(value)

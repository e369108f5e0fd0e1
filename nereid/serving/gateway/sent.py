"""Objects that callers send, as pydantic reads them: what is common to all; knows no field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from nereid.serving.gateway.unused import taken_values, unused_field
from nereid.serving.gateway.unused_field import UnusedField

MOST_PARTS = 1000
"""Of a list of objects within a message: each may be wrong, and take time to be told so."""


def few(value: Any) -> Any:
    """Checked before the parts are."""
    if isinstance(value, list) and len(value) > MOST_PARTS:
        raise ValueError(f"must have at most {MOST_PARTS} items")
    return value


class Sent(BaseModel):
    """An object that a caller sends: null is as absent, and so is a value that the table of unused fields allows."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    """JSON has no NaN and no infinity; a form's fields, and texts that stand for numbers, may say them."""

    place: ClassVar[str] = ""
    """Its name in the table of unused fields."""
    casts: ClassVar[bool] = False
    """Whether texts stand for numbers and truth values, and numbers for truth values, also where nothing reads a field."""

    @model_validator(mode="before")
    @classmethod
    def _without_what_changes_nothing(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        places = cls.places_of(value)

        def idle(name: str, item: Any) -> bool:
            row = _row(places, name)
            return row is not None and any(row.allows(read) for read in (_readings(item) if cls.casts else (item,)))

        return {name: item for name, item in value.items() if item is not None and not idle(name, item)}

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


_TRUTH_VALUE, _NUMBER = TypeAdapter(bool), TypeAdapter(float)


def _readings(item: Any) -> Iterator[Any]:
    """What a value may stand for, as pydantic reads it."""
    yield item
    if isinstance(item, str | int | float):
        for kind in (_TRUTH_VALUE, _NUMBER):
            with suppress(ValidationError):
                yield kind.validate_python(item)


def _row(places: tuple[str, ...], name: str) -> UnusedField | None:
    rows = (unused_field(place, name) for place in places)
    return next((row for row in rows if row is not None), None)

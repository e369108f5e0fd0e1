"""Objects that callers send, as pydantic reads them: what is common to all; knows no field."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from nereid.serving.gateway.unused import taken_values, unused_field


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
        return {name: item for name, item in value.items() if item is not None and not cls._ignores(name, item)}

    @classmethod
    def taken_beside(cls) -> dict[str, Any]:
        """JSON schemas of what it takes beside its fields, by name."""
        return taken_values(cls.place)

    @classmethod
    def _ignores(cls, name: str, value: Any) -> bool:
        row = unused_field(cls.place, name)
        return row is not None and row.allows(value)

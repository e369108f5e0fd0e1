"""config.pbtxt parameters to a frozen dataclass of limits; knows nothing of what they limit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, TypeVar

T = TypeVar("T")


def read_parameters(cls: type[T], parameters: Mapping[str, str], *, may_be_zero: Collection[str]) -> T:
    """An instance of `cls` with every field that `parameters` names; its fields are int, float, bool or str.

    Raises ValueError naming the parameter that does not parse or is not positive.
    """
    known: dict[str, Any] = {}
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in parameters:
            continue
        text = parameters[field.name]
        if field.type == "str":
            known[field.name] = text
            continue
        if field.type == "bool":
            if text not in ("true", "false"):
                raise ValueError(f"parameter {field.name}: {text!r} is not allowed; it must be true or false")
            known[field.name] = text == "true"
            continue
        try:
            value = float(text) if field.type == "float" else int(text)
        except ValueError:
            raise ValueError(f"parameter {field.name}: {text!r} is not a number") from None
        if not value > 0 and not (field.name in may_be_zero and value == 0):
            raise ValueError(f"parameter {field.name}: {text} is not allowed; it must be above 0")
        known[field.name] = value
    return cls(**known)

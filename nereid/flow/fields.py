"""Reads request fields by the table (nereid_protocol.fields): types, bounds, one value a prompt; knows no field by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nereid.flow.errors import InvalidRequestError
from nereid_protocol.field import DType, Field
from nereid_protocol.image_fields import BY_NAME

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class FieldReader:
    """Typed reading of one request's inputs: a value for each of `batch_size` prompts; raises InvalidRequestError by name.

    `limits` narrows upper bounds: the table's `limit` names one of its attributes. `table` has the fields by name.
    """

    inputs: Inputs
    batch_size: int
    limits: object = None
    table: Mapping[str, Field] = field(default_factory=lambda: BY_NAME)

    def given(self, name: str) -> bool:
        return name in self.inputs

    def values(self, name: str, default: Any) -> list[Any]:
        """One value a prompt: int, float, str, or a tuple of numbers where the field has several; `default` where absent."""
        field = self.table[name]
        raw = self.inputs.get(name)
        if raw is None:
            return [default] * self.batch_size
        if field.listed:
            self._check_list(field, raw)
        elif raw.size != self.batch_size * int(np.prod(field.shape)):
            each = "one value" if field.scalar else f"{field.shape[0]} values"
            raise InvalidRequestError.of(f"shape of {name}", raw.shape, f"{each} for each of {self.batch_size} prompts")
        values = [self._value(field, row) for row in raw.reshape(self.batch_size, -1)]
        if field.per_request and len(set(values)) > 1:
            raise InvalidRequestError.of(name, values, "the same for all prompts of a request")
        return values

    def value(self, name: str, default: Any) -> Any:
        """The value of a field that is one for the whole request."""
        return self.values(name, default)[0]

    def array(self, name: str, dtype: Any, rank: int) -> np.ndarray | None:
        """A tensor of any shape, its type and rank checked; None where absent."""
        value = self.inputs.get(name)
        if value is not None and (value.dtype != dtype or value.ndim != rank):
            shown = f"{value.dtype} of rank {value.ndim}"
            raise InvalidRequestError.of(f"type of {name}", shown, f"{np.dtype(dtype)} of rank {rank}")
        return value

    def _check_list(self, field: Field, raw: np.ndarray) -> None:
        if raw.ndim != 2 or raw.shape[0] != self.batch_size or not raw.size:
            allowed = f"1 value or more for each of {self.batch_size} prompts"
            raise InvalidRequestError.of(f"shape of {field.name}", raw.shape, allowed)
        most = getattr(self.limits, field.limit_length, None) if field.limit_length else None
        if most is not None and raw.shape[1] > most + field.beyond:
            allowed = f"at most {most + field.beyond} ({field.limit_length}{f' and {field.beyond}' if field.beyond else ''})"
            raise InvalidRequestError.of(f"length of {field.name}", raw.shape[1], allowed)

    def _value(self, field: Field, row: np.ndarray) -> Any:
        if field.dtype is DType.STRING:
            return decode_text(field.name, row[0])
        high = self._high(field)
        for value in row:
            if (field.low is not None and not value >= field.low) or (high is not None and not value <= high):  # true of NaN, too
                raise InvalidRequestError.of(field.name, value.item(), f"{_shown(field.low)} to {_shown(high)}")
        numbers = tuple(value.item() for value in row)
        return numbers[0] if field.scalar else numbers

    def _high(self, field: Field) -> float | None:
        limit = getattr(self.limits, field.limit, None) if field.limit else None
        if limit is None or field.high is None:
            return field.high
        return min(field.high, limit)


def _shown(bound: float | None) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def decode_text(field: str, value: object) -> str:
    """Text of one BYTES element; raises InvalidRequestError when it is not UTF-8."""
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        raise InvalidRequestError.of(field, value, "UTF-8 text")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidRequestError.of(field, value, "UTF-8 text") from None

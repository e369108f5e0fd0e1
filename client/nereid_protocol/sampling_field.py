"""What a sampling parameter may hold, and how a sent value is checked against it; knows no parameter."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

MAX_SEED = 2**63 - 1
_WHOLE = re.compile(r"[+-]?\d{1,19}")


class Kind(StrEnum):
    """What a parameter holds, in JSON."""

    NUMBER = "number"
    INTEGER = "integer"
    FLAG = "true or false"
    TEXT = "string"
    TEXTS = "string or list of strings"
    TOKEN_IDS = "list of token ids"
    BIASES = "object of token ids and numbers"
    SCHEMA = "JSON schema, an object or its text"
    OBJECT = "object"


class SamplingError(ValueError):
    """A parameter has a value that it may not have; `allowed` ends the sentence "it must be ...".

    `unknown`: nothing knows a parameter of this name.
    """

    def __init__(self, field: str, value: object, allowed: str, *, unknown: bool = False) -> None:
        super().__init__(f"must be {allowed}")
        self.field, self.value, self.allowed, self.unknown = field, value, allowed, unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingField:
    """One parameter.

    Attributes:
        default: what an absent one, or null, stands for; None is explained by `help`.
        nullable: whether null stands for something of its own.
        low, high: bounds of a number, or of every number in a list; all of them are exact in float32.
        least, most: the smallest and the largest number of entries of a list; `least` of a text's characters, too.
        length: the largest number of characters of a text, or of each text of a list.
        choices: the only texts that are allowed.
        members, unread: of an object.
        gateway: whether the text endpoints of the gateway take it under this name.
        alias: a name under which vLLM took it before, taken here, too; a member's stands beside its object.
    """

    name: str
    kind: Kind
    default: Any = None
    nullable: bool = False
    help: str
    low: float | None = None
    high: float | None = None
    least: int = 0
    most: int | None = None
    length: int | None = None
    choices: tuple[str, ...] = ()
    members: tuple[SamplingField, ...] = ()
    unread: tuple[UnreadField, ...] = ()
    gateway: bool = True
    alias: str = ""

    def check(self, value: Any, path: str = "") -> Any:
        """The value as plain JSON of the right type; numbers, lists and objects may come as text. Raises SamplingError."""
        path = path or self.name
        if value is None:
            return None if self.nullable else self.default
        match self.kind:
            case Kind.NUMBER | Kind.INTEGER:
                return self._number(value, path)
            case Kind.FLAG:
                return self._flag(value, path)
            case Kind.TEXT:
                return self._text(value, path)
            case Kind.TEXTS:
                return self._texts([value] if isinstance(value, str) else value, path)
            case Kind.TOKEN_IDS:
                return self._token_ids(self._parsed(value, path, list), path)
            case Kind.BIASES:
                found = self._parsed(value, path, dict)
                return {str(key): self._number(bias, f"{path}.{key}") for key, bias in found.items()}
            case Kind.SCHEMA:
                return self._schema(value, path)
            case Kind.OBJECT:
                return read_fields(self.members, self._parsed(value, path, dict), path, self.unread)

    @property
    def bounds(self) -> str:
        """The bounds of its numbers in words; empty where there are none."""
        if self.low is None and self.high is None:
            return ""
        if self.high is None:
            return f"at least {self.low:g}"
        low, high = (f"{bound:g}" if abs(bound or 0) < 1e6 else str(bound) for bound in (self.low, self.high))
        return f"{low} to {high}"

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""
        if self.choices:
            return ", ".join(self.choices[:-1]) + f" or {self.choices[-1]}"
        least = f"{self.least} to " if self.least else "at most "
        count = f" of {least}{self.most}" if self.most is not None else ""
        match self.kind:
            case Kind.NUMBER | Kind.INTEGER:
                article = "a" if self.kind is Kind.NUMBER else "an"
                return f"{article} {self.kind}" + (f", {self.bounds}" if self.bounds else "")
            case Kind.TEXT:
                least = f"{self.least} to " if self.least else "at most "
                return f"a string of {least}{self.length} characters" if self.length else "a string"
            case Kind.TEXTS:
                each = f" of 1 to {self.length} characters" if self.length else ""
                return f"a string{each}, or a list of 1 to {self.most} of them"
            case Kind.TOKEN_IDS:
                return f"a list{count} token ids, integers {self.bounds}"
            case Kind.BIASES:
                return f"an object{count} token ids, each with a number, {self.bounds}"
            case Kind.OBJECT:
                return f"an object of {', '.join(member.name for member in self.members)}"
            case Kind.SCHEMA:
                return "a JSON schema, an object or its text"
        return str(self.kind)

    def _wrong(self, path: str, value: object, allowed: str | None = None) -> SamplingError:
        return SamplingError(path, value, allowed or self.allowed)

    def _number(self, value: Any, path: str) -> float | int:
        whole = self.kind in (Kind.INTEGER, Kind.TOKEN_IDS)
        allowed = f"an integer, {self.bounds}" if whole else f"a number, {self.bounds}"
        made: float | int
        try:
            if isinstance(value, bool) or not isinstance(value, (int, float, str)):
                raise ValueError
            if whole:
                if isinstance(value, float) and not value.is_integer():  # 8.0 is one, as it is to JSON's schemas
                    raise ValueError
                if isinstance(value, str) and not _WHOLE.fullmatch(value):
                    raise ValueError
                made = int(value)
            else:
                made = float(value)
        except (ValueError, OverflowError):
            raise self._wrong(path, value, allowed) from None
        low, high = self.low, self.high
        inside = (low is None or made >= low) and (high is None or made <= high)
        if not inside:  # NaN is not inside either
            raise self._wrong(path, value, allowed)
        return made

    def _token_ids(self, found: list[Any], path: str) -> list[float | int]:
        """There may be as many as a vocabulary has: what is plain is not looked at one by one."""
        if found and set(map(type, found)) == {int} and (self.low or 0) <= min(found) and max(found) <= (self.high or max(found)):
            return found
        return [self._number(item, f"{path}.{place}") for place, item in enumerate(found)]

    def _flag(self, value: Any, path: str) -> bool:
        known = {"true": True, "false": False, "1": True, "0": False}
        if isinstance(value, bool):
            return value
        if isinstance(value, (int, str)) and str(value).lower() in known:
            return known[str(value).lower()]
        raise self._wrong(path, value)

    def _text(self, value: Any, path: str) -> str:
        if not isinstance(value, str) or (self.choices and value not in self.choices):
            raise self._wrong(path, value)
        if len(value) < self.least or (self.length is not None and len(value) > self.length):
            raise self._wrong(path, f"{len(value)} characters")
        return value

    def _texts(self, value: Any, path: str) -> list[str]:
        if not isinstance(value, (list, tuple)):
            raise self._wrong(path, value)
        if self.most is not None and len(value) > self.most:
            raise self._wrong(path, f"{len(value)} strings")
        for place, item in enumerate(value):
            if not isinstance(item, str) or not 1 <= len(item) <= (self.length or len(item)):
                raise self._wrong(f"{path}.{place}", item, f"a string of 1 to {self.length} characters")
        return list(value)

    def _schema(self, value: Any, path: str) -> dict[str, Any] | str:
        if not isinstance(value, (dict, str)):
            raise self._wrong(path, value)
        return value

    def _parsed(self, value: Any, path: str, kind: type[list[Any]] | type[dict[str, Any]]) -> Any:
        """A list or an object, which a request parameter can only bring as text."""
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise self._wrong(path, value) from None
        if not isinstance(value, kind):
            raise self._wrong(path, value)
        if len(value) < self.least or (self.most is not None and len(value) > self.most):
            raise self._wrong(path, f"{len(value)} entries")
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadField:
    """A name of vLLM's that nothing here reads: it may be sent with the value that changes nothing, which may come as text.

    None: no value changes anything.
    """

    name: str
    value: Any = None

    @property
    def allowed(self) -> str:
        """What may be sent, in words."""
        return "anything" if self.value is None else f"{json.dumps(self.value)} or absent"

    def check(self, value: Any, path: str) -> None:
        """Raise SamplingError for any other value."""
        same = isinstance(value, bool) == isinstance(self.value, bool) and value == self.value
        if not (self.value is None or same or (isinstance(value, str) and value.lower() == json.dumps(self.value))):
            raise SamplingError(path, value, self.allowed)


def read_fields(
    fields: Sequence[SamplingField], sent: Mapping[str, Any], within: str = "", unread: Sequence[UnreadField] = ()
) -> dict[str, Any]:
    """Every field's value, checked, its default where it was not sent; raises SamplingError for the first that is wrong.

    What is null is as absent, whatever its name.
    """
    known, others = {field.name: field for field in fields}, {field.name: field for field in unread}
    lead = f"{within}." if within else ""
    for name, value in sent.items():
        if name in known or value is None:
            continue
        if name not in others:
            raise SamplingError(f"{lead}{name}", value, f"absent; known are {', '.join(known)}", unknown=True)
        others[name].check(value, f"{lead}{name}")
    return {name: field.check(sent[name], lead + name) if name in sent else field.default for name, field in known.items()}

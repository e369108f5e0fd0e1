"""config.pbtxt parameters to a frozen dataclass of limits, unknown names refused; knows nothing of what they limit."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, TypeVar

T = TypeVar("T")

TensorNames = Mapping[str, Mapping[str, str]]
"""By model: what it calls the tensors that its callers know by other names."""
TENSOR_NAMES = "tensor_names"
"""Where the backend of a called model has names of its own for its tensors; export writes it."""
SMALLEST, LARGEST = 1e-6, 1e18
"""Of numbers: beyond these they mean nothing, and clocks and sums overflow."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf|nan", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
READ_BY_OTHERS = ("restart_on_death", "EXECUTION_ENV_PATH", "FORCE_CPU_ONLY_INPUT_TENSORS", TENSOR_NAMES)
"""What the supervisor, Triton's Python backend and the bridge read of any model's parameters."""


def read_number(text: str) -> float | None:
    """As people write numbers: Python alone reads 0_1 and digits of other scripts, too. None where it is none."""
    return float(text) if _NUMBER.fullmatch(text) else None


def read_tensor_names(parameters: Mapping[str, str]) -> TensorNames:
    """By the called model's name: what it calls the tensors that the caller knows by the component's names."""
    try:
        names = json.loads(parameters.get(TENSOR_NAMES, "{}"))
        return {str(model): {str(ours): str(theirs) for ours, theirs in of.items()} for model, of in names.items()}
    except (ValueError, AttributeError):
        raise ValueError(f'parameter {TENSOR_NAMES}: it must be JSON like {{"unet": {{"sample": "INPUT__0"}}}}') from None


def refuse_unknown(parameters: Collection[str], known: Collection[str]) -> None:
    """Raise ValueError naming the first parameter that is neither among `known` nor read by others, and what comes nearest."""
    allowed = (*known, *READ_BY_OTHERS)
    for name in parameters:
        if name not in allowed:
            hint = hint_of(name, allowed, f"it must be one of {', '.join(sorted(allowed))}")
            raise ValueError(f"parameter {name}: not known; {hint}")


def hint_of(name: str, known: Collection[str], otherwise: str) -> str:
    """For a name that nobody knows: which of those `known` may have been meant, or what is said `otherwise`."""
    near = get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else otherwise


def read_parameters(
    cls: type[T], parameters: Mapping[str, str], *, may_be_zero: Collection[str], others: Collection[str] = ()
) -> T:
    """An instance of `cls` with every field that `parameters` names; its fields are int, float, bool or str.

    `others` are names that the model reads elsewhere. Raises ValueError naming the parameter that nobody reads, that does not
    parse or is not positive.
    """
    refuse_unknown(parameters, (*(field.name for field in fields(cls)), *others))  # type: ignore[arg-type]
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
        number = read_number(text)
        if number is None or (field.type != "float" and not _WHOLE.fullmatch(text)):
            raise ValueError(f"parameter {field.name}: {text!r} is not a {'number' if number is None else 'whole number'}")
        value = number if field.type == "float" else int(text)
        zero, least = field.name in may_be_zero, SMALLEST if field.type == "float" else 1
        if not (least <= value <= LARGEST or (zero and value == 0)):
            allowed = f"{'0, or ' if zero else ''}{least:g} to {LARGEST:g}"
            raise ValueError(f"parameter {field.name}: {text} is not allowed; it must be {allowed}")
        known[field.name] = value
    return cls(**known)


def refused(name: str, value: object, allowed: str) -> ValueError:
    """The one sentence that every refusal of a parameter is."""
    return ValueError(f"parameter {name}: {value!r} is not allowed; it must be {allowed}")


def require_one_of(limits: object, name: str, allowed: Collection[str]) -> None:
    """Raise ValueError where this field of some limits is none of those."""
    if (value := getattr(limits, name)) not in allowed:
        *first, last = allowed
        raise refused(name, value, f"{', '.join(first)} or {last}" if first else last)


def require_at_most(limits: object, name: str, most: str) -> None:
    """Raise ValueError where this field of some limits is greater than that one."""
    value, bound = getattr(limits, name), getattr(limits, most)
    if value > bound:
        raise refused(name, value, f"at most {most} ({bound})")

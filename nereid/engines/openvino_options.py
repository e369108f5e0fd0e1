"""A config.pbtxt's parameters to OpenVINO's properties, in the terms of Triton's own backend; unknown ones are refused.

Triton's C++ backend ignores what it does not know. Of what it knows, refused here are `CPU_EXTENSION_PATH` (native code that no
export wrote), other devices than the processor, and two switches that undo what the backend does to fixed batches. Added is
`COMPILED_SHAPES_MIB`, which the C++ backend ignores as it does whatever it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nereid.flow.parameters import refuse_unknown

BF16_PARAMETER = "HINT_BF16"
PADDING_PARAMETER = "ENABLE_BATCH_PADDING"
SHAPES_PARAMETER = "COMPILED_SHAPES_MIB"

_MOST_MIB = 1 << 20
_HINTS = ("LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT")
_KNOWN = (
    "INFERENCE_NUM_THREADS",
    "COMPILATION_NUM_THREADS",
    "NUM_STREAMS",
    "PERFORMANCE_HINT",
    "TARGET_DEVICE",
    BF16_PARAMETER,
    PADDING_PARAMETER,
    SHAPES_PARAMETER,
)


def properties(parameters: Mapping[str, str]) -> dict[str, Any]:
    """What the parameters ask of a compiled model; raises ValueError naming what is not known or has no such value.

    Without `HINT_BF16` everything is computed in float32, also on processors where OpenVINO would choose bfloat16 by itself:
    an engine gives what its export has checked.
    """
    refuse_unknown(parameters, _KNOWN)
    made: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    for key, value in parameters.items():
        upper = value.upper()
        if key in ("INFERENCE_NUM_THREADS", "COMPILATION_NUM_THREADS"):
            made[key] = _threads(key, value)
        elif key == "NUM_STREAMS":
            made[key] = upper if upper in ("AUTO", "NUMA") else _threads(key, value, "AUTO, NUMA or ")
        elif key == "PERFORMANCE_HINT":
            made[key] = _one_of(key, upper, _HINTS)
        elif key == "TARGET_DEVICE":
            _one_of(key, upper, ("CPU",))
        elif key == BF16_PARAMETER:
            _one_of(key, upper, ("YES",))
            made["INFERENCE_PRECISION_HINT"] = "bf16"
        elif key == PADDING_PARAMETER:
            _one_of(key, upper, ("YES", "NO"))
        elif key == SHAPES_PARAMETER:
            _whole(key, value)
    return made


def pads(parameters: Mapping[str, str]) -> bool:
    """Whether batches with fewer rows than the model's fixed batch are padded instead of refused."""
    return parameters.get(PADDING_PARAMETER, "NO").upper() == "YES"


def shapes_memory(parameters: Mapping[str, str]) -> int:
    """Bytes that graphs compiled for one shape each may take; 0 where one graph is compiled for all shapes."""
    return _whole(SHAPES_PARAMETER, parameters.get(SHAPES_PARAMETER, "0")) << 20


def _whole(key: str, value: str) -> int:
    if not value.isdecimal() or not value.isascii() or int(value) > _MOST_MIB:
        raise ValueError(f"parameter {key}: {value!r} is not allowed; it must be a whole number from 0 to {_MOST_MIB}")
    return int(value)


def _threads(key: str, value: str, also: str = "") -> int:
    if not value.isdecimal() or not int(value):
        raise ValueError(f"parameter {key}: {value!r} is not allowed; it must be {also}a whole number above 0")
    return int(value)


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"parameter {key}: {value!r} is not allowed; it must be {' or '.join(allowed)}")
    return value

"""TensorRT's own account of a plan that it has built (layers, inputs, outputs, profiles), had without a graphics card."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nereid_export.components import Component
from nereid_export.engines.base import ShapeRange, input_shape

_BEGINS = "Layers:\n"
_TYPE = re.compile(r"Datatype: (\w+)")
_TENSOR = re.compile(r"^ Name: (.+?), IOMode: (\w+), DataType: (\w+), Dimensions: \[([-\d,]*)\]", re.MULTILINE)
_PROFILE = re.compile(r"MinShape: \[([\d,]*)\], OptShape: \[([\d,]*)\], MaxShape: \[([\d,]*)\]")
_DTYPES = {torch.float32: "Float", torch.int32: "Int32"}

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PlanTensor:
    """An input or output of a plan; `profiles` are an input's smallest, most usual and largest shape in each profile."""

    mode: str
    dtype: str
    dims: Shape
    profiles: tuple[tuple[Shape, Shape, Shape], ...]


@dataclass(frozen=True, slots=True)
class PlanAccount:
    """`layers` counts, for each type of numbers, the layers that read or write such a tensor."""

    layers: dict[str, int]
    tensors: dict[str, PlanTensor]

    def facts(self) -> dict[str, Any]:
        """What a manifest says of the plan."""
        profiles = {name: [list(map(list, each)) for each in tensor.profiles] for name, tensor in self.tensors.items()}
        return {"layers": self.layers, "profiles": {name: found for name, found in profiles.items() if found}}


def listener(trt: Any) -> Any:
    """A logger that keeps the builder's account and errors, and prints warnings as the library's own does."""

    class Listener(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.account: PlanAccount | None = None
            self.errors: list[str] = []
            self._own = trt.Logger(trt.Logger.WARNING)
            self._printed = (trt.Logger.INTERNAL_ERROR, trt.Logger.ERROR, trt.Logger.WARNING)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.Logger.ERROR, trt.Logger.INTERNAL_ERROR):
                self.errors.append(msg)
            if msg.startswith(_BEGINS):
                self.account = read_account(msg)
            elif severity in self._printed:
                self._own.log(severity, msg)

    return Listener()


def read_account(text: str) -> PlanAccount:
    """The account of one plan from the builder's message, of which each line is a layer or a tensor."""
    types = Counter(kind for line in text.splitlines() if line.startswith("Name: ") for kind in set(_TYPE.findall(line)))
    tensors = {}
    for match in _TENSOR.finditer(text):
        line = text[match.start() : text.find("\n", match.end())]
        profiles = tuple((_shape(least), _shape(usual), _shape(most)) for least, usual, most in _PROFILE.findall(line))
        tensors[match[1]] = PlanTensor(match[2], match[3], _shape(match[4]), profiles)
    return PlanAccount(dict(sorted(types.items())), tensors)


def difference(component: Component, account: PlanAccount, ranges: Sequence[ShapeRange]) -> str | None:
    """What of the plan is not as it was asked for, in words; None where all is."""
    for mode, specs in (("Input", component.inputs), ("Output", component.outputs)):
        names = {name for name, tensor in account.tensors.items() if tensor.mode == mode}
        if names != {spec.name for spec in specs}:
            return f"its {mode.lower()}s are {sorted(names)}, not {sorted(spec.name for spec in specs)}"
        for spec in specs:
            if (found := account.tensors[spec.name].dtype) != _DTYPES[spec.dtype]:
                return f"{spec.name} is {found}, not {_DTYPES[spec.dtype]}"
    for spec in component.inputs:
        wanted = tuple(tuple(input_shape(spec, sizes) for sizes in (each.minimum, each.optimum, each.maximum)) for each in ranges)
        if (got := account.tensors[spec.name].profiles) != wanted:
            return f"{spec.name} has the profiles {got}, not {wanted}"
    return None


def _shape(text: str) -> Shape:
    return tuple(int(size) for size in text.split(",") if size)

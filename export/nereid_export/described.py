"""Components as a manifest describes them, for choosing again where no checkpoint is; the engines that lost stay beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NoReturn

import torch

from nereid_export.components import Component, TensorSpec
from nereid_export.engines.base import Target
from nereid_export.engines.precision import Precision
from nereid_export.errors import ExportError
from nereid_export.frame import Device

ALTERNATIVES = "alternatives"
"""Folder of a model with the engines that lost; Triton takes only folders whose names are numbers for versions."""

_SIZES = ("max_batch_size", "default_side", "max_side", "scale")


def describe(component: Component, target: Target, expected: Sequence[int]) -> dict[str, Any]:
    """What a manifest says of a component."""
    return {
        "name": component.name,
        "source": component.source,
        "inputs": [_written(spec) for spec in component.inputs],
        "outputs": [_written(spec) for spec in component.outputs],
        "keep_fp32": component.keep_fp32,
        "example": component.example,
        "checks": [[rows, sizes] for rows, sizes in component.checks],
        "sizes": {name: getattr(target, name) for name in _SIZES},
        "expected_rows": list(expected),
    }


def component_of(described: dict[str, Any]) -> Component:
    """The component; it cannot be built, for its weights are not there."""

    def load() -> NoReturn:
        raise ExportError(f"{described['name']}: its checkpoint is needed to build it; export it again")

    return Component(
        name=described["name"],
        source=described["source"],
        inputs=tuple(_spec(spec) for spec in described["inputs"]),
        outputs=tuple(_spec(spec) for spec in described["outputs"]),
        load=load,
        keep_fp32=described["keep_fp32"],
        example=described["example"],
        checks=tuple((rows, sizes) for rows, sizes in described["checks"]),
    )


def target_of(described: dict[str, Any], precision: str) -> Target:
    """What an engine of the component was built for."""
    return Target(precision=Precision(precision), device=Device.CPU, **described["sizes"])


def _written(spec: TensorSpec) -> dict[str, Any]:
    return {**asdict(spec), "dtype": str(spec.dtype).removeprefix("torch.")}


def _spec(written: dict[str, Any]) -> TensorSpec:
    return TensorSpec(**{**written, "dims": tuple(written["dims"]), "dtype": getattr(torch, written["dtype"])})

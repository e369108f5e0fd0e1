"""What export asks of an engine: build it, run it for the check against PyTorch, say in a config how Triton serves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nereid_export.components import Component, TensorSpec, sizes_at
from nereid_export.errors import ExportError
from nereid_export.frame import Device


class Precision(StrEnum):
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


ERROR_BOUNDS = {Precision.FP32: 1e-4, Precision.FP16: 1e-2, Precision.BF16: 5e-2}
"""Largest relative error (norm of the difference over norm of the reference) with which an engine is published."""

Run = Callable[[Mapping[str, NDArray], Sequence[str]], dict[str, NDArray]]
"""An engine that is loaded: inputs by name and the outputs wanted, to those outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What one engine is built for: arithmetic, device, most rows of a call, and sizes of pictures in pixels a side."""

    precision: Precision
    device: Device
    max_batch_size: int
    default_side: int
    max_side: int
    scale: int
    """Pixels a latent is wide."""
    max_autotune: bool = False
    """Whether several kernels are tried for each matrix product and the fastest kept; PyTorch alone has that choice."""

    def of(self, component: Component) -> Precision:
        """The precision of this component: some VAEs overflow in half precision, and say so in their config."""
        return Precision.FP32 if component.keep_fp32 else self.precision


class EngineBuilder(Protocol):
    """One engine. Adding another takes a file beside this one, an entry in the registry, and a backend that serves it."""

    @property
    def backend(self) -> str:
        """Triton's name of the backend."""
        ...

    @property
    def filename(self) -> str:
        """The file in a model's version folder that the backend opens."""
        ...

    @property
    def packages(self) -> tuple[str, ...]:
        """Distributions whose version shapes the engine."""
        ...

    @property
    def precisions(self) -> tuple[Precision, ...]: ...

    def require(self, target: Target) -> None:
        """Raise ExportError, before anything slow, where the engine cannot be built here; the sentence says what to install."""
        ...

    def build(self, component: Component, module: nn.Module, folder: Path, target: Target) -> None:
        """Write the engine's files, all named `model.*`, to `folder`, and leave nothing else there."""
        ...

    def load(self, component: Component, folder: Path, target: Target) -> Run:
        """Load what `build` has written, with the settings with which it will be served."""
        ...

    def probe(self, component: Component, target: Target) -> str | None:
        """`module:function` of what runs a file in the process that measures memory; None where that is not measured."""
        ...

    def configure(self, config: Any, component: Component, target: Target) -> None:
        """Edit the model's config (Triton's ModelConfig) so that the backend serves this engine."""
        ...


def engine_bytes(folder: Path) -> int:
    """The size of the engine that `build` has written to this folder."""
    return sum(file.stat().st_size for file in folder.glob("model.*"))


def require_precision(name: str, builder: EngineBuilder, precision: Precision) -> None:
    """Raise ExportError for a precision that the engine does not have."""
    if precision not in builder.precisions:
        raise ExportError(
            f"--precision: {precision} is not allowed with --engine {name}; it must be one of {', '.join(builder.precisions)}"
        )


# --- the check against PyTorch ---


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison of an engine with PyTorch in float32, on random inputs."""

    output: str
    rows: int
    sizes: dict[str, int]
    relative_error: float
    largest_error: float


@dataclass(frozen=True, slots=True)
class Reference:
    """Random inputs of one check, and what PyTorch in float32 makes of them."""

    rows: int
    sizes: dict[str, int]
    inputs: dict[str, NDArray]
    outputs: dict[str, NDArray]


def random_inputs(component: Component, rows: int, sizes: dict[str, int], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {spec.name: spec.random(rows, sizes, generator) for spec in component.inputs}


def reference_outputs(component: Component, module: nn.Module) -> list[Reference]:
    """What the engine will have to compute, at several batch and picture sizes."""
    references = []
    for number, (rows, sizes) in enumerate(component.checks):
        inputs = random_inputs(component, rows, sizes, number + 1)
        with torch.no_grad():
            made = module(*inputs.values())
        values = made if isinstance(made, tuple) else (made,)
        outputs = {spec.name: value.numpy() for spec, value in zip(component.outputs, values, strict=True)}
        references.append(Reference(rows, sizes, {name: value.numpy() for name, value in inputs.items()}, outputs))
    return references


def compare(references: list[Reference], run: Run) -> list[Check]:
    """Run the engine on every reference's inputs and measure how far it is off."""
    checks = []
    for reference in references:
        made = run(reference.inputs, list(reference.outputs))
        for name, theirs in reference.outputs.items():
            checks.append(_compare(name, reference.rows, reference.sizes, made[name], theirs))
    return checks


def _compare(name: str, rows: int, sizes: dict[str, int], ours: NDArray, theirs: NDArray) -> Check:
    if ours.shape != theirs.shape:
        raise ExportError(f"{name}: the engine gives shape {ours.shape}, PyTorch {theirs.shape}")
    difference = ours.astype(np.float64) - theirs
    scale = float(np.linalg.norm(theirs)) or 1.0
    return Check(name, rows, sizes, float(np.linalg.norm(difference)) / scale, float(np.abs(difference).max()))


def refuse_above_bound(component: Component, checks: list[Check], precision: Precision) -> None:
    """Raise ExportError for an engine too far from PyTorch to be published; `precision` is this component's."""
    bound = ERROR_BOUNDS[precision]
    for check in checks:
        if not check.relative_error <= bound:  # NaN included
            raise ExportError(
                f"{component.name}: relative error {check.relative_error:.2g} of {check.output} against PyTorch is above "
                f"the bound of {bound:g} for {precision}; nothing was published"
            )


def batch_invariant_from(component: Component, run: Run, places: Sequence[tuple[int, Mapping[str, int]]]) -> int | None:
    """The fewest rows of a call from which on a row's bits do not depend on its company: 1, 2, or None where they do.

    Kernels are chosen by size, and several libraries have another one for a lone row. `places` are batches and sizes; compared
    are the rows of each batch with the same rows in smaller calls, with other mates.
    """
    differing: set[int] = set()
    names = [spec.name for spec in component.outputs]
    for count, sizes in places:
        inputs = {name: value.numpy() for name, value in random_inputs(component, count, dict(sizes), 99).items()}
        together = run(inputs, names)
        for rows in sorted(rows for rows in {1, 2, 3, count - 1} if 0 < rows < count):
            for start in {0, count - rows}:
                part = run({name: value[start : start + rows] for name, value in inputs.items()}, names)
                if any(part[name].tobytes() != together[name][start : start + rows].tobytes() for name in names):
                    differing.add(rows)
    if not differing:
        return 1
    return 2 if differing == {1} else None


# --- shapes ---


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Smallest, most usual and largest value of each named dimension, and of the batch."""

    minimum: Mapping[str, int]
    optimum: Mapping[str, int]
    maximum: Mapping[str, int]


def shape_range(component: Component, target: Target) -> ShapeRange:
    """What an engine is optimised for: pictures from 8 latents a side up to `max_side` pixels."""

    def sizes(side: int, batch: int) -> dict[str, int]:
        return {"batch": batch, **sizes_at(component, side, target.scale)}

    return ShapeRange(
        sizes(min(target.default_side, 8 * target.scale), 1),
        sizes(target.default_side, max(1, target.max_batch_size // 2)),
        sizes(max(target.max_side, target.default_side), target.max_batch_size),
    )


def input_shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A concrete shape of one input, batch first."""
    return (sizes["batch"], *(sizes[dim] if isinstance(dim, str) else dim for dim in spec.dims))

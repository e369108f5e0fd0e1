"""The check of an engine: how far it is from PyTorch on inputs that both are given, and whether rows keep their bits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nereid_export.components import Component
from nereid_export.engines.precision import END_ERROR_BOUND, ERROR_BOUNDS, Precision
from nereid_export.errors import ExportError

Inputs = Mapping[str, NDArray]

Run = Callable[[Inputs, Sequence[str]], dict[str, NDArray]]
"""An engine that is loaded: inputs by name and the outputs wanted, to those outputs."""


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison of an engine with PyTorch in float32, on one call's inputs or on several calls' together."""

    output: str
    rows: int
    sizes: dict[str, int]
    relative_error: float
    largest_error: float


@dataclass(frozen=True, slots=True)
class Reference:
    """Inputs of one check, and what PyTorch in float32 makes of them."""

    rows: int
    sizes: dict[str, int]
    inputs: dict[str, NDArray]
    outputs: dict[str, NDArray]


def random_inputs(component: Component, rows: int, sizes: dict[str, int], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = {spec.name: spec.random(rows, sizes, generator) for spec in component.inputs}
    return inputs if component.derived is None else {**inputs, **component.derived(inputs)}


def torch_run(component: Component, module: nn.Module) -> Run:
    """The component's own module in PyTorch, called as an engine is."""
    names = [spec.name for spec in component.outputs]

    def run(inputs: Inputs, outputs: Sequence[str]) -> dict[str, NDArray]:
        with torch.no_grad():
            made = module(*(torch.from_numpy(np.ascontiguousarray(inputs[spec.name])) for spec in component.inputs))
        values = dict(zip(names, made if isinstance(made, tuple) else (made,), strict=True))
        return {name: values[name].numpy() for name in outputs}

    return run


def random_references(component: Component, module: nn.Module) -> list[Reference]:
    """What the engine will have to compute, at several batch and picture sizes."""
    calls = []
    for number, (rows, sizes) in enumerate(component.checks):
        calls.append({name: value.numpy() for name, value in random_inputs(component, rows, sizes, number + 1).items()})
    return references_of(component, module, calls)


def references_of(component: Component, module: nn.Module, calls: Sequence[Inputs]) -> list[Reference]:
    """What the engine will have to make of these inputs."""
    run, names = torch_run(component, module), [spec.name for spec in component.outputs]
    return [Reference(*_sizes(component, inputs), dict(inputs), run(inputs, names)) for inputs in calls]


def _sizes(component: Component, inputs: Inputs) -> tuple[int, dict[str, int]]:
    """Rows of a call, and its named dimensions."""
    sizes = {
        dim: size
        for spec in component.inputs
        for dim, size in zip(spec.dims, inputs[spec.name].shape[1:], strict=True)
        if isinstance(dim, str)
    }
    return len(inputs[component.inputs[0].name]), sizes


def compare(references: Sequence[Reference], run: Run) -> list[Check]:
    """Run the engine on every reference's inputs and measure how far it is off, each time."""
    return [check for reference in references for check in compare_together([reference], run)]


def compare_together(references: Sequence[Reference], run: Run) -> list[Check]:
    """The same with one figure an output for all references: the norm of all differences over the norm of all values."""
    squares: dict[str, float] = defaultdict(float)
    scales: dict[str, float] = defaultdict(float)
    largest: dict[str, float] = defaultdict(float)
    for reference in references:
        made = run(reference.inputs, list(reference.outputs))
        for name, theirs in reference.outputs.items():
            ours = made[name]
            if ours.shape != theirs.shape:
                raise ExportError(f"{name}: the engine gives shape {ours.shape}, PyTorch {theirs.shape}")
            difference = np.abs(ours.astype(np.float64) - theirs)
            squares[name] += float((difference**2).sum())
            scales[name] += float((theirs.astype(np.float64) ** 2).sum())
            largest[name] = float(np.maximum(largest[name], difference.max()))  # keeps a NaN
    rows = sum(reference.rows for reference in references)
    return [
        Check(name, rows, references[0].sizes, (squares[name] / (scales[name] or 1.0)) ** 0.5, largest[name])
        for name in references[0].outputs
    ]


def aggregate_error(references: Sequence[Reference], run: Run) -> float:
    """The largest relative error of an output over all references together; NaN where one is."""
    return float(np.max([check.relative_error for check in compare_together(references, run)]))


def refuse_above_bound(component: Component, checks: list[Check], precision: Precision) -> None:
    """Raise ExportError for an engine too far from PyTorch to be published; `precision` is this component's."""
    bound = ERROR_BOUNDS[precision]
    for check in checks:
        if not check.relative_error <= bound:  # NaN included
            raise ExportError(
                f"{component.name}: relative error {check.relative_error:.2g} of {check.output} against PyTorch is above "
                f"the bound of {bound:g} for {precision}; nothing was published"
            )


def refuse_end_above_bound(component: Component, error: float, precision: Precision) -> None:
    """The same for its error at the end of whole runs, which static INT8 has a bound of."""
    if precision is Precision.INT8 and not error <= END_ERROR_BOUND:
        raise ExportError(
            f"{component.name}: relative error {error:.2g} of finished latents against PyTorch is above the bound of "
            f"{END_ERROR_BOUND:g} for {precision}; nothing was published"
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

"""What PyTorch's exporters are given of a component: example inputs, and which of their dimensions vary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nereid_export.components import Component, TensorSpec

EXAMPLE_ROWS = 2
"""An exporter takes a dimension of 1 for a constant."""


def example_inputs(component: Component) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(spec.random(EXAMPLE_ROWS, component.example, generator) for spec in component.inputs)


@contextmanager
def one_scale() -> Iterator[None]:
    """Within: diffusers' upsampling takes pictures to grow alike in both directions.

    It compares by how much each side grows, to copy tensors of more than 2^31 elements that CUDA's kernel cannot take as they are
    (PyTorch issue 141831). `torch.export` makes of that an assertion about ratios of sizes, which it then cannot write down.
    """
    from diffusers.models import upsampling

    vars(upsampling)["max"] = lambda ratios: 2  # before Python's own, in that module alone
    try:
        yield
    finally:
        del vars(upsampling)["max"]


def dynamic_shapes(component: Component) -> tuple[object, ...]:
    """The batch and every named dimension, for `torch.export` and the exporter to ONNX that is built on it."""

    def shape(spec: TensorSpec) -> dict[int, object]:
        named = {i: torch.export.Dim.DYNAMIC for i, dim in enumerate(spec.dims, 1) if isinstance(dim, str)}
        return {0: torch.export.Dim.DYNAMIC, **named}

    shapes = [shape(spec) for spec in component.inputs]
    # The UNet's extra inputs arrive as *extra, which the exporter sees as one tuple.
    return (*shapes[:3], tuple(shapes[3:])) if len(shapes) > 3 else tuple(shapes)

"""The transformer of `layout` as a component to export, and an exported graph as what `draw` calls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from numpy.typing import NDArray

from nereid.layout.elements import MAX_ELEMENTS, ElementClass
from nereid.layout.tokens import CANVAS, CONTENT, MOST_DEPTH, Floats
from nereid_export.components import Component, TensorSpec
from nereid_export.engines.onnx_graph import run_file
from nereid_zoo.layout.draw import Predict
from nereid_zoo.layout.model import load

TOKENS = "tokens"


def layout_component(folder: Path) -> Component:
    """Of a diffusers folder as `zoo train layout` writes it; batch and tokens are dynamic, up to 32 tokens."""
    return Component(
        name="layout_transformer",
        source="transformer",
        inputs=(
            TensorSpec(name="boxes", dims=(TOKENS, 4)),
            TensorSpec(name="timestep", dims=(), scale=300.0),
            TensorSpec(name="known", dims=(TOKENS, 4)),
            TensorSpec(name="field_mask", dims=(TOKENS, 4)),
            TensorSpec(name="classes", dims=(TOKENS,), dtype=torch.int64, high=len(ElementClass)),
            TensorSpec(name="parents", dims=(TOKENS,), dtype=torch.int64, high=MAX_ELEMENTS),
            TensorSpec(name="depths", dims=(TOKENS,), dtype=torch.int64, high=MOST_DEPTH),
            TensorSpec(name="content", dims=(TOKENS, CONTENT)),
            TensorSpec(name="canvas", dims=(CANVAS,)),
            TensorSpec(name="valid", dims=(TOKENS,)),
        ),
        outputs=(TensorSpec(name="velocity", dims=(TOKENS, 4)),),
        load=lambda: load(folder),
        keep_fp32=True,
        example={TOKENS: 13},
        checks=((1, {TOKENS: 8}), (3, {TOKENS: MAX_ELEMENTS})),
    )


def onnx_predict(file: Path, threads: int = 1) -> Predict:
    """The exported graph in ONNX Runtime on the processor."""
    run = run_file(file, threads=threads)

    def predict(inputs: Mapping[str, NDArray]) -> Floats:
        velocity: Floats = run(dict(inputs), ["velocity"])["velocity"]
        return velocity

    return predict

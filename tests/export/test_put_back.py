"""Layers of quantised graphs that are put back are as the checkpoint has them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx_files import operators

pytest.importorskip("torch")
from nereid_export.checkpoint import Checkpoint
from nereid_export.components import Component, components_of
from nereid_export.engines import onnx_graph
from nereid_export.engines import openvino_quantised as by_openvino
from nereid_export.engines.check import Inputs, Reference, aggregate_error, random_inputs, references_of
from nereid_export.engines.onnx_graph import run_file
from nereid_export.engines.onnx_quantised import QdqGraph, write_static
from nereid_export.engines.precision import Precision

pytestmark = pytest.mark.torch


def unet_of(checkpoint: Path) -> tuple[Component, list[Inputs], list[Reference]]:
    """With inputs of one call, and what PyTorch makes of them."""
    part = next(part for part in components_of(Checkpoint.open(checkpoint)) if part.name == "unet")
    calls: list[Inputs] = [{name: value.numpy() for name, value in random_inputs(part, 2, part.example, 1).items()}]
    return part, calls, references_of(part, part.load(), calls)


def restored(file: Path) -> list[str]:
    tensors = onnx.load(str(file), load_external_data=False).graph.initializer
    return [tensor.name for tensor in tensors if tensor.name.endswith("_float")]


def test_layers_that_are_put_back_are_as_the_checkpoint_has_them(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all put back nothing is rounded, neither activations nor weights, wherever these lie."""
    part, calls, references = unet_of(checkpoints["sd"])
    for size in (onnx_graph.SMALL_MODEL_BYTES, 1000):
        monkeypatch.setattr(onnx_graph, "SMALL_MODEL_BYTES", size)
        monkeypatch.setattr("nereid_export.engines.onnx_quantised.SMALL_MODEL_BYTES", size)
        folder = tmp_path / str(size)
        folder.mkdir()
        with onnx_graph.passing_onnx(part, part.load(), folder, Precision.FP32) as source:
            file = folder / "model.onnx"
            write_static(source, file, calls)
            graph = QdqGraph(file, source)
            rounded = graph.rounded
            some = [name for name in rounded if ".mid_block." in name]
            errors = [aggregate_error(references, graph.without(names)) for names in ((), some, rounded)]
            assert errors[0] > errors[1] > 1e-3
            assert errors[2] < 1e-5
            assert sorted(path.name for path in folder.glob("trial*")) == []
            kept = folder / "kept.onnx"
            graph.write((), kept)
            assert restored(kept) == []
            graph.write(some, file)
            assert 0 < len(restored(file)) < operators(file)["DequantizeLinear"]
        assert operators(file)["DequantizeLinear"] < 3 * len(rounded)
        assert aggregate_error(references, run_file(file)) == errors[1]
        assert operators(file)["QuantizeLinear"] == len([name for name in rounded if name not in some])


def test_layers_that_are_put_back_are_whole_with_openvino_too(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    import openvino as ov

    part, calls, references = unet_of(checkpoints["sd"])
    with onnx_graph.passing_onnx(part, part.load(), tmp_path, Precision.FP32) as source:
        graph = by_openvino.FakeQuantizeGraph(by_openvino.static(ov.Core().read_model(source), calls))
    assert aggregate_error(references, graph.without(())) > 1e-3
    assert aggregate_error(references, graph.without(graph.rounded)) < 1e-5

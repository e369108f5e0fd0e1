"""Nodes of a graph bear the names of their modules, whichever exporter wrote it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

pytest.importorskip("torch")
from nereid_export.checkpoint import Checkpoint
from nereid_export.components import components_of
from nereid_export.engines import onnx_graph
from nereid_export.engines.check import compare, random_references
from nereid_export.engines.onnx_names import name_by_module
from nereid_export.engines.precision import Precision

pytestmark = pytest.mark.torch


def test_both_exporters_name_layers_by_their_modules(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer one, which large models need, numbers its nodes by itself."""
    unet = next(part for part in components_of(Checkpoint.open(checkpoints["sd"])) if part.name == "unet")
    module = unet.load()
    named = {}
    for limit in (onnx_graph.SMALL_MODEL_BYTES, 0):
        monkeypatch.setattr(onnx_graph, "SMALL_MODEL_BYTES", limit)
        file = tmp_path / str(limit) / "model.onnx"
        file.parent.mkdir()
        onnx_graph.export_onnx(unet, module, file, Precision.FP32)
        graph = onnx.load(str(file), load_external_data=False).graph
        assert len({node.name for node in graph.node}) == len(graph.node)
        layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
        named[limit] = {node.name.rpartition("/")[0].replace("/", ".") for node in layers}
        tensors = {node.output[0].rpartition("/")[0].replace("/", ".") for node in layers}
        assert len(tensors - {""}) >= len(layers) - 1  # the graph's own output has a name of its own
    weights = {f".{name.rpartition('.')[0]}" for name, value in module.named_parameters() if value.ndim in (2, 4)}
    assert set().union(*named.values()) <= weights
    assert ".unet.conv_in" in named[0] & named[onnx_graph.SMALL_MODEL_BYTES or max(named)]
    checks = compare(random_references(unet, module), onnx_graph.run_file(tmp_path / "0" / "model.onnx"))
    assert max(check.relative_error for check in checks) < 1e-4


def test_what_belongs_to_no_module_has_no_modules_name(tmp_path: Path) -> None:
    """torch writes a placeholder where it knows of none, and would name a part of the model after it."""
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"], "node_relu"), onnx.helper.make_node("Relu", ["y"], ["z"], "node_relu_1")]
    scopes = (["", "unet", "conv_in", "relu"], ["", "_empty_nn_module_stack_from_metadata_hook", "relu_1"])
    for node, names in zip(nodes, scopes, strict=True):
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=repr(names))
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xz"]
    onnx.save(
        onnx.helper.make_model(onnx.helper.make_graph(nodes, "graph", values[:1], values[1:])), str(tmp_path / "model.onnx")
    )
    name_by_module(tmp_path / "model.onnx")
    named = [node.name for node in onnx.load(str(tmp_path / "model.onnx")).graph.node]
    assert named == ["/conv_in/Relu", "node_relu_1"]

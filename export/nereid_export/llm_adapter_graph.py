"""Adapters' branches in an ONNX graph, gathered by row: an input `adapters` (int64, rows) says whose; 0 is nobody's.

Beside every product that an adapter changes: y + (x A) B, with the A and B of each row's adapter. A row without one adds an exact
zero, and a row's products are its own, whoever is beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from nereid.engines.adapters import ADAPTERS
from nereid_export.errors import ExportError
from nereid_export.llm_adapters import Branch, Branches, LowRank

_PACKED = ("q_proj", "k_proj", "v_proj")

Shapes = Mapping[str, tuple[int, int]]
"""Outputs and inputs of the checkpoint's linear layers, by path."""


def add_adapters(model: Any, branches: Branches, shapes: Shapes) -> None:
    """Put a branch beside every product that `branches` change; raises ExportError for a layer that the graph has not."""
    if not branches:
        return
    graph = model.graph
    cache = next(value for value in graph.input if value.name.startswith("past_key_values."))
    element = helper.tensor_dtype_to_np_dtype(cache.type.tensor_type.elem_type)
    products = {node.name.split("/MatMul")[0]: node for node in graph.node if node.op_type in ("MatMul", "MatMulNBits")}
    for name, branch in _by_product(branches, shapes, products).items():
        down, up = branch.stacked()
        _add(graph, name, products[name], down.astype(element), up.astype(element))
    graph.input.append(helper.make_tensor_value_info(ADAPTERS, TensorProto.INT64, ["batch_size"]))
    del graph.value_info[:]


def _by_product(branches: Branches, shapes: Shapes, products: Mapping[str, Any]) -> dict[str, Branch]:
    """The branches as onnxruntime-genai's builder has the layers: Q, K and V packed into one, gate and up apart."""
    made: dict[str, Branch] = {}
    packed: dict[str, list[Branch]] = defaultdict(list)
    for path, branch in branches.items():
        name = "/" + path.replace("model.layers.", "model/layers.").replace(".self_attn.", "/attn/").replace(".mlp.", "/mlp/")
        (lead, _, last), (home, _, _) = name.rpartition("/"), path.rpartition(".")
        whole = f"{lead}/qkv_proj"
        if name in products:
            made[name] = branch
        elif last in _PACKED and whole in products:
            widths = [shapes[f"{home}.{part}"][0] for part in _PACKED]
            packed[whole].append(_moved(branch, sum(widths[: _PACKED.index(last)]), sum(widths)))
        elif last == "gate_up_proj" and {f"{lead}/gate_proj", f"{lead}/up_proj"} <= products.keys():
            half = branch.outputs // 2
            made[f"{lead}/gate_proj"], made[f"{lead}/up_proj"] = (_cut(branch, start, half) for start in (0, half))
        else:
            raise ExportError(f"--adapter: {path} is not a product of the ONNX graph; use --engine openvino")
    return made | {name: _joined(parts) for name, parts in packed.items()}


def _moved(branch: Branch, start: int, outputs: int) -> Branch:
    layers = (None if layer is None else layer.placed(start, outputs) for layer in branch.layers)
    return Branch(branch.inputs, outputs, tuple(layers))


def _cut(branch: Branch, start: int, outputs: int) -> Branch:
    layers = (None if layer is None else layer.cut(start, start + outputs) for layer in branch.layers)
    return Branch(branch.inputs, outputs, tuple(layers))


def _joined(parts: Sequence[Branch]) -> Branch:
    """The sum of branches of one product."""
    by_adapter = ([layer for layer in layers if layer is not None] for layers in zip(*(b.layers for b in parts), strict=True))
    layers = (LowRank.joined(own) if own else None for own in by_adapter)
    return Branch(parts[0].inputs, parts[0].outputs, tuple(layers))


def _add(graph: Any, name: str, product: Any, down: NDArray, up: NDArray) -> None:
    """The branch's sum takes the name of what the layer gave before, its bias included; so nothing behind it is changed."""
    last, own = product, f"{name}/adapters"
    followers = [node for node in graph.node if product.output[0] in node.input]
    if len(followers) == 1 and followers[0].name == f"{name}/Add":
        last = followers[0]
    given, last.output[0] = last.output[0], f"{own}/without"
    nodes = [
        helper.make_node("Gather", [f"{own}/A", ADAPTERS], [f"{own}/down"], name=f"{own}/GatherA", axis=0),
        helper.make_node("Gather", [f"{own}/B", ADAPTERS], [f"{own}/up"], name=f"{own}/GatherB", axis=0),
        helper.make_node("MatMul", [product.input[0], f"{own}/down"], [f"{own}/inner"], name=f"{own}/Down"),
        helper.make_node("MatMul", [f"{own}/inner", f"{own}/up"], [f"{own}/added"], name=f"{own}/Up"),
        helper.make_node("Add", [f"{own}/without", f"{own}/added"], [given], name=f"{own}/Sum"),
    ]
    graph.initializer.extend([numpy_helper.from_array(down, f"{own}/A"), numpy_helper.from_array(up, f"{own}/B")])
    place = next(number for number, node in enumerate(graph.node) if node.name == last.name) + 1
    for offset, node in enumerate(nodes):
        graph.node.insert(place + offset, node)

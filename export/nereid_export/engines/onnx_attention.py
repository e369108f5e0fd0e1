"""Attention in an ONNX file as one operator of ONNX Runtime's, which never holds the scores of all tokens with all others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

_DOMAIN = "com.microsoft"


def fuse_attention(file: Path) -> int:
    """Replace softmax(q k) v by `MultiHeadAttention`, in place; returns how many were.

    Heads are taken as rows of the batch, so that the graph need not say how many there are, if any. Scores with a mask stay as
    they are: text encoders have few tokens.
    """
    model = onnx.load(str(file), load_external_data=False)
    nodes = list(model.graph.node)
    made = {output: node for node in nodes for output in node.output}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in nodes:
        for name in node.input:
            readers[name].append(node)
    outputs = {value.name for value in model.graph.output}
    gone: set[int] = set()
    instead: dict[int, list[NodeProto]] = {}
    for node in nodes:
        if node.op_type != "Softmax" or not _last_axis(node):
            continue
        scores, weighted = made.get(node.input[0]), readers[node.output[0]]
        if (
            scores is None
            or scores.op_type != "MatMul"
            or [reader.op_type for reader in weighted] != ["MatMul"]
            or weighted[0].input[0] != node.output[0]
            or len(readers[scores.output[0]]) != 1
            or {scores.output[0], node.output[0]} & outputs
        ):
            continue
        gone |= {id(scores), id(node)}
        instead[id(weighted[0])] = list(_fused(scores, weighted[0]))
    if instead:
        kept = [part for node in nodes for part in instead.get(id(node), [node]) if id(node) not in gone]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        if not any(opset.domain == _DOMAIN for opset in model.opset_import):
            model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
        onnx.save(model, str(file))
    return len(instead)


def _last_axis(softmax: NodeProto) -> bool:
    return next((item.i for item in softmax.attribute if item.name == "axis"), -1) == -1


def _fused(scores: NodeProto, weighted: NodeProto) -> Iterator[NodeProto]:
    """Of scaled q [..., tokens, size], scaled k [..., size, others] and v [..., others, size]."""
    (query, transposed), values, name = scores.input, weighted.input[1], f"{weighted.name}/fused"

    def constant(what: str, *numbers: int) -> NodeProto:
        tensor = numpy_helper.from_array(np.array(numbers, dtype=np.int64), f"{name}/{what}")
        return helper.make_node("Constant", [], [f"{name}/{what}"], f"{name}/{what}_constant", value=tensor)

    yield constant("rest", -1)
    for what, tensor in (("q", query), ("transposed", transposed), ("v", values)):
        # [..., tokens, size] to [all before, tokens, size]
        yield helper.make_node("Shape", [tensor], [f"{name}/{what}_sizes"], f"{name}/{what}_shape", start=-2)
        yield helper.make_node(
            "Concat", [f"{name}/rest", f"{name}/{what}_sizes"], [f"{name}/{what}_flat"], f"{name}/{what}_concat", axis=0
        )
        yield helper.make_node("Reshape", [tensor, f"{name}/{what}_flat"], [f"{name}/{what}"], f"{name}/{what}_reshape")
    yield helper.make_node("Transpose", [f"{name}/transposed"], [f"{name}/k"], f"{name}/transpose", perm=[0, 2, 1])
    yield helper.make_node(
        "MultiHeadAttention",
        [f"{name}/q", f"{name}/k", f"{name}/v"],
        [f"{name}/out"],
        name,
        domain=_DOMAIN,
        num_heads=1,
        scale=1.0,
    )
    yield helper.make_node("Shape", [query], [f"{name}/before"], f"{name}/before_shape", start=0, end=-1)
    yield helper.make_node("Concat", [f"{name}/before", f"{name}/rest"], [f"{name}/after"], f"{name}/after_concat", axis=0)
    yield helper.make_node("Reshape", [f"{name}/out", f"{name}/after"], [weighted.output[0]], f"{name}/after_reshape")

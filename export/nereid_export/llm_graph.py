"""Edits of an exported language-model graph that ONNX Runtime's builder does not make; knows onnx alone."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nereid.engines.hidden_states import HIDDEN_STATES
from nereid_export.errors import ExportError


def keep_some_logits(model: Any) -> None:
    """Give the graph an input `logits_to_keep` (int64, positions): only those go through the head.

    A prompt's tokens need no logits but the last one's, and the head is often the largest matrix.
    """
    graph, head = model.graph, _head(model.graph)
    hidden = head.input[0]
    kept = f"{hidden}/kept"
    head.input[0] = kept
    place = next(i for i, node in enumerate(graph.node) if node is head or node.name == head.name)
    graph.node.insert(place, helper.make_node("Gather", [hidden, "logits_to_keep"], [kept], name="/lm_head/Keep", axis=1))
    graph.input.append(helper.make_tensor_value_info("logits_to_keep", TensorProto.INT64, ["kept_length"]))
    for output in graph.output:
        if output.name == "logits":
            output.type.tensor_type.shape.dim[1].dim_param = "kept_length"
    del graph.value_info[:]


def keep_hidden_states(model: Any, width: int) -> None:
    """Give the graph an output `hidden_states`: of every token what the head would be given."""
    graph, hidden = model.graph, _head(model.graph).input[0]
    cache = next(value for value in graph.input if value.name.startswith("past_key_values."))
    graph.node.append(helper.make_node("Identity", [hidden], [HIDDEN_STATES], name="/lm_head/KeepStates"))
    shape = ["batch_size", "sequence_length", width]
    graph.output.append(helper.make_tensor_value_info(HIDDEN_STATES, cache.type.tensor_type.elem_type, shape))


def _head(graph: Any) -> Any:
    """The product that the logits come from."""
    head = next((node for node in graph.node if "logits" in node.output), None)
    while head is not None and head.op_type in ("Cast", "Mul", "Tanh", "Div", "Add", "Softcap", "Where"):
        head = next((node for node in graph.node if head.input[0] in node.output), None)
    if head is None or not head.op_type.startswith("MatMul"):
        raise ExportError(f"the graph's logits come from {head.op_type if head else 'nothing'}, not from a matrix product")
    return head


def fix_cache_size(model: Any, head_size: int) -> None:
    """Write the cache's head size into the signature, which the builder leaves open."""
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.shape.dim[3].dim_value = head_size


def set_window(model: Any, window: int) -> None:
    """Let the attention of every layer see its last `window` tokens, itself included."""
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            next(attribute for attribute in node.attribute if attribute.name == "local_window_size").i = window


def leave_unrotated(model: Any, layers: Collection[int]) -> None:
    """Let the attention of those layers take queries and keys as they are, wherever their tokens stand."""
    attentions = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    for number in layers:
        node = attentions[number]
        next(attribute for attribute in node.attribute if attribute.name == "do_rotary").i = 0
        node.input[7], node.input[8] = "", ""  # cos_cache, sin_cache


def set_embedding_scale(model: Any, scale: float) -> None:
    """Write the factor of the embeddings in full, of which the builder keeps two decimals."""
    node = next(node for node in model.graph.node if node.name == "/model/embed_tokens/Mul")
    cache = next(value for value in model.graph.input if value.name.startswith("past_key_values."))
    exact = np.array(scale, helper.tensor_dtype_to_np_dtype(cache.type.tensor_type.elem_type))
    model.graph.initializer.append(numpy_helper.from_array(exact, "/model/embed_tokens/scale"))
    node.input[1] = "/model/embed_tokens/scale"


def matrices(model: Any) -> dict[str, Any]:
    """The products with constant matrices, by node name: what can be quantised."""
    constants = {item.name for item in model.graph.initializer}
    return {node.name: node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in constants}


def save(model: Any, folder: Any) -> None:
    """Write model.onnx with all weights in model.onnx.data beside it."""
    onnx.save_model(
        model,
        str(folder / "model.onnx"),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="model.onnx.data",
        size_threshold=1024,
        convert_attribute=False,
    )

"""Puts OpenVINO's paged attention into a graph that export has left open, for no file format holds that operator.

An exported graph stops at every layer's attention: it gives `query.N`, `key.N` and `value.N`, and goes on from an input
`attention.N`. What the operator needs to know besides stands in the file as `nereid/attention`, a JSON list with one
`Attention` a layer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import op

from nereid.engines.hidden_states import HIDDEN_STATES

PLACE = ["nereid", "attention"]
"""Where in the file's own notes the layers are described."""

_I32 = ov.Type.i32
_CALL = {
    "past_lens": [-1],
    "subsequence_begins": [-1],
    "block_indices": [-1],
    "block_indices_begins": [-1],
    "max_context_len": [],
}
"""The inputs by which every layer knows whose tokens those of a call are, and their shapes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One layer's: a token sees the last `window` tokens, itself included; 0 is all of them."""

    kv_heads: int
    head_size: int
    scale: float
    window: int = 0


def describe(model: Any, layers: Sequence[Attention]) -> None:
    """Write the layers into the graph's notes."""
    model.set_rt_info(json.dumps([asdict(layer) for layer in layers]), PLACE)


def layers_of(model: Any) -> list[Attention]:
    """The layers of a graph of ours; raises ValueError for any other."""
    if not model.has_rt_info(PLACE):
        raise ValueError("the graph lacks nereid/attention, which `nereid export llm --engine openvino` writes")
    return [Attention(**layer) for layer in json.loads(model.get_rt_info(PLACE).astype(str))]


def close(model: Any) -> Any:
    """The whole graph: inputs `key_cache.N` and `value_cache.N` hold the blocks, and every attention is computed in them."""
    inputs = {port.get_any_name(): port.get_node() for port in model.inputs}
    outputs = {port.get_any_name(): port.get_node().input_value(0) for port in model.outputs}
    call = {name: _input(name, _I32, shape) for name, shape in _CALL.items()}
    caches = []
    for number, layer in enumerate(layers_of(model)):
        pair = [_input(f"{kind}_cache.{number}", ov.Type.dynamic, [-1] * 4) for kind in ("key", "value")]
        tokens = [outputs[f"{kind}.{number}"] for kind in ("query", "key", "value")]
        made = _paged(layer, tokens, pair, call)
        for target in inputs[f"attention.{number}"].output(0).get_target_inputs():
            target.replace_source_output(made)
        caches += pair
    given = [node for name, node in inputs.items() if not name.startswith("attention.")]
    made = [port.get_node() for port in model.outputs if port.get_names() & {"logits", HIDDEN_STATES}]
    return ov.Model(made, [*given, *call.values(), *caches], "paged")  # pyright: ignore[reportGeneralTypeIssues]


def _input(name: str, kind: Any, shape: list[int]) -> Any:
    made = op.Parameter(kind, ov.PartialShape(shape))
    made.set_friendly_name(name)
    made.output(0).set_names({name})
    return made


def _paged(layer: Attention, tokens: Sequence[Any], caches: Sequence[Any], call: dict[str, Any]) -> Any:
    """The operator's output; of its 28 inputs those after `max_context_len` are for what is not used here, and empty."""
    nothing, zero = _constant(np.zeros(0, np.int32)), _constant(np.int32(0))
    no_floats = _constant(np.zeros(0, np.float32))
    unused = [
        nothing,  # score_aggregation_window
        *(nothing, nothing, no_floats),  # rotated_block_indices, rotation_deltas, rotation_trig_lut
        *(no_floats, zero, zero),  # xattention: threshold, block_size, stride
        _constant(np.zeros((0, 0, 0, 0), np.float32)),  # sinks
        *(zero, nothing, nothing, nothing),  # adaptive_rkv: start_size, evictable_sizes, two of diversity blocks
        nothing,  # token_type_ids
        *(_constant(np.zeros(0, np.uint8)), nothing),  # qq_bias, qq_bias_begins
    ]
    known = [
        *(node.output(0) for node in caches),
        *(call[name].output(0) for name in ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")),
        *(_constant(np.float32(layer.scale)), _constant(np.int32(layer.window))),
        no_floats,  # alibi_slopes
        call["max_context_len"].output(0),
    ]
    made = op._PagedAttentionExtension([*tokens, *known, *unused])
    for name in ("num_k_heads", "num_v_heads"):
        made.set_rt_info(layer.kv_heads, name)
    for name in ("k_head_size", "v_head_size"):
        made.set_rt_info(layer.head_size, name)
    return made.output(0)


def _constant(value: Any) -> Any:
    return op.Constant(np.asarray(value)).output(0)

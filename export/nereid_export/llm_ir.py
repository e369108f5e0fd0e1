"""A language model as an OpenVINO graph, written layer by layer from transformers' modules; knows no files.

All sequences of a call are one row of tokens: `input_ids`, `position_ids`; only those in `logits_to_keep` go through the head.
Where they are kept, `hidden_states` are what the head would be given of every token.
Where there are adapters, `adapters` says of every token whose it is: beside a layer that any of them changes stand the matrices
of all, side by side, of whose products a token keeps those of its own adapter; the others' are multiplied by zero.
Attention is left open, nereid.engines.paged_attention puts it in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import op
from openvino import opset13 as ops

from nereid.engines.adapters import ADAPTERS
from nereid.engines.hidden_states import HIDDEN_STATES
from nereid.engines.paged_attention import Attention, describe
from nereid_export.llm_adapters import Branch, Branches
from nereid_export.llm_ir_weights import Matrix

Rotation = tuple[Any, Any]
"""Cosines and sines of every token's position: tokens x 1 x 1 x rotated width."""

ACTIVATIONS = {"silu": ops.swish, "gelu": ops.gelu, "gelu_pytorch_tanh": lambda node: ops.gelu(node, "tanh"), "relu": ops.relu}


def matrices(model: Any) -> dict[str, Any]:
    """The linear layers of a transformers model, by name: what can be quantised."""
    import torch

    return {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


def build_graph(model: Any, quantised: dict[str, Matrix], branches: Branches, *, states: bool = False) -> Any:
    """The open graph; matrices in `quantised` are stored as they are there, all others in float32.

    `states`: it gives the last hidden states, too.
    """
    return _Builder(model, quantised, branches, states).graph()


@dataclass(slots=True)
class _Builder:
    """`names` are the modules', for errors and for the node names of the graph."""

    model: Any
    quantised: dict[str, Matrix]
    branches: Branches
    states: bool = False
    names: dict[int, str] = field(init=False)
    _given: list[Any] = field(default_factory=list)
    _taken: list[Any] = field(default_factory=list)
    _adapters: Any = None
    """Whose every token is that goes through the next layer."""
    _shares: dict[tuple[int, tuple[int, ...]], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = {id(module): name for name, module in self.model.named_modules()}

    def graph(self) -> Any:
        model, config = self.model, self.model.config
        ids, positions = self._input("input_ids", ov.Type.i64, [-1]), self._input("position_ids", ov.Type.i64, [-1])
        kept = self._input("logits_to_keep", ov.Type.i64, [-1])
        if self.branches:
            self._adapters = self._input(ADAPTERS, ov.Type.i64, [-1])
        hidden = self._embedding(ids)
        rotations = self._rotations(positions)
        layers = []
        for number, layer in enumerate(model.model.layers):
            rotation = rotations[_kind(config, number)] if getattr(layer.self_attn, "use_rope", True) else None
            hidden = self._layer(layer, hidden, rotation, number)
            layers.append(_attention_of(layer.self_attn, config))
        normed = self._norm(model.model.norm, hidden)
        if self.states:
            self._output(HIDDEN_STATES, normed)
        hidden = ops.gather(normed, kept, _int(0))
        if self.branches:
            self._adapters = ops.gather(self._adapters, kept, _int(0))
        logits = self._linear(model.lm_head, hidden)
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            logits = ops.multiply(ops.tanh(ops.divide(logits, _float(cap))), _float(cap))
        self._output("logits", logits)
        made = ov.Model(self._taken, self._given, config.architectures[0])  # pyright: ignore[reportGeneralTypeIssues]
        describe(made, layers)
        return made

    def _layer(self, layer: Any, hidden: Any, rotation: Rotation | None, number: int) -> Any:
        made = self._attention(layer.self_attn, self._norm(layer.input_layernorm, hidden), rotation, number)
        if hasattr(layer, "pre_feedforward_layernorm"):  # Gemma 2 and 3: norms before and after
            hidden = ops.add(hidden, self._norm(layer.post_attention_layernorm, made))
            made = self._feed_forward(layer.mlp, self._norm(layer.pre_feedforward_layernorm, hidden))
            return ops.add(hidden, self._norm(layer.post_feedforward_layernorm, made))
        hidden = ops.add(hidden, made)
        return ops.add(hidden, self._feed_forward(layer.mlp, self._norm(layer.post_attention_layernorm, hidden)))

    def _attention(self, attention: Any, hidden: Any, rotation: Rotation | None, number: int) -> Any:
        config, size = self.model.config, attention.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        if hasattr(attention, "qkv_proj"):  # Phi-3
            widths = np.array([heads * size, kv_heads * size, kv_heads * size])
            query, key, value = ops.variadic_split(self._linear(attention.qkv_proj, hidden), _int(1), _ints(widths)).outputs()
        else:
            query, key, value = (self._linear(getattr(attention, name), hidden) for name in ("q_proj", "k_proj", "v_proj"))
        query = self._rotated(query, heads, size, getattr(attention, "q_norm", None), rotation)
        key = self._rotated(key, kv_heads, size, getattr(attention, "k_norm", None), rotation)
        for kind, node in (("query", query), ("key", key), ("value", value)):
            self._output(f"{kind}.{number}", node)
        return self._linear(attention.o_proj, self._input(f"attention.{number}", ov.Type.f32, [-1, heads * size]))

    def _rotated(self, node: Any, heads: int, size: int, norm: Any, rotation: Rotation | None) -> Any:
        """Queries or keys by head, normalised where the family does so, and turned by their positions where the layer does so.

        In the very form, axes included, that OpenVINO computes as one operator.
        """
        if norm is None and rotation is None:
            return node
        node = ops.reshape(node, _ints([0, heads, 1, size]), True)
        if norm is not None:
            node = self._norm(norm, node)
        whole = node if rotation is None else _turned(node, size, rotation)
        return ops.reshape(whole, _ints([0, heads * size]), True)

    def _rotations(self, positions: Any) -> dict[str, Rotation]:
        """What turns every token, by the kind of layer: one for all, but for Gemma 3, where each kind has its own."""
        rotary = self.model.model.rotary_emb
        places = ops.unsqueeze(ops.convert(positions, np.float32), _ints([1, 2, 3]))
        kinds = sorted({_kind(self.model.config, number) for number in range(len(self.model.model.layers))})
        if hasattr(rotary, "inv_freq"):
            return dict.fromkeys(kinds, _rotation(places, rotary.inv_freq, rotary.attention_scaling))
        own = {kind: (getattr(rotary, f"{kind}_inv_freq"), getattr(rotary, f"{kind}_attention_scaling")) for kind in kinds}
        return {kind: _rotation(places, *given) for kind, given in own.items()}

    def _feed_forward(self, mlp: Any, hidden: Any) -> Any:
        name = getattr(self.model.config, "hidden_activation", None) or self.model.config.hidden_act
        if hasattr(mlp, "gate_up_proj"):  # Phi-3
            gate, up = ops.split(self._linear(mlp.gate_up_proj, hidden), _int(1), 2).outputs()
        else:
            gate, up = self._linear(mlp.gate_proj, hidden), self._linear(mlp.up_proj, hidden)
        return self._linear(mlp.down_proj, ops.multiply(ACTIVATIONS[name](gate), up))

    def _embedding(self, ids: Any) -> Any:
        table = self.model.model.embed_tokens
        head = self.names[id(self.model.lm_head)]
        if table.weight is self.model.lm_head.weight and head in self.quantised:  # tied: one copy, not two
            hidden = self.quantised[head].rows(ids)
        else:
            hidden = ops.gather(_constant(table.weight.detach().float().numpy()), ids, _int(0))
        scale = getattr(table, "scalar_embed_scale", None)
        return hidden if scale is None else ops.multiply(hidden, _float(scale))

    def _norm(self, norm: Any, node: Any) -> Any:
        """Root mean square over the last axis; Gemma's weights are told from one."""
        weight = norm.weight.detach().float().numpy()
        if type(norm).__name__.startswith("Gemma"):
            weight = np.float32(1) + weight
        epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
        mean = ops.reduce_mean(ops.power(node, _float(2)), _ints([-1]), True)
        return ops.multiply(ops.divide(node, ops.sqrt(ops.add(mean, _float(epsilon)))), _constant(weight))

    def _linear(self, module: Any, node: Any) -> Any:
        name = self.names[id(module)]
        if name in self.quantised:
            matrix = self.quantised[name].whole()
        elif module is self.model.lm_head:
            matrix = self._head()
        else:
            matrix = _constant(module.weight.detach().float().numpy())
        made = ops.matmul(node, matrix, False, True)
        made.set_friendly_name(name)
        if module.bias is not None:
            made = ops.add(made, _constant(module.bias.detach().float().numpy()))
        branch = self.branches.get(name)
        return made if branch is None else ops.add(made, self._added(branch, node))

    def _added(self, branch: Branch, node: Any) -> Any:
        """What its own adapter adds to every token; exact zeros where it has none, and from the others."""
        down, up, owners = branch.side_by_side()
        key = id(self._adapters), tuple(owners.tolist())
        if key not in self._shares:
            same = ops.equal(ops.unsqueeze(self._adapters, _int(1)), ops.constant(owners[None]))
            self._shares[key] = ops.convert(same, np.float32)
        inner = ops.multiply(ops.matmul(node, _constant(down), False, True), self._shares[key])
        return ops.matmul(inner, _constant(up), False, True)

    def _head(self) -> Any:
        return _constant(self.model.lm_head.weight.detach().float().numpy())

    def _input(self, name: str, kind: Any, shape: list[int]) -> Any:
        made = op.Parameter(kind, ov.PartialShape(shape))
        made.set_friendly_name(name)
        made.output(0).set_names({name})
        self._given.append(made)
        return made

    def _output(self, name: str, node: Any) -> None:
        made = ops.result(node)
        made.output(0).set_names({name})
        self._taken.append(made)


def _rotation(places: Any, frequencies: Any, scaling: float) -> Rotation:
    angles = ops.multiply(places, _constant(frequencies.float().numpy()[None, None, None]))
    angles = ops.concat([angles, angles], 3)
    return ops.multiply(ops.cos(angles), _float(scaling)), ops.multiply(ops.sin(angles), _float(scaling))


def _turned(node: Any, size: int, rotation: Rotation) -> Any:
    """The first values of every head, as many as are rotated, turned; the rest is left as it is."""
    cosine, sine = rotation
    turned, rest = node, None
    width = cosine.get_output_partial_shape(0)[3].get_length()
    if width < size:
        turned, rest = ops.variadic_split(node, _int(3), _ints([width, size - width])).outputs()
    first, second = ops.variadic_split(turned, _int(3), _ints([width // 2, width // 2])).outputs()
    swapped = ops.concat([ops.multiply(second, _float(-1)), first], -1)
    turned = ops.add(ops.multiply(turned, cosine), ops.multiply(swapped, sine))
    return turned if rest is None else ops.concat([turned, rest], -1)


def _kind(config: Any, number: int) -> str:
    """A layer's kind as transformers names it; where it lists none, all layers are of one."""
    listed = getattr(config, "layer_types", None)
    return "" if listed is None else str(listed[number])


def _attention_of(attention: Any, config: Any) -> Attention:
    """A layer's attention as the paged operator is told of it."""
    own = attention if hasattr(attention, "sliding_window") else config
    window = getattr(own, "sliding_window", None)
    return Attention(
        kv_heads=config.num_key_value_heads, head_size=attention.head_dim, scale=float(attention.scaling), window=window or 0
    )


def _constant(value: NDArray) -> Any:
    return ops.constant(np.ascontiguousarray(value))


def _int(value: int) -> Any:
    return ops.constant(np.int64(value))


def _ints(values: Any) -> Any:
    return ops.constant(np.asarray(values, np.int64))


def _float(value: float) -> Any:
    return ops.constant(np.float32(value))

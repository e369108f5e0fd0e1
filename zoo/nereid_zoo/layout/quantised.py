"""The layout transformer with linear layers of 4-bit weights and 8-bit products.

Smoothing costs nothing where something per channel stands before a layer: of qkv and fc1 it is in the modulation of the norm, of
proj in the rows of qkv that make values. Timesteps are divided into ranges (`timestep_ranges`); what inputs of a block's layers
are rounded by is that of the row's range, from one table. The layers of time and canvas have one range. The first layers and the
last, embeddings and norms compute in float32, of values of 8 bits (embeddings, first layers, modulation) or that halves hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nereid_export.w4a8.layers import QuantisedLayer
from nereid_export.w4a8.products import LinearInEight, ProductInEight, halved
from nereid_export.w4a8.tables import Table
from nereid_zoo.layout.model import Block, Branches, LayoutTransformer
from nereid_zoo.layout.observed import IN_BLOCK, OF_CONDITION
from nereid_zoo.layout.timestep_ranges import Bounds, places_of

EMBEDDINGS = ("class_embed", "order_embed", "parent_embed", "depth_embed")
FIRST = ("embed", "canvas_token", "canvas_embed.0")
"""Layers of inputs of many kinds. Their weights are stored in 8 bits, a scale for each input, and multiplied in float32."""


class _Rows:
    """What the rows of the call in progress are scaled by: as `QuantisedTransformer` splits its table."""

    gains: tuple[Tensor, ...]
    factors: tuple[Tensor, ...]


class QuantisedBlock(Block):
    """As `Block`; its products are of 8-bit numbers."""

    table: Tensor
    smooth: Tensor
    smooth_mlp: Tensor

    def __init__(self, block: Block, layers: Mapping[str, QuantisedLayer], rows: _Rows, place: int) -> None:
        width = block.norm1.normalized_shape[0]
        super().__init__(width, block.heads, 1)
        del self.modulation
        self.rows, self.place = [rows], place  # in a list, since it is no module and is shared
        whole = torch.ones(6, width)
        for row, name in ((0, "qkv"), (1, "qkv"), (3, "fc1"), (4, "fc1")):
            whole[row] = torch.from_numpy(layers[name].smooth)
        table = block.modulation.detach().clone()
        table[[1, 4]] += 1
        self.tables = [rounded := Table.of(table.numpy())]
        self.register_buffer("table", torch.from_numpy(rounded.matrix()))
        self.register_buffer("smooth", whole)
        self.register_buffer("smooth_mlp", torch.from_numpy(layers["fc2"].smooth))
        biases = {name: getattr(block, name).bias.detach().clone() for name in IN_BLOCK}
        biases["qkv"][-width:] *= torch.from_numpy(layers["proj"].smooth)
        for name in IN_BLOCK:
            setattr(self, name, ProductInEight(layers[name]))
            self.register_buffer(f"{name}_bias", halved(biases[name]))

    def forward(
        self, x: Tensor, condition: Tensor, bias: Tensor | None, kept: Branches = (None, None), opened: Any = None
    ) -> tuple[Tensor, Branches]:
        assert opened is None, "its heads and channels all count"
        rows = self.rows[0]
        scaled = (condition + self.table) * self.smooth * rows.factors[self.place]
        shift1, scale1, gate1, shift2, scale2, gate2 = torch.split(scaled, 1, 1)  # scales have their 1 from the table
        attention, mlp = kept
        if attention is None:
            assert bias is not None
            attention = self.attend(self.norm1(x) * scale1 + shift1, bias)
        x = x + gate1 * attention
        if mlp is None:
            mlp = self._mlp(self.norm2(x) * scale2 + shift2)
        return x + gate2 * mlp, (attention, mlp)

    def attend(self, x: Tensor, bias: Tensor, opened: Any = None) -> Tensor:
        count, tokens, width = x.shape
        gain, own, inverse = (self._gain(kind) for kind in (0, 1, 4))
        together = self.qkv(x) * gain + self.qkv_bias
        q, k, v = together.reshape(count, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5 + bias).softmax(-1)
        made: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(count, tokens, width) * inverse) * own + self.proj_bias
        return made

    def _mlp(self, x: Tensor) -> Tensor:
        gain, own, inverse = (self._gain(kind) for kind in (2, 3, 5))
        hidden = _gelu(self.fc1(x) * gain + self.fc1_bias)
        made: Tensor = self.fc2(hidden * (self.smooth_mlp * inverse)) * own + self.fc2_bias
        return made

    def _gain(self, kind: int) -> Tensor:
        """B x 1 x 1: of the four layers by their order, then one over those of proj and of fc2."""
        return self.rows[0].gains[6 * self.place + kind]


def _gelu(x: Tensor) -> Tensor:
    """GELU's approximation by tanh, as x times the sigmoid that it is: fewer operators, which count beside products in 8 bits."""
    slope = 2 * math.sqrt(2 / math.pi)
    return x * torch.sigmoid(x * (x * x * (0.044715 * slope) + slope))


class QuantisedTransformer(LayoutTransformer):
    """As `LayoutTransformer`, of the same inputs and outputs."""

    bounds: Tensor
    """Of the ranges of timesteps."""
    gains: Tensor
    rows: list[_Rows]
    tables: list[Table]
    """What is stored in 8 bits."""

    @classmethod
    def of(cls, transformer: LayoutTransformer, layers: Mapping[str, QuantisedLayer], bounds: Bounds) -> QuantisedTransformer:
        """Of a trained one, which stays as it is; `bounds` are of the ranges by which the layers' inputs were noted."""
        made = cls(**transformer.settings)
        kept = {name: halved(value) for name, value in transformer.state_dict().items()}
        made.tables = []
        for name in (*EMBEDDINGS, *FIRST):
            weight = transformer.get_submodule(name).get_parameter("weight").detach().numpy()
            made.tables.append(table := Table.of(weight.T if name in FIRST else weight))
            kept[f"{name}.weight"] = torch.from_numpy(table.matrix().T if name in FIRST else table.matrix())
        made.load_state_dict(kept)
        for name in OF_CONDITION:
            home, _, own = name.rpartition(".")
            bias = transformer.get_submodule(name).get_parameter("bias")
            setattr(made.get_submodule(home), own, LinearInEight(layers[name], bias))
        rows = _Rows()
        made.rows = [rows]
        blocks = []
        for place, block in enumerate(transformer.blocks):
            assert isinstance(block, Block)
            own_layers = {name: layers[f"blocks.{place}.{name}"] for name in IN_BLOCK}
            blocks.append(QuantisedBlock(block, own_layers, rows, place))
        made.blocks = nn.ModuleList(blocks)
        made.register_buffer("bounds", torch.tensor(bounds))
        made.register_buffer("gains", torch.from_numpy(_table(layers, len(blocks))))
        return made.eval().requires_grad_(False)

    def branched(self, numbers: Tensor, timestep: Tensor, *others: Any, **named: Any) -> tuple[Tensor, list[Branches]]:
        count, (rows,) = len(self.blocks), self.rows
        own = torch.split(self.gains[places_of(timestep, self.bounds)], [1] * (6 * count) + [6] * count, 1)
        rows.gains, rows.factors = own[: 6 * count], own[6 * count :]
        return super().branched(numbers, timestep, *others, **named)


def _table(layers: Mapping[str, QuantisedLayer], blocks: int) -> np.ndarray:
    """Ranges x (6 gains a block, then 6 factors of modulation a block) x 1."""

    def gain(place: int, name: str) -> np.ndarray:
        return layers[f"blocks.{place}.{name}"].rounding.gains

    columns = []
    for place in range(blocks):
        columns += [gain(place, name) for name in IN_BLOCK]
        columns += [1 / gain(place, name) for name in ("proj", "fc2")]
    for place in range(blocks):
        for name in ("qkv", "fc1"):
            columns += [1 / gain(place, name)] * 2 + [np.ones_like(gain(place, name))]
    return np.stack(columns, 1)[:, :, None].astype(np.float32)

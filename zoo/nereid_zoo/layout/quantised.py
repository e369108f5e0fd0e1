"""The layout transformer with linear layers of 4-bit weights and 8-bit products: what their inputs are, and the module itself.

Smoothing costs nothing where something per channel stands before a layer: of qkv and fc1 it is in the modulation of the norm, of
proj in the rows of qkv that make values. Timesteps are divided into ranges (`timestep_ranges`); what inputs of a block's layers
are rounded by is that of the row's range, from one table. The layers of time and canvas have one range. The first layers and the
last, embeddings and norms compute in float32, of values of 8 bits (embeddings, first layers, modulation) or that halves hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nereid_export.w4a8.layers import RANK, QuantisedLayer, Statistics, quantise
from nereid_export.w4a8.products import LinearInEight, ProductInEight, halved
from nereid_export.w4a8.tables import Table
from nereid_zoo.layout.draw import Predict
from nereid_zoo.layout.model import Block, Branches, LayoutTransformer
from nereid_zoo.layout.timestep_ranges import Bounds, places_of

IN_BLOCK = ("qkv", "proj", "fc1", "fc2")
OF_CONDITION = ("time_embed.0", "time_embed.2", "canvas_embed.2", "condition", "last_condition")
"""Layers outside of blocks that are quantised."""
EMBEDDINGS = ("class_embed", "order_embed", "parent_embed", "depth_embed")
FIRST = ("embed", "canvas_token", "canvas_embed.0")
"""Layers of inputs of many kinds. Their weights are stored in 8 bits, a scale for each input, and multiplied in float32."""
_ROWS = 8
"""Inputs of a layer that are kept of a call."""
MOST_ROWS = 1024


def layer_names(transformer: LayoutTransformer) -> list[str]:
    """Those that are quantised."""
    return [*OF_CONDITION, *(f"blocks.{place}.{name}" for place in range(len(transformer.blocks)) for name in IN_BLOCK)]


# --- what layers are given ---


@dataclass
class _Met:
    """Of one layer, over all calls so far."""

    low: Tensor
    high: Tensor
    gram: Tensor
    rows: list[Tensor] = field(default_factory=list)
    places: list[Tensor] = field(default_factory=list)

    @classmethod
    def none(cls, ranges: int, width: int) -> _Met:
        empty = torch.full((ranges, width), torch.inf)
        return cls(empty, -empty, torch.zeros(width, width, dtype=torch.float64))

    def add(self, rows: Tensor, places: Tensor, generator: torch.Generator) -> None:
        for place in torch.unique(places).tolist():
            own = rows[places == place]
            self.low[place] = torch.minimum(self.low[place], own.amin(0))
            self.high[place] = torch.maximum(self.high[place], own.amax(0))
        self.gram += rows.T @ rows
        chosen = torch.randperm(len(rows), generator=generator)[:_ROWS]
        self.rows.append(rows[chosen])
        self.places.append(places[chosen])

    def statistics(self) -> Statistics:
        seen = torch.isfinite(self.low[:, 0]).nonzero()[:, 0].numpy()
        nearest = [seen[np.abs(seen - place).argmin()] for place in range(len(self.low))]
        rows, places = torch.cat(self.rows), torch.cat(self.places)
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:MOST_ROWS]
        return Statistics(
            low=self.low.numpy()[nearest].astype(np.float64),
            high=self.high.numpy()[nearest].astype(np.float64),
            gram=self.gram.numpy(),
            rows=rows[chosen].numpy(),
            places=places[chosen].numpy(),
        )


@dataclass(slots=True)
class Observer:
    """A transformer in float32 whose layers' inputs are noted while it draws; padded tokens are not."""

    transformer: LayoutTransformer
    bounds: Bounds
    """Of the ranges of timesteps by which they are noted."""
    _met: dict[str, _Met] = field(default_factory=dict)
    _places: Tensor = field(default_factory=lambda: torch.zeros(0))
    _valid: Tensor = field(default_factory=lambda: torch.zeros(0))
    _generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @contextmanager
    def watching(self) -> Iterator[Predict]:
        """Within: what draws and is watched."""
        hooks = [
            self.transformer.get_submodule(name).register_forward_pre_hook(self._hook(name))
            for name in layer_names(self.transformer)
        ]
        try:
            yield self._predict
        finally:
            for hook in hooks:
                hook.remove()

    def statistics(self) -> dict[str, Statistics]:
        return {name: met.statistics() for name, met in self._met.items()}

    def _predict(self, inputs: Mapping[str, Any]) -> Any:
        given = {name: torch.from_numpy(value) for name, value in inputs.items()}
        self._places = places_of(given["timestep"], torch.tensor(self.bounds))
        self._valid = functional.pad(given["valid"], (1, 0), value=1.0) > 0
        with torch.inference_mode():
            return self.transformer(**given).numpy()

    def _hook(self, name: str) -> Callable[..., None]:
        ranged = name not in OF_CONDITION

        def met(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0]
            places = self._places
            if rows.ndim == 3:
                places, rows = places[:, None].expand(rows.shape[:2])[self._valid], rows[self._valid]
            places = places if ranged else torch.zeros_like(places)
            if name not in self._met:
                self._met[name] = _Met.none(1 + ranged * len(self.bounds), rows.shape[-1])
            self._met[name].add(rows, places, self._generator)

        return met


# --- the layers ---


def quantised_layers(
    transformer: LayoutTransformer,
    statistics: Mapping[str, Statistics],
    told: Callable[[str], None] = lambda text: None,
    *,
    rank: int = RANK,
) -> dict[str, QuantisedLayer]:
    """Of every layer that is quantised; where a block's proj is smoothed, its qkv is so, too."""
    names = layer_names(transformer)
    made: dict[str, QuantisedLayer] = {}
    for name in sorted(names, key=lambda its: not its.endswith("proj")):  # before qkv, whose values it scales
        told(f"{name}: layer {len(made) + 1} of {len(names)}")
        made[name] = quantise(weights_of(transformer, name, made), statistics[name], rank=rank)
    return {name: made[name] for name in names}


def weights_of(transformer: LayoutTransformer, name: str, layers: Mapping[str, QuantisedLayer]) -> np.ndarray:
    """A layer's exact weights, before its own inputs are smoothed; a qkv's make the values that its proj takes."""
    weights: np.ndarray = transformer.get_submodule(name).get_parameter("weight").detach().numpy().copy()
    if name.endswith("qkv"):
        weights[-transformer.config.width :] *= layers[name.replace("qkv", "proj")].smooth[:, None]
    return weights


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

"""The architecture of `layout`: a diffusion transformer over the elements of a section, one token each, and one of the canvas.

Blocks are DiT's with adaLN-zero (Peebles and Xie, 2022); time and canvas modulate them by one linear layer that all share, plus a
table of each block's own (adaLN-single, Chen et al., 2023), which leaves 3 M parameters. What elements are to each other (parent,
child, sibling, how far apart in reading order) is a learned bias of the attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional

from nereid.layout.elements import MAX_ELEMENTS, ElementClass
from nereid.layout.tokens import CANVAS, CONTENT, MOST_DEPTH, SCALE
from nereid_zoo.layout.relations import RELATIONS, relations

FREQUENCIES = (1.0, 2.0, 4.0, 8.0)
"""Of box coordinates, in half turns a unit: the highest turns once in 80 px."""
GRID_PERIODS = (8, 16, 32)
"""CSS pixels in which the waves of `grid_waves` turn once: edges keep to multiples of the first."""
FARTHEST = 8
"""Elements further apart in reading order count as this far."""
SETTINGS = ("width", "layers", "heads", "mlp_ratio", "grid_periods", "related")
"""What a transformer is made with."""
SETTINGS_BEFORE: Mapping[str, Any] = {"grid_periods": (), "related": False}
"""What one was made with whose file does not say it: it is older than these settings."""
NUMBERED = ("known", "field_mask", "classes", "parents", "content", "canvas")
"""Inputs that `LayoutTransformer.numbers` takes, after the boxes."""
MASKED = -1e4
"""Added to the scores of padded tokens. Not -inf, which makes NaN of a row without any."""


Branches = tuple[Tensor | None, Tensor | None]
"""What attention and MLP give before gate and residual, each None where it is not there."""
Opened = tuple[Tensor | None, Any]
"""Of a block, which heads (B x heads) and which MLP channels (B x channels) count: 1 or 0, all where None. Others give nothing.

Blocks with routers of tokens take a `Routing` (`skipping.py`) in the channels' place.
"""


class Block(nn.Module):
    """Attention and MLP, each modulated before and gated after."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.fc1 = nn.Linear(width, mlp_ratio * width)
        self.fc2 = nn.Linear(mlp_ratio * width, width)
        self.modulation = nn.Parameter(torch.zeros(6, width))

    def forward(
        self, x: Tensor, condition: Tensor, bias: Tensor | None, kept: Branches = (None, None), opened: Opened | None = None
    ) -> tuple[Tensor, Branches]:
        """x: B x T x D; condition: B x 6 x D; bias: B x heads x T x T, added to the attention's scores.

        What `kept` has of a branch (B x T x D) is not computed. All heads and channels count without `opened`. Returns x and
        what both branches gave.
        """
        heads, channels = opened or (None, None)
        shift1, scale1, gate1, shift2, scale2, gate2 = torch.split(condition + self.modulation, 1, 1)
        attention, mlp = kept
        if attention is None:
            assert bias is not None
            attention = self.attend(self.norm1(x) * (1 + scale1) + shift1, bias, heads)
        x = x + gate1 * attention
        if mlp is None:
            mlp = self.feed(self.norm2(x) * (1 + scale2) + shift2, channels)
        return x + gate2 * mlp, (attention, mlp)

    def attend(self, x: Tensor, bias: Tensor, opened: Tensor | None = None) -> Tensor:
        return self.proj(attended(self.qkv(x), self.heads, self.proj.in_features // self.heads, bias, opened))

    def feed(self, x: Tensor, opened: Tensor | None = None) -> Tensor:
        hidden = functional.gelu(self.fc1(x), approximate="tanh")
        return self.fc2(hidden if opened is None else hidden * opened[:, None])


def attended(qkv: Tensor, heads: int, size: int, bias: Tensor, opened: Tensor | None = None) -> Tensor:
    """B x T x (3 x heads x size) to B x T x (heads x size).

    Sizes are numbers, and shapes are those of what is reshaped: a graph has them as constants.
    """
    rows, tokens, _ = qkv.shape
    q, k, v = qkv.reshape(rows, tokens, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
    weights = (q @ k.transpose(-1, -2) * size**-0.5 + bias).softmax(-1)
    mixed = (weights @ v if opened is None else weights @ v * opened[:, :, None, None]).transpose(1, 2)
    rows, tokens, *_ = mixed.shape
    return mixed.reshape(rows, tokens, heads * size)


class LayoutTransformer(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The velocity (noise - clean) of noisy boxes at a noise level.

    Inputs as `nereid.layout.tokens.Tokens` has them, and `boxes` float32 B x N x 4 (noisy, known fields clean), `timestep`
    float32 B (1000 x the noise level in 0..1, one a row). Output float32 B x N x 4; what it is for padded tokens means nothing. A
    row's output depends on that row alone. Without `grid_periods` it does not see where on the 8 px grid a box is, and unless it
    is `related`, not what boxes are to each other (`relations.py`).
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        width: int = 192,
        layers: int = 6,
        heads: int = 6,
        mlp_ratio: int = 4,
        grid_periods: Sequence[int] = GRID_PERIODS,
        related: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.grid_periods, self.related = tuple(grid_periods), related
        inputs = 4 * 3 + 2 * 4 * 2 * (len(FREQUENCIES) + len(grid_periods)) + CONTENT + related * RELATIONS
        self.embed = nn.Linear(inputs, width)
        self.class_embed = nn.Embedding(len(ElementClass), width)
        self.order_embed = nn.Embedding(MAX_ELEMENTS + 1, width)
        self.parent_embed = nn.Embedding(MAX_ELEMENTS + 1, width)
        self.depth_embed = nn.Embedding(MOST_DEPTH + 1, width)
        self.canvas_token = nn.Linear(CANVAS, width)
        self.canvas_embed = nn.Sequential(nn.Linear(CANVAS, width), nn.SiLU(), nn.Linear(width, width))
        self.time_embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Linear(width, 6 * width)
        self.relation_bias = nn.Embedding(len(TO_EACH_OTHER), heads)
        self.distance_bias = nn.Embedding(2 * FARTHEST + 1, heads)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.last_condition = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, 4)
        for table in (self.class_embed, self.order_embed, self.parent_embed, self.depth_embed):
            nn.init.normal_(table.weight, std=0.02)
        for layer in (self.condition, self.last_condition, self.last, self.relation_bias, self.distance_bias):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    @property
    def settings(self) -> dict[str, Any]:
        """Of another one of the same architecture."""
        return {name: self.config[name] for name in SETTINGS}

    @property
    def described(self) -> str:
        """Its architecture, of which another one has other weights."""
        made = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return f"{made}, {self.embed.in_features} inputs"

    def forward(
        self,
        boxes: Tensor,
        timestep: Tensor,
        known: Tensor,
        field_mask: Tensor,
        classes: Tensor,
        parents: Tensor,
        depths: Tensor,
        content: Tensor,
        canvas: Tensor,
        valid: Tensor,
        opened: Sequence[Opened] | None = None,
    ) -> Tensor:
        """`opened` has of each block what counts; everything does without it."""
        numbers = self.numbers(boxes, known, field_mask, classes, parents, content, canvas)
        hidden = self.branched(numbers, timestep, classes, parents, depths, canvas, valid, opened=opened)[0]
        return self.last(hidden[:, 1:])

    def numbers(
        self, boxes: Tensor, known: Tensor, field_mask: Tensor, classes: Tensor, parents: Tensor, content: Tensor, canvas: Tensor
    ) -> Tensor:
        """All of an element's, B x N x F."""
        told = self.waves(known, canvas) * (field_mask > 0).repeat(1, 1, 2 * (len(FREQUENCIES) + len(self.grid_periods)))
        own = [boxes, known, field_mask, self.waves(boxes, canvas), told, content]
        return torch.cat([*own, relations(boxes, classes, parents, content, canvas)] if self.related else own, -1)

    def waves(self, values: Tensor, canvas: Tensor) -> Tensor:
        """Of box coordinates: B x N x 4 to B x N x F."""
        coarse = waves(values)
        return torch.cat([coarse, grid_waves(values, canvas, self.grid_periods)], -1) if self.grid_periods else coarse

    def hidden(
        self, numbers: Tensor, timestep: Tensor, classes: Tensor, parents: Tensor, depths: Tensor, canvas: Tensor, valid: Tensor
    ) -> Tensor:
        """B x (1 + N) x D, the canvas' token first."""
        return self.branched(numbers, timestep, classes, parents, depths, canvas, valid)[0]

    def branched(
        self,
        numbers: Tensor,
        timestep: Tensor,
        classes: Tensor,
        parents: Tensor,
        depths: Tensor,
        canvas: Tensor,
        valid: Tensor | None,
        kept: Branches = (None, None),
        opened: Sequence[Opened] | None = None,
    ) -> tuple[Tensor, list[Branches]]:
        """The same, and what each block's branches gave; those that `kept` has (B x blocks x (1 + N) x D) are not computed.

        `valid` is for attention alone.
        """
        order = torch.cumsum(torch.ones_like(classes), 1)
        x = self.embed(numbers) + self.class_embed(classes) + self.order_embed(order)
        x = x + self.parent_embed(parents) + self.depth_embed(depths)
        x = torch.cat([self.canvas_token(canvas)[:, None] + self.order_embed(torch.zeros_like(order[:, :1])), x], 1)
        condition = self.conditioned(timestep, canvas)
        modulation = self.condition(condition).unflatten(1, (6, x.shape[-1]))
        bias = None if valid is None else self.bias(parents, order, valid)
        given: list[Branches] = []
        for number, block in enumerate(self.blocks):
            own = [None if branch is None else branch[:, number] for branch in kept]
            x, branches = block(x, modulation, bias, (own[0], own[1]), None if opened is None else opened[number])
            given.append(branches)
        shift, scale = torch.split(self.last_condition(condition)[:, None], x.shape[-1], -1)
        return self.norm(x) * (1 + scale) + shift, given

    def conditioned(self, timestep: Tensor, canvas: Tensor) -> Tensor:
        """What modulations are made of, B x D."""
        (width,) = self.norm.normalized_shape
        return functional.silu(self.time_embed(time_waves(timestep, width)) + self.canvas_embed(canvas))

    def bias(self, parents: Tensor, order: Tensor, valid: Tensor) -> Tensor:
        """B x heads x T x T over the canvas' token and the elements': what the key is to the query; padded keys are masked."""
        places = functional.pad(order, (1, 0))
        holders = functional.pad(parents, (1, 0), value=-1)
        key_holds = holders[:, :, None] == places[:, None, :]
        query_holds = places[:, :, None] == holders[:, None, :]
        siblings = holders[:, :, None] == holders[:, None, :]
        relation = torch.where(siblings, 3, torch.where(key_holds, 1, torch.where(query_holds, 2, 0)))
        apart = (places[:, None, :] - places[:, :, None]).clamp(-FARTHEST, FARTHEST) + FARTHEST
        bias = self.relation_bias(relation) + self.distance_bias(apart)
        masked = (1 - functional.pad(valid, (1, 0), value=1.0)) * MASKED
        return bias.permute(0, 3, 1, 2) + masked[:, None, None, :]


TO_EACH_OTHER = ("none", "parent", "child", "sibling")
"""What a key may be to a query; a token is its own sibling."""


def waves(values: Tensor) -> Tensor:
    """Sines and cosines of box coordinates: ... x 4 to ... x 32."""
    turned = torch.cat([values * (math.pi * frequency) for frequency in FREQUENCIES], -1)
    return torch.cat([turned.sin(), turned.cos()], -1)


def grid_waves(values: Tensor, canvas: Tensor, periods: Sequence[int]) -> Tensor:
    """Sines and cosines of where box coordinates are between multiples of so many CSS pixels: B x N x 4 to B x N x F.

    A unit is a multiple of every period, so that it does not matter that y and sizes are less one; x is from the canvas' middle,
    whose width in units is the first number of `canvas`.
    """
    from_left = torch.cat([values[..., :1] + canvas[:, None, :1] / 2, values[..., 1:]], -1)
    turns = torch.cat([from_left * (SCALE / period) for period in periods], -1)
    angles = (turns - turns.round()) * (2 * math.pi)  # small, since an engine's sines of large angles need not be exact
    return torch.cat([angles.sin(), angles.cos()], -1)


def time_waves(timestep: Tensor, width: int) -> Tensor:
    """Sines and cosines of timesteps: B to B x width."""
    half = width // 2
    rates = torch.exp(torch.arange(half, device=timestep.device) * (-math.log(10_000) / half))
    turned = timestep[:, None] * rates
    return torch.cat([turned.sin(), turned.cos()], -1)

"""Dynamic width of the layout transformer: what of it a noise level can do without, as routers learn it, and what that leaves.

TDW of DyDiT (Zhao et al., 2024). A router reads the timestep's embedding, and nothing else of a row, and opens or closes each
block's attention heads and groups of MLP channels. Masks save no time, so that timesteps are divided into a few ranges once the
routers are trained, and what a range leaves closed is cut out of the transformer: its linear layers are smaller, and no router is
left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional

from nereid.diffusion.dynamic_width import WidthEngine, WidthTable
from nereid_zoo.layout.draw import DYNAMIC
from nereid_zoo.layout.model import Block, LayoutTransformer, Opened, time_waves

MOST_WIDTHS = len(WidthEngine)
GAIN = 10.0
"""Of the routers' layer: they learn faster than what they open and close."""
OPEN = 3.0
"""Logits at the start: nearly everything is open."""
GRID = 200
"""Timesteps by which ranges are found."""
FLOPS_TOKENS = 25
"""The canvas' and elements' tokens of the section whose FLOPs are counted."""


@dataclass(frozen=True, slots=True)
class Width:
    """Up to a timestep (None: to the last), the heads and the groups of MLP channels that each block has."""

    up_to: float | None
    heads: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Width:
        heads, groups = (tuple(tuple(map(int, block)) for block in raw[name]) for name in ("heads", "groups"))
        return cls(None if raw["up_to"] is None else float(raw["up_to"]), heads, groups)


class DynamicLayoutTransformer(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A layout transformer that has been trained with routers, or with the `widths` that they have led to.

    The first group of a block's MLP has its weightiest channels, the last group its lightest ones.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        width: int = 192,
        layers: int = 6,
        heads: int = 6,
        mlp_ratio: int = 4,
        groups: int = 12,
        widths: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        if mlp_ratio * width % groups:
            raise ValueError(f"groups: {groups} is not allowed; it must divide the MLP's {mlp_ratio * width} channels")
        self.layers, self.heads, self.groups, self.channels = layers, heads, groups, mlp_ratio * width
        self.transformer = LayoutTransformer(width, layers, heads, mlp_ratio)
        self.router = nn.Linear(width, layers * (heads + groups))
        nn.init.zeros_(self.router.weight)
        nn.init.constant_(self.router.bias, OPEN / GAIN)

    @classmethod
    def of(cls, transformer: LayoutTransformer, groups: int) -> DynamicLayoutTransformer:
        """With a copy of its weights, which computes the same while everything is open."""
        config = transformer.config
        sizes = {name: config[name] for name in ("width", "layers", "heads", "mlp_ratio")}
        made = cls(**sizes, groups=groups)
        made.transformer.load_state_dict(transformer.state_dict())
        with torch.no_grad():
            for block in made.transformer.blocks:
                order = (block.fc1.weight.norm(dim=1) * block.fc2.weight.norm(dim=0)).argsort(descending=True)
                block.fc1.weight.copy_(block.fc1.weight[order])
                block.fc1.bias.copy_(block.fc1.bias[order])
                block.fc2.weight.copy_(block.fc2.weight[:, order])
        return made

    def forward(self, gates: Tensor, **inputs: Tensor) -> Tensor:
        """The velocity where `gates` (B x layers x (heads + groups)) say what counts; `inputs` are the transformer's."""
        made: Tensor = self.transformer(**inputs, opened=self.opened(gates))
        return made

    def opened(self, gates: Tensor) -> list[Opened]:
        return [
            (its[:, : self.heads], its[:, self.heads :].repeat_interleave(self.channels // self.groups, 1))
            for its in gates.unbind(1)
        ]

    def logits(self, timesteps: Tensor) -> Tensor:
        """B to B x layers x (heads + groups): what is above 0 is open. What the routers learn leaves the embedding as it is."""
        embedded = self.transformer.time_embed(time_waves(timesteps, self.router.in_features))
        made: Tensor = GAIN * self.router(functional.silu(embedded).detach())
        return made.reshape(-1, self.layers, self.heads + self.groups)

    @property
    def unit_flops(self) -> Tensor:
        """Of heads, then groups, of any block: their shares of all blocks' FLOPs."""
        width, tokens = self.router.in_features, FLOPS_TOKENS
        head = (8 * tokens * width * width + 4 * tokens * tokens * width) / self.heads
        group = 4 * tokens * width * self.channels / self.groups
        whole = self.layers * (self.heads * head + self.groups * group)
        return torch.tensor([head / whole] * self.heads + [group / whole] * self.groups)

    def flops(self, gates: Tensor) -> Tensor:
        """B x layers x (heads + groups) to the mean share of the blocks' FLOPs."""
        return (gates * self.unit_flops.to(gates)).sum((1, 2)).mean()

    # --- what routers have led to ---

    @property
    def widths(self) -> tuple[Width, ...]:
        """By rising timesteps; raises ValueError where the routers are still in training."""
        if not self.config["widths"]:
            raise ValueError("it has routers and no widths; train it to the end")
        return tuple(Width.parse(its) for its in self.config["widths"])

    def settle(self, flops: float, most: int = MOST_WIDTHS) -> None:
        """Divide the timesteps into `most` ranges at most, each with what its timesteps' routers open first, on average.

        As much is open as takes this share of the blocks' FLOPs, on average over evenly spaced timesteps. A head and a group of
        each block are, in any case.
        """
        timesteps = (torch.arange(GRID) + 0.5) * 1000 / GRID
        with torch.no_grad():
            chances = self.logits(timesteps.to(self.router.weight)).sigmoid().cpu()
        level = self._level(chances, torch.ones(GRID), flops)
        ends = ranges((chances > level).flatten(1), self.unit_flops.repeat(self.layers), most)
        spans = list(zip([0, *ends[:-1]], ends, strict=True))
        lengths = torch.tensor([end - start for start, end in spans])
        means = torch.stack([chances[start:end].mean(0) for start, end in spans])
        level = self._level(means, lengths, flops)
        widths = []
        for end, width in zip(ends, means, strict=True):
            blocks = [(_above(block[: self.heads], level), _above(block[self.heads :], level)) for block in width]
            up_to = None if end == GRID else end * 1000 / GRID
            widths.append({"up_to": up_to, "heads": [its[0] for its in blocks], "groups": [its[1] for its in blocks]})
        self.register_to_config(widths=widths)

    def _level(self, chances: Tensor, weights: Tensor, flops: float) -> float:
        """The chance above which units take this share of the blocks' FLOPs, where rows of them count by weights."""
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            shares = ((chances > middle) * self.unit_flops).sum((1, 2))
            low, high = (middle, high) if float((shares * weights).sum() / weights.sum()) > flops else (low, middle)
        return high

    def gates_of(self, width: Width) -> Tensor:
        """layers x (heads + groups): 1 for what the width has."""
        gates = torch.zeros(self.layers, self.heads + self.groups)
        for number, (heads, groups) in enumerate(zip(width.heads, width.groups, strict=True)):
            gates[number, list(heads)] = 1
            gates[number, [self.heads + group for group in groups]] = 1
        return gates

    def settled_gates(self, timesteps: Tensor) -> Tensor:
        """B x layers x (heads + groups): what each timestep's width has."""
        every = torch.stack([self.gates_of(width) for width in self.widths]).to(timesteps)
        bounds = torch.tensor([width.up_to for width in self.widths if width.up_to is not None]).to(timesteps)
        return every[torch.bucketize(timesteps, bounds)]

    def settled(self, **inputs: Tensor) -> Tensor:
        """The transformer's output with what the width of each row's timestep has."""
        made: Tensor = self(self.settled_gates(inputs["timestep"]), **inputs)
        return made

    def named_widths(self) -> dict[WidthEngine, Width]:
        """By the engines that they become, the narrowest first; equal ones are one."""
        distinct = {(width.heads, width.groups): width for width in self.widths}
        ordered = sorted(distinct.values(), key=lambda width: float(self.flops(self.gates_of(width)[None])))
        return dict(zip(WidthEngine, ordered, strict=False))

    def table(self) -> WidthTable:
        """Which engine a timestep's width is."""
        names = {(width.heads, width.groups): engine for engine, width in self.named_widths().items()}
        bounds = [math.inf if width.up_to is None else width.up_to for width in self.widths]
        return WidthTable(
            ranges=tuple((bound, names[width.heads, width.groups]) for bound, width in zip(bounds, self.widths, strict=True))
        )

    def narrowed(self, width: Width) -> LayoutTransformer:
        """The transformer without what the width leaves out."""
        config = self.transformer.config
        made = LayoutTransformer(**{name: config[name] for name in ("width", "layers", "heads", "mlp_ratio")})
        made.load_state_dict(self.transformer.state_dict())
        size = self.channels // self.groups
        for number, (heads, groups) in enumerate(zip(width.heads, width.groups, strict=True)):
            channels = [channel for group in groups for channel in range(group * size, (group + 1) * size)]
            made.blocks[number] = NarrowBlock.of(made.blocks[number], heads, channels)
        return made.eval()


class NarrowBlock(Block):
    """A block with some of its heads and MLP channels, which computes what the whole one does with all others closed."""

    def __init__(self, width: int, heads: int, own: Sequence[int], channels: int) -> None:
        nn.Module.__init__(self)
        self.heads, self.own, self.head_width = len(own), list(own), width // heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * self.heads * self.head_width)
        self.proj = nn.Linear(self.heads * self.head_width, width)
        self.fc1 = nn.Linear(width, channels)
        self.fc2 = nn.Linear(channels, width)
        self.modulation = nn.Parameter(torch.zeros(6, width))

    @classmethod
    def of(cls, block: Block, heads: Sequence[int], channels: Sequence[int]) -> NarrowBlock:
        width = block.proj.in_features
        made = cls(width, block.heads, heads, len(channels))
        size, kept = made.head_width, list(channels)
        places = [place for head in heads for place in range(head * size, (head + 1) * size)]
        three = [part * width + place for part in range(3) for place in places]
        with torch.no_grad():
            for its, weight, bias in (
                (made.qkv, block.qkv.weight[three], block.qkv.bias[three]),
                (made.proj, block.proj.weight[:, places], block.proj.bias),
                (made.fc1, block.fc1.weight[kept], block.fc1.bias[kept]),
                (made.fc2, block.fc2.weight[:, kept], block.fc2.bias),
            ):
                its.weight.copy_(weight)
                its.bias.copy_(bias)
            made.modulation.copy_(block.modulation)
        return made

    def attend(self, x: Tensor, bias: Tensor, opened: Tensor | None = None) -> Tensor:
        """As the whole block does; `bias` is that of all heads, or one for each."""
        rows, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(rows, tokens, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4).unbind(0)
        own = bias[:, self.own] if bias.ndim > 1 else bias
        weights = (q @ k.transpose(-1, -2) * self.head_width**-0.5 + own).softmax(-1)
        mixed = weights @ v if opened is None else weights @ v * opened[:, :, None, None]
        return self.proj(mixed.transpose(1, 2).reshape(rows, tokens, self.heads * self.head_width))


def straight_through(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Gumbel-sigmoid (Maddison et al., 2017): 0 or 1 at random by these chances, with the gradient of the sigmoid."""
    chance = torch.rand(logits.shape, generator=generator, device=logits.device).clamp(1e-6, 1 - 1e-6)
    soft = (logits + chance.logit()).sigmoid()
    return (soft > 0.5).to(soft) + (soft - soft.detach())


def ranges(opened: Tensor, weights: Tensor, most: int) -> list[int]:
    """Where ranges of timesteps x units end, `most` at most: those that differ least from what most timesteps of theirs open.

    Differences count by the units' weights. It is exact (dynamic programming), and of equally good divisions the one of fewest
    ranges.
    """
    count = len(opened)
    sums = functional.pad(opened.double().cumsum(0), (0, 0, 1, 0))

    def off(start: int, end: int) -> float:
        ones = sums[end] - sums[start]
        return float((torch.minimum(ones, end - start - ones) * weights).sum())

    costs = [[off(start, end) if start < end else 0.0 for end in range(count + 1)] for start in range(count)]
    best = [[0.0 if end == 0 else math.inf for end in range(count + 1)]]
    came: list[list[int]] = []
    for _ in range(most):
        found = [
            min(((best[-1][start] + costs[start][end], start) for start in range(end)), default=(math.inf, 0))
            for end in range(count + 1)
        ]
        best.append([cost for cost, _ in found])
        came.append([start for _, start in found])
    number = min(range(1, most + 1), key=lambda number: (round(best[number][count], 9), number))
    ends = [count]
    while number > 1:
        number -= 1
        ends.insert(0, came[number][ends[0]])
    return ends


def _above(chances: Tensor, level: float) -> list[int]:
    """Units with chances above this, and one at least."""
    return (chances > level).nonzero().flatten().tolist() or [int(chances.argmax())]


def load_dynamic(folder: Path) -> DynamicLayoutTransformer:
    """That of a checkpoint's folder, in float32."""
    return DynamicLayoutTransformer.from_pretrained(folder / DYNAMIC, use_safetensors=True).float().eval()

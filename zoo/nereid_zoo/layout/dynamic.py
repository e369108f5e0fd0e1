"""Dynamic width of the layout transformer: what of it a noise level can do without, as routers learn it, and what that leaves.

TDW of DyDiT (Zhao et al., 2024). A router reads the timestep's embedding, and nothing else of a row, and opens or closes each
block's attention heads and groups of MLP channels. Masks save no time, so that timesteps are divided into a few ranges once the
routers are trained, and what a range leaves closed is cut out of the transformer: its linear layers are smaller, and no router is
left. Routers of tokens (`nereid_zoo.layout.skipping`) may be trained after them, and stay in slices that pass over tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional

from nereid.diffusion.dynamic_width import WidthEngine, WidthTable
from nereid.diffusion.solvers.schedule import shifted
from nereid.layout.settings import TRAIN_TIMESTEPS
from nereid_zoo.layout.draw import DYNAMIC
from nereid_zoo.layout.model import GRID_PERIODS, SETTINGS, SETTINGS_BEFORE, LayoutTransformer, Opened, time_waves
from nereid_zoo.layout.skipping import GAIN, OPEN, RoutedBlock, Routing, SkippingBlock, counted
from nereid_zoo.layout.slices import NarrowBlock
from nereid_zoo.layout.weights import read_network

MOST_WIDTHS = len(WidthEngine)
GRID = 200
"""Timesteps by which ranges are found: those of a run of so many steps."""
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

    The first group of a block's MLP has its weightiest channels, the last group its lightest ones. With `tokens`, each block has
    a router of tokens, which counts where a call says so.
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
        tokens: bool = False,
        grid_periods: Sequence[int] = GRID_PERIODS,
        related: bool = True,
    ) -> None:
        super().__init__()
        if mlp_ratio * width % groups:
            raise ValueError(f"groups: {groups} is not allowed; it must divide the MLP's {mlp_ratio * width} channels")
        self.layers, self.heads, self.groups, self.channels = layers, heads, groups, mlp_ratio * width
        self.transformer = LayoutTransformer(width, layers, heads, mlp_ratio, grid_periods, related)
        if tokens:
            self.transformer.blocks = nn.ModuleList(RoutedBlock(width, heads, mlp_ratio) for _ in range(layers))
        self.router = nn.Linear(width, layers * (heads + groups))
        nn.init.zeros_(self.router.weight)
        nn.init.constant_(self.router.bias, OPEN / GAIN)

    @classmethod
    def of(cls, transformer: LayoutTransformer, groups: int) -> DynamicLayoutTransformer:
        """With a copy of its weights, which computes the same while everything is open."""
        made = cls(**transformer.settings, groups=groups)
        made.transformer.load_state_dict(transformer.state_dict())
        with torch.no_grad():
            for block in made.transformer.blocks:
                order = (block.fc1.weight.norm(dim=1) * block.fc2.weight.norm(dim=0)).argsort(descending=True)
                block.fc1.weight.copy_(block.fc1.weight[order])
                block.fc1.bias.copy_(block.fc1.bias[order])
                block.fc2.weight.copy_(block.fc2.weight[:, order])
        return made

    def forward(self, gates: Tensor | None, routing: Routing | None = None, **inputs: Tensor) -> Tensor:
        """The velocity where `gates` (B x layers x (heads + groups)) say what counts, all where None; `inputs` are the
        transformer's. Routers of tokens count where there is a `routing`."""
        opened: list[Opened] = self.opened(gates) if gates is not None else [(None, None)] * self.layers
        if routing is not None:
            opened = [(heads, routing.of(channels)) for heads, channels in opened]
        made: Tensor = self.transformer(**inputs, opened=opened)
        return made

    def opened(self, gates: Tensor) -> list[Opened]:
        return [
            (its[:, : self.heads], its[:, self.heads :].repeat_interleave(self.channels // self.groups, 1))
            for its in gates.unbind(1)
        ]

    def with_token_routers(self) -> DynamicLayoutTransformer:
        """With a copy of its weights, its widths, and routers of tokens that have learnt nothing."""
        made = type(self)(**{name: value for name, value in self.config.items() if name in _SETTINGS}, tokens=True)
        made.load_state_dict(self.state_dict(), strict=False)
        return made

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

    def token_flops(self, gates: Tensor | None, routing: Routing) -> Tensor:
        """B: the share of each row's MLPs' FLOPs, with all tokens and what `gates` open, that this call's routing has left."""
        kept = torch.stack(routing.gates, 1).sum(-1) / routing.counts.sum(-1, keepdim=True)
        weights = torch.ones_like(kept) if gates is None else gates[..., self.heads :].mean(-1)
        return (kept * weights).sum(1) / weights.sum(1)

    # --- what routers have led to ---

    @property
    def widths(self) -> tuple[Width, ...]:
        """By rising timesteps; raises ValueError where the routers are still in training."""
        if not self.config["widths"]:
            raise ValueError("it has routers and no widths; train it to the end")
        return tuple(Width.parse(its) for its in self.config["widths"])

    def settle(self, flops: float, shift: float = 1.0, most: int = MOST_WIDTHS) -> None:
        """Divide the timesteps into `most` ranges at most, each with what its timesteps' routers open first, on average.

        As much is open as takes this share of the blocks' FLOPs, on average over the steps of a run, which the flow's `shift`
        spaces. A head and a group of each block are, in any case.
        """
        timesteps = run_timesteps((torch.arange(GRID) + 0.5) / GRID, shift)
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
            up_to = None if end == GRID else float(run_timesteps(torch.tensor(end / GRID, dtype=torch.float64), shift))
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

    def settled(self, *, widths: bool = True, tokens: bool = False, **inputs: Tensor) -> Tensor:
        """The transformer's output with what the width of each row's timestep has, and for the tokens that routers keep."""
        gates = self.settled_gates(inputs["timestep"]) if widths else None
        made: Tensor = self(gates, Routing(counted(inputs["valid"])) if tokens else None, **inputs)
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

    @property
    def whole(self) -> Width:
        """All of it, at every timestep."""
        return Width(None, (tuple(range(self.heads)),) * self.layers, (tuple(range(self.groups)),) * self.layers)

    def narrowed(self, width: Width | None = None, *, tokens: bool = False) -> LayoutTransformer:
        """The transformer without what the width leaves out, nothing where None; with `tokens`, its MLPs pass over some."""
        if tokens and not self.config["tokens"]:
            raise ValueError("it has no routers of tokens; train it with --tokens")
        made, size = LayoutTransformer(**self.transformer.settings), self.channels // self.groups
        rest = {name: value for name, value in self.transformer.state_dict().items() if not name.startswith("blocks.")}
        made.load_state_dict(rest, strict=False)
        kind = SkippingBlock if tokens else NarrowBlock
        width = self.whole if width is None else width
        for number, (heads, groups) in enumerate(zip(width.heads, width.groups, strict=True)):
            channels = [channel for group in groups for channel in range(group * size, (group + 1) * size)]
            made.blocks[number] = kind.of(self.transformer.blocks[number], heads, channels)
        return made.eval()


_SETTINGS = (*SETTINGS, "groups", "widths")


def run_timesteps(left: Tensor, shift: float) -> Tensor:
    """Those that a run with this shift has where so much of it is left (0 to 1)."""
    return torch.from_numpy(np.asarray(TRAIN_TIMESTEPS * shifted(left.double().cpu().numpy(), shift))).to(left)


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
    """That of a checkpoint's folder, in float32; raises WeightsError."""
    return read_network(DynamicLayoutTransformer, folder / DYNAMIC, SETTINGS_BEFORE)

"""A diffusion transformer with random weights, of DiT-XL/2's sizes (675 M parameters, 256 tokens), whose branches can be reused.

What it draws means nothing: it is here for the time and the arithmetic of a step in which attention or MLP is not computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from nereid.diffusion.branch_cache import Branch, BranchEngine
from nereid_export.timing import median_milliseconds
from nereid_zoo.layout.model import Block, Branches, time_waves

_MEASURED_SECONDS = 3.0
_MOST_TIMES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DitSizes:
    """DiT-XL/2's (Peebles and Xie, 2022) at 256 pixels a side: patches of 2 x 2 latents with 4 channels."""

    layers: int = 28
    width: int = 1152
    heads: int = 16
    tokens: int = 256
    patch: int = 16

    @property
    def name(self) -> str:
        return f"random DiT, {self.layers} x {self.width}, {self.tokens} tokens"


class _DitBlock(nn.Module):
    """The layout transformer's block, with adaLN-zero's own linear layer."""

    def __init__(self, sizes: DitSizes) -> None:
        super().__init__()
        self.block = Block(sizes.width, sizes.heads, 4)
        self.condition = nn.Linear(sizes.width, 6 * sizes.width)

    def forward(self, x: Tensor, condition: Tensor, kept: Branches) -> tuple[Tensor, Branches]:
        made: tuple[Tensor, Branches] = self.block(x, self.condition(condition).unflatten(1, (6, -1)), _NO_BIAS.to(x), kept)
        return made


_NO_BIAS = torch.zeros(1)


class RandomDit(nn.Module):
    """Patches B x tokens x patch and timesteps B, to noise and variance; gives and takes branches as `LayoutTransformer` does."""

    def __init__(self, sizes: DitSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embed = nn.Linear(sizes.patch, sizes.width)
        self.places = nn.Parameter(torch.zeros(sizes.tokens, sizes.width))
        self.time_embed = nn.Sequential(nn.Linear(256, sizes.width), nn.SiLU(), nn.Linear(sizes.width, sizes.width))
        self.blocks = nn.ModuleList(_DitBlock(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width, elementwise_affine=False, eps=1e-6)
        self.last_condition = nn.Linear(sizes.width, 2 * sizes.width)
        self.last = nn.Linear(sizes.width, 2 * sizes.patch)

    def forward(self, patches: Tensor, timestep: Tensor, kept: Branches = (None, None)) -> tuple[Tensor, list[Branches]]:
        x = self.embed(patches) + self.places
        condition = functional.silu(self.time_embed(time_waves(timestep, 256)))
        given: list[Branches] = []
        for number, block in enumerate(self.blocks):
            own = [None if branch is None else branch[:, number] for branch in kept]
            x, branches = block(x, condition, (own[0], own[1]))
            given.append(branches)
        shift, scale = self.last_condition(condition)[:, None].chunk(2, -1)
        return self.last(self.norm(x) * (1 + scale) + shift), given

    def inputs(self, engine: BranchEngine) -> tuple[Tensor, Tensor, Branches]:
        """Of a step that reuses as this engine does, one row."""
        sizes = self.sizes
        device = self.embed.weight.device
        kept = {branch: torch.zeros(1, sizes.layers, sizes.tokens, sizes.width, device=device) for branch in engine.reused}
        patches = torch.zeros(1, sizes.tokens, sizes.patch, device=device)
        timestep = torch.full((1,), 500.0, device=device)
        return patches, timestep, (kept.get(Branch.ATTENTION), kept.get(Branch.MLP))


@dataclass(frozen=True, slots=True)
class StepCost:
    """Of one step of one row: floating-point operations of its matrix products, and milliseconds in PyTorch."""

    flops: float
    milliseconds: float


def step_costs(sizes: DitSizes) -> Mapping[BranchEngine, StepCost]:
    """Of a step that computes everything, and of those that reuse."""
    torch.manual_seed(0)
    with torch.device("meta"):
        shape = RandomDit(sizes)
    flops = {engine: count_flops(shape, shape.inputs(engine)) for engine in BranchEngine}
    transformer = RandomDit(sizes).eval()
    times = {}
    with torch.inference_mode():
        for engine in BranchEngine:
            step = partial(transformer, *transformer.inputs(engine))
            times[engine] = median_milliseconds(step, _MEASURED_SECONDS, _MOST_TIMES)
    return {engine: StepCost(flops[engine], times[engine]) for engine in BranchEngine}


def count_flops(module: nn.Module, inputs: tuple[object, ...]) -> float:
    """Of the matrix products of one call, counted in the graph as it is run: two for each multiplication and addition."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(*inputs)
    return float(counter.get_total_flops())

"""A diffusion transformer with random weights, of DiT-XL/2's sizes (675 M parameters, 256 tokens), with less of it computed.

What it draws means nothing: it is here for the time and the arithmetic of a step in which attention or MLP is reused, heads and
channels are cut out, or the MLPs pass over tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from nereid.diffusion.branch_cache import Branch, BranchEngine
from nereid_export.timing import median_milliseconds
from nereid_zoo.layout.model import Block, Branches, time_waves
from nereid_zoo.layout.skipping import Routing, SkippingBlock, TokenRouter
from nereid_zoo.layout.slices import NarrowBlock

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


Share = tuple[float, float]
"""Of a block's heads, and of its MLP's channels."""


@dataclass(frozen=True, slots=True)
class Part:
    """What is left of each block of another transformer, and the share of tokens that each MLP is computed for, all where None.

    Where that one has another number of blocks, those in the same place have the same shares.
    """

    shares: Sequence[Share]
    tokens: Sequence[float] | None = None


class _DitBlock(nn.Module):
    """The layout transformer's block, with adaLN-zero's own linear layer."""

    def __init__(self, sizes: DitSizes, block: Block) -> None:
        super().__init__()
        self.block = block
        self.condition = nn.Linear(sizes.width, 6 * sizes.width)

    def forward(self, x: Tensor, condition: Tensor, kept: Branches) -> tuple[Tensor, Branches]:
        opened = (None, Routing(torch.ones_like(x[..., 0]))) if isinstance(self.block, SkippingBlock) else None
        modulation = self.condition(condition).unflatten(1, (6, -1))
        made: tuple[Tensor, Branches] = self.block(x, modulation, _NO_BIAS.to(x), kept, opened)
        return made


_NO_BIAS = torch.zeros(1)


class RandomDit(nn.Module):
    """Patches B x tokens x patch and timesteps B, to noise and variance; gives and takes branches as `LayoutTransformer` does.

    `blocks` are all of its blocks where they are other than whole ones.
    """

    def __init__(self, sizes: DitSizes, blocks: Sequence[Block] | None = None) -> None:
        super().__init__()
        blocks = [Block(sizes.width, sizes.heads, 4) for _ in range(sizes.layers)] if blocks is None else blocks
        self.sizes = sizes
        self.embed = nn.Linear(sizes.patch, sizes.width)
        self.places = nn.Parameter(torch.zeros(sizes.tokens, sizes.width))
        self.time_embed = nn.Sequential(nn.Linear(256, sizes.width), nn.SiLU(), nn.Linear(sizes.width, sizes.width))
        self.blocks = nn.ModuleList(_DitBlock(sizes, block) for block in blocks)
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


def step_costs(sizes: DitSizes, parts: Mapping[StrEnum, Part] | None = None) -> dict[StrEnum, StepCost]:
    """Of a step that computes everything, of those that reuse, and of those that compute a part of a transformer."""
    found = dict[StrEnum, StepCost](_reusing(sizes).items())
    return found | {name: part_cost(sizes, part) for name, part in (parts or {}).items()}


def part_cost(sizes: DitSizes, part: Part) -> StepCost:
    """Of one row of normal patches; tokens go by routers with random weights, whose biases are such that so many are kept."""
    torch.manual_seed(0)
    shares = [part.shares[number * len(part.shares) // sizes.layers] for number in range(sizes.layers)]
    transformer = RandomDit(sizes, [_narrow(sizes, share, part.tokens is not None) for share in shares]).eval()
    _, timestep, kept = transformer.inputs(BranchEngine.COMPUTED)
    inputs = (torch.randn(1, sizes.tokens, sizes.patch), timestep, kept)
    if part.tokens is not None:
        tokens = [part.tokens[number * len(part.tokens) // sizes.layers] for number in range(sizes.layers)]
        _keep(transformer, tokens, inputs)
    return StepCost(count_flops(transformer, inputs), _milliseconds(transformer, inputs))


def _keep(transformer: RandomDit, tokens: Sequence[float], inputs: tuple[Tensor, Tensor, Branches]) -> None:
    """Have each block's router keep about this share of these inputs' tokens."""

    def sought(share: float, router: TokenRouter, given: tuple[Tensor]) -> None:
        router.bias.copy_(-(given[0] * router.weight).sum(-1).quantile(1 - share) if share < 1 else torch.tensor(1e6))

    routers = [module for module in transformer.modules() if isinstance(module, TokenRouter)]
    for router in routers:
        nn.init.normal_(router.weight, std=transformer.sizes.width**-0.5)
    hooks = [router.register_forward_pre_hook(partial(sought, share)) for share, router in zip(tokens, routers, strict=True)]
    with torch.inference_mode():
        transformer(*inputs)
    for hook in hooks:
        hook.remove()


def _narrow(sizes: DitSizes, share: Share, skipping: bool) -> NarrowBlock:
    heads, channels = (max(1, round(part * whole)) for part, whole in zip(share, (sizes.heads, 4 * sizes.width), strict=True))
    kind = SkippingBlock if skipping else NarrowBlock
    return kind(sizes.width, sizes.heads, range(heads), channels)


def _milliseconds(transformer: RandomDit, inputs: tuple[Tensor, Tensor, Branches]) -> float:
    with torch.inference_mode():
        return median_milliseconds(partial(transformer, *inputs), _MEASURED_SECONDS, _MOST_TIMES)


def _reusing(sizes: DitSizes) -> dict[BranchEngine, StepCost]:
    torch.manual_seed(0)
    with torch.device("meta"):
        shape = RandomDit(sizes)
    flops = {engine: count_flops(shape, shape.inputs(engine)) for engine in BranchEngine}
    transformer = RandomDit(sizes).eval()
    return {engine: StepCost(flops[engine], _milliseconds(transformer, transformer.inputs(engine))) for engine in BranchEngine}


def count_flops(module: nn.Module, inputs: tuple[object, ...]) -> float:
    """Of the matrix products of one call, counted in the graph as it is run: two for each multiplication and addition."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(*inputs)
    return float(counter.get_total_flops())

"""MLPs that pass over tokens: routers before them, the masks that routers are trained with, and blocks that compute what is kept.

SDT of DyDiT (Zhao et al., 2024). A router looks at each token as the MLP would have it, by itself: whether the MLP is computed
for a token depends on no other token and on no other row. What the MLP gives is scaled by the router's sigmoid, which is how
routers learn; tokens that are passed over keep what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from nereid_zoo.layout.model import Block
from nereid_zoo.layout.slices import NarrowBlock

GAIN = 10.0
"""Of routers: they learn faster than what they open and close."""
OPEN = 3.0
"""Logits at the start: nearly everything is open."""


class TokenRouter(nn.Module):
    """... x D to logits ...; the MLP is computed for tokens whose logit is above 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.full((), OPEN / GAIN))

    def forward(self, x: Tensor) -> Tensor:
        """A sum for each token, and no matrix product, whose rounding may go by how many tokens there are."""
        return GAIN * ((x * self.weight).sum(-1) + self.bias)


def above(logits: Tensor) -> Tensor:
    """1 where the MLP is computed, else 0."""
    return (logits > 0).to(logits)


@dataclass(frozen=True, slots=True)
class Routing:
    """What blocks with routers are told in one call.

    `counts` (B x T, 1 or 0) are the tokens that mean anything: others, padded ones, are passed over in any case. `decide` makes
    gates of logits, both B x T. `channels` are those of the MLP that count (B x channels), all where None. `gates` is written:
    those of each block, in their order.
    """

    counts: Tensor
    decide: Callable[[Tensor], Tensor] = above
    channels: Tensor | None = None
    gates: list[Tensor] = field(default_factory=list)

    def of(self, channels: Tensor | None) -> Routing:
        """The same for a block with these channels; gates go to one list."""
        return Routing(self.counts, self.decide, channels, self.gates)


class RoutedBlock(Block):
    """A block whose MLP is computed for every token and multiplied with gates, 0 or 1: what routers are trained in."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__(width, heads, mlp_ratio)
        self.router = TokenRouter(width)

    def feed(self, x: Tensor, opened: Tensor | Routing | None = None) -> Tensor:
        """Without a routing, as any block: all tokens have the MLP, and nothing scales it."""
        if not isinstance(opened, Routing):
            return super().feed(x, opened)
        logits = self.router(x)
        gates = opened.decide(logits) * opened.counts
        opened.gates.append(gates)
        return super().feed(x, opened.channels) * (gates * logits.sigmoid())[..., None]


class SkippingBlock(NarrowBlock):
    """The same as a graph that computes nothing for what is passed over.

    Kept tokens of the whole batch are gathered into one matrix product, and what that gives is scattered among zeros.
    """

    def __init__(self, width: int, heads: int, own: Sequence[int], channels: int) -> None:
        super().__init__(width, heads, own, channels)
        self.router = TokenRouter(width)

    @classmethod
    def of(cls, block: Block, heads: Sequence[int], channels: Sequence[int]) -> SkippingBlock:
        """Of a RoutedBlock."""
        assert isinstance(block, RoutedBlock)
        made = cls(block.proj.in_features, block.heads, heads, len(channels))
        made.take(block, channels)
        made.router.load_state_dict(block.router.state_dict())
        return made

    def feed(self, x: Tensor, opened: Tensor | Routing | None = None) -> Tensor:
        if not isinstance(opened, Routing):
            return super().feed(x, opened)
        if opened.channels is not None:
            raise ValueError("channels of a block that passes over tokens cannot be closed")
        logits = self.router(x)
        gates = opened.decide(logits) * opened.counts
        opened.gates.append(gates)
        tokens = x.flatten(0, 1)
        places = gates.flatten().nonzero()[:, 0]
        made = super().feed(tokens[places]) * logits.flatten()[places].sigmoid()[:, None]
        return torch.zeros_like(tokens).index_put((places,), made).reshape(x.shape)


def counted(valid: Tensor) -> Tensor:
    """B x N to B x (1 + N): the canvas' token, which comes first, always means something."""
    return functional.pad(valid, (1, 0), value=1.0)

"""A block of the layout transformer with some of its heads and MLP channels, cut out of a whole one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nereid_zoo.layout.model import Block, attended


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
        made = cls(block.proj.in_features, block.heads, heads, len(channels))
        made.take(block, channels)
        return made

    def take(self, block: Block, channels: Sequence[int]) -> None:
        """Copy what is left of the block's weights."""
        width, size, kept = block.proj.in_features, self.head_width, list(channels)
        places = [place for head in self.own for place in range(head * size, (head + 1) * size)]
        three = [part * width + place for part in range(3) for place in places]
        with torch.no_grad():
            for its, weight, bias in (
                (self.qkv, block.qkv.weight[three], block.qkv.bias[three]),
                (self.proj, block.proj.weight[:, places], block.proj.bias),
                (self.fc1, block.fc1.weight[kept], block.fc1.bias[kept]),
                (self.fc2, block.fc2.weight[:, kept], block.fc2.bias),
            ):
                its.weight.copy_(weight)
                its.bias.copy_(bias)
            self.modulation.copy_(block.modulation)

    def attend(self, x: Tensor, bias: Tensor, opened: Tensor | None = None) -> Tensor:
        """As the whole block does; `bias` is that of all heads, or one for each."""
        own = bias[:, self.own] if bias.ndim > 1 else bias
        return self.proj(attended(self.qkv(x), self.heads, self.head_width, own, opened))

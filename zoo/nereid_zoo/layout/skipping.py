"""A block whose MLP passes over tokens: SDT of DyDiT (Zhao et al., 2024), as a graph that computes nothing for them.

A router scores each token by itself against a threshold: which tokens an MLP has depends on no other token and on no other row.
Those above it are gathered from the whole batch into one matrix product, and what that gives is scattered among zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nereid_zoo.layout.model import Block


class SkippingBlock(Block):
    """The MLP's output is zero for tokens that the router passes over."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__(width, heads, mlp_ratio)
        self.router = nn.Parameter(torch.randn(width) * width**-0.5)
        self.threshold = nn.Parameter(torch.zeros(()))
        self._sought: float | None = None

    def keep(self, share: float | None) -> None:
        """Have every call from now on set the threshold, so that about this share of its tokens is kept; None: none any more."""
        self._sought = share

    def scores(self, x: Tensor) -> Tensor:
        """... x D to ...: a sum for each token, and no matrix product, whose rounding may go by how many tokens there are."""
        return (x * self.router).sum(-1)

    def kept(self, x: Tensor) -> Tensor:
        """... x D to ...: which tokens the MLP has."""
        return self.scores(x) > self.threshold

    def feed(self, x: Tensor, opened: Tensor | None = None) -> Tensor:
        if opened is not None:
            raise ValueError("channels of a block that passes over tokens cannot be closed")
        tokens = x.flatten(0, 1)
        if self._sought is not None:
            with torch.no_grad():
                self.threshold.copy_(self.scores(tokens).quantile(1 - self._sought))
        places = self.kept(tokens).nonzero()[:, 0]
        made = super().feed(tokens[places][None])[0]
        return torch.zeros_like(tokens).index_put((places,), made).reshape(x.shape)

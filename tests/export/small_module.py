"""A module of a convolution, a layer norm and linear layers, with one channel that lies far outside the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nereid_export.components import Component, TensorSpec


class Small(nn.Module):
    """N x 4 x H x W to N x tokens x 8; `reused` lets something else read the norm's output, too."""

    def __init__(self, *, reused: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 8)
        self.reused = reused
        with torch.no_grad():
            self.norm.weight[3] = 40.0

    def forward(self, sample: Tensor) -> Tensor:
        normed = self.norm(self.conv(sample).flatten(2).transpose(1, 2))
        made = self.out(self.query(normed) * torch.sigmoid(self.key(normed)))
        return made + normed if self.reused else made


def component(module: nn.Module) -> Component:
    return Component(
        name="unet",
        source="unet",
        inputs=(TensorSpec(name="sample", dims=(4, "height", "width")),),
        outputs=(TensorSpec(name="out_sample", dims=("tokens", 8)),),
        load=lambda: module,
        example={"height": 5, "width": 6},
        checks=((1, {"height": 5, "width": 6}), (3, {"height": 4, "width": 4})),
    )

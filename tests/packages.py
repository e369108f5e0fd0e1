"""A tiny component whose AOTInductor package has what a UNet's has: matrices, a convolution down and the way up, any size."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from nereid_export.components import Component, TensorSpec
from nereid_export.engines.base import Samples, Target
from nereid_export.engines.precision import Precision
from nereid_export.engines.torch_aoti import TorchAoti
from nereid_export.frame import Device

WIDTH = 8
TARGET = Target(precision=Precision.FP32, device=Device.CPU, max_batch_size=4, default_side=8, max_side=8, scale=1)


class Sums(nn.Module):
    """A matrix product of `x`, plus `offset`, plus itself halved and doubled again in height."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator))
        self.kernel = nn.Parameter(torch.randn(WIDTH, WIDTH, 3, generator=generator))

    def forward(self, x: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        made = x @ self.weight + offset[..., None]
        halved = functional.conv1d(made.transpose(1, 2), self.kernel, stride=2, padding=1)
        # As diffusers' UNet does; an exporter takes the way of its example, an odd height, for all.
        wide = functional.interpolate(halved, x.shape[1]) if x.shape[1] % 2 else functional.interpolate(halved, scale_factor=2.0)
        made = made + wide.transpose(1, 2)
        return made, made.sum(2)


SUMS = Component(
    name="sums",
    source="",
    inputs=(TensorSpec(name="x", dims=("height", WIDTH)), TensorSpec(name="offset", dims=("height",))),
    outputs=(TensorSpec(name="made", dims=("height", WIDTH)), TensorSpec(name="total", dims=("height",))),
    load=Sums,
    example={"height": 5},
    checks=((1, {"height": 3}),),
)


def make_package(folder: Path) -> Path:
    """Compile it (that takes a while) to `model.pt2` in `folder`; returns the folder."""
    TorchAoti().build(SUMS, Sums(), folder, TARGET, Samples(()))
    return folder

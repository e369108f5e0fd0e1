"""What trainings of a copy that computes less share: the whole transformer as its teacher, and the loss with its FLOPs in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nereid_zoo.layout.model import LayoutTransformer
from nereid_zoo.layout.train import Noisy

RAMP = 0.5
"""Share of a phase with routers until FLOPs are to be what is asked for; from all of them on, they fall evenly."""
PEAK = 4e-4
"""The highest learning rate."""
TAUGHT, FLOPS = 1.0, 10.0
"""Weights beside the transformer's own losses: distance from the teacher's velocity, and from the FLOPs that are asked for."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a step of training has come to: all scalars; `flops` is a share."""

    own: Tensor
    taught: Tensor
    flops: Tensor
    off: Tensor

    @property
    def total(self) -> Tensor:
        return self.own + TAUGHT * self.taught + FLOPS * self.off


def taught_by(teacher: LayoutTransformer, its: Noisy, predicted: Tensor) -> Tensor:
    """Mean square of the distance to the teacher's velocity, over free fields of valid tokens."""
    with torch.no_grad():
        wanted = teacher(boxes=its.boxes, timestep=its.timesteps, **its.given)
    free = (its.given["field_mask"] < 1) * its.given["valid"][..., None]
    return ((predicted - wanted).square() * free).sum() / free.sum().clamp(min=1)

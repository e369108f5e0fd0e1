"""What layouts are trained on: the velocity, the clean boxes it implies, alignment, and siblings apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CLEAN, ALIGNMENT, OVERLAP = 0.2, 0.05, 0.2
"""Weights beside the velocity's."""
FAR = 1e3
"""Units: what is no candidate for a line is this far away."""


@dataclass(frozen=True, slots=True)
class Losses:
    """Each a scalar; distances are units of 320 px."""

    velocity: Tensor
    clean: Tensor
    alignment: Tensor
    overlap: Tensor

    @property
    def total(self) -> Tensor:
        return self.velocity + CLEAN * self.clean + ALIGNMENT * self.alignment + OVERLAP * self.overlap


def losses(predicted: Tensor, noisy: Tensor, clean: Tensor, noise: Tensor, levels: Tensor, given: dict[str, Tensor]) -> Losses:
    """B x N x 4 each, `levels` B (0 is clean); `given` has a batch's field_mask, valid, parents and canvas.

    velocity: mean of (predicted - (noise - clean))^2 over free fields of valid tokens. clean: mean there of |noisy - level x
    predicted - clean|. alignment and overlap judge the implied clean boxes by (1 - level)^2: mean over tokens of
    the distance to the nearest shared line (LayoutGAN++, Kikuchi et al., 2021), and sum over pairs of siblings of min(overlap in
    x, overlap in y) by tokens.
    """
    valid = given["valid"]
    free = (given["field_mask"] < 1).float() * valid[..., None]
    count = free.sum().clamp(min=1)
    implied = noisy - levels[:, None, None] * predicted
    weight = (1 - levels) ** 2
    boxes = torch.where(free > 0, implied, clean)
    tokens = valid.sum()
    return Losses(
        velocity=((predicted - (noise - clean)).square() * free).sum() / count,
        clean=((implied - clean).abs() * free).sum() / count,
        alignment=(weight[:, None] * unaligned(boxes, valid)).sum() / tokens,
        overlap=(weight * sibling_overlap(boxes, valid, given["parents"])).sum() / tokens,
    )


def edges(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Starts and ends, B x N x 2 (across, down), of boxes in units: their sizes are less one unit (`nereid.layout.tokens`)."""
    starts = boxes[..., :2]
    return starts, starts + boxes[..., 2:] + 1


def unaligned(boxes: Tensor, valid: Tensor) -> Tensor:
    """B x N: distance to the nearest of the six lines of another token; 0 for padding and for lone tokens."""
    starts, ends = edges(boxes)
    lines = torch.cat([starts, (starts + ends) / 2, ends], -1)
    apart = (lines[:, :, None] - lines[:, None]).abs().amin(-1)
    others = valid[:, None, :] * (1 - torch.eye(valid.shape[1], device=valid.device))
    nearest = torch.where(others > 0, apart, apart.new_full((), FAR)).amin(-1)
    return torch.where(nearest < FAR, nearest, nearest.new_zeros(())) * valid


def sibling_overlap(boxes: Tensor, valid: Tensor, parents: Tensor) -> Tensor:
    """B: the sum over pairs of siblings of how deep they are in each other."""
    starts, ends = edges(boxes)
    shared = torch.minimum(ends[:, :, None], ends[:, None]) - torch.maximum(starts[:, :, None], starts[:, None])
    deep = shared.amin(-1).clamp(min=0)
    siblings = (parents[:, :, None] == parents[:, None]) & (valid[:, :, None] * valid[:, None] > 0)
    return (deep * siblings.float()).triu(1).sum((1, 2))

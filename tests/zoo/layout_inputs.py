"""Inputs of layout transformers: sections such as they are trained on, noise, and noise levels all over the range."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from nereid.layout.tokens import tokens_of
from nereid_zoo.layout.batches import sample_row
from nereid_zoo.layout.draw import noise_of
from nereid_zoo.layout.train import tensors


def inputs(rows: int, count: int = 16) -> dict[str, Tensor]:
    """Of sections of at most `count` elements, each padded to it."""
    rng, sections = Random(5), []
    while len(sections) < rows:
        section = sample_row(rng)[0]
        if len(section) <= count:
            sections.append(section)
    boxes = torch.from_numpy(noise_of(range(rows), count))
    return {**tensors(tokens_of(sections, count), "cpu"), "boxes": boxes, "timestep": torch.linspace(40, 960, rows)}

"""A network whose features tell layouts apart, and the Fréchet distance (FID, Heusel et al., 2017) between sets of them.

It learns to tell layouts of the training data from the same ones spoiled in four ways; there is no network that knows layouts of
web pages, and one of photographs would see nothing in boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from nereid.layout.canvas import Canvas, Style
from nereid.layout.elements import Box, Section
from nereid.layout.tokens import Tokens, to_units, tokens_of
from nereid_zoo.layout.batches import DRAFTED
from nereid_zoo.layout.layouts import sample_layout
from nereid_zoo.layout.weights import read_network

Measure = Callable[[Sequence[Section], Sequence[Sequence[Box]]], NDArray[np.float64]]
"""Features, layouts x width, of sections' layouts."""


class Spoiled(IntEnum):
    """What has been done to a layout."""

    NOT = 0
    SHAKEN = 1
    STRETCHED = 2
    SWAPPED = 3
    RESTYLED = 4


def spoil(section: Section, boxes: list[Box], how: Spoiled, rng: Random) -> list[Box]:
    """Each field off by a few pixels; all of it higher or lower; two boxes exchanged; or a layout of another style."""
    match how:
        case Spoiled.SHAKEN:
            pixels = rng.uniform(*DRAFTED)
            return [Box(*(value + rng.gauss(0, pixels) for value in box)) for box in boxes]
        case Spoiled.STRETCHED:
            by = rng.choice((0.7, 0.85, 1.2, 1.4))
            return [box._replace(y=box.y * by, height=box.height * by) for box in boxes]
        case Spoiled.SWAPPED if len(boxes) > 1:
            first, second = rng.sample(range(len(boxes)), 2)
            made = list(boxes)
            made[first], made[second] = made[second], made[first]
            return made
        case Spoiled.RESTYLED:
            own = section.canvas
            style = rng.choice([style for style in Style if style is not own.style])
            other = Section.of(Canvas(own.width, own.density, own.columns, style), section.elements)
            return sample_layout(other, rng) or boxes
    return boxes


def drawn_tokens(sections: Sequence[Section], layouts: Sequence[Sequence[Box]]) -> tuple[Tokens, NDArray[np.float32]]:
    """The arrays of sections, with nothing fixed, and their boxes in units."""
    size = max(map(len, sections))
    tokens = tokens_of(sections, size)
    pixels = np.zeros((len(sections), size, 4))
    for row, boxes in enumerate(layouts):
        pixels[row, : len(boxes)] = boxes
    return tokens, to_units(pixels, tokens.canvas) * tokens.valid[..., None]


def frechet_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the features' means and covariances."""
    difference = first.mean(0) - second.mean(0)
    one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    mixed = np.sqrt(np.clip(np.linalg.eigvalsh(root @ two @ root), 0, None)).sum()
    return float(difference @ difference + np.trace(one) + np.trace(two) - 2 * mixed)


def features_of(folder: Path, rows: int = 64) -> Measure:
    """By the network of a folder that `train_features` has written; raises WeightsError."""
    import torch

    from nereid_zoo.layout.features_model import LayoutFeatures

    network = read_network(LayoutFeatures, folder)

    def measure(sections: Sequence[Section], layouts: Sequence[Sequence[Box]]) -> NDArray[np.float64]:
        made = []
        for start in range(0, len(sections), rows):
            tokens, units = drawn_tokens(sections[start : start + rows], layouts[start : start + rows])
            with torch.inference_mode():
                made.append(network(tokens, units).double().numpy())
        return np.concatenate(made)

    return measure

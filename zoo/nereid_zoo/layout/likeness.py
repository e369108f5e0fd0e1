"""How alike two layouts of one section are, and how different several are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from nereid.layout.elements import Box, Section


def max_iou(section: Section, first: Sequence[Box], second: Sequence[Box]) -> float:
    """MaxIoU of two layouts of one section, 0 to 1 (LayoutGAN++, Kikuchi et al., 2021, eq. 7).

    The mean over elements of intersection over union, with elements of one class matched so that it is greatest.
    """
    from scipy.optimize import linear_sum_assignment

    by_class: dict[str, list[int]] = {}
    for place, element in enumerate(section.elements):
        by_class.setdefault(element.kind, []).append(place)
    total = 0.0
    for places in by_class.values():
        shared = iou(np.array([first[place] for place in places]), np.array([second[place] for place in places]))
        rows, columns = linear_sum_assignment(shared, maximize=True)
        total += float(shared[rows, columns].sum())
    return total / len(section)


def iou(first: NDArray, second: NDArray) -> NDArray[np.float64]:
    """Intersection over union of all pairs: N x 4 and M x 4 (x, y, width, height) to N x M."""
    starts = np.maximum(first[:, None, :2], second[None, :, :2])
    ends = np.minimum((first[:, :2] + first[:, 2:])[:, None], (second[:, :2] + second[:, 2:])[None])
    shared = np.clip(ends - starts, 0, None).prod(-1)
    either = first[:, 2:].prod(-1)[:, None] + second[:, 2:].prod(-1)[None] - shared
    return shared / np.maximum(either, 1e-9)


def diversity(section: Section, layouts: Sequence[Sequence[Box]]) -> float:
    """The mean over pairs of layouts of 1 - MaxIoU: 0 where all are the same."""
    return float(np.mean([1 - max_iou(section, first, second) for first, second in combinations(layouts, 2)]))

"""The nearest training neighbour: what a model that only remembers would draw; a baseline."""

from __future__ import annotations

from random import Random

import numpy as np

from nereid.layout.elements import Box, Section
from nereid.layout.tokens import canvas_numbers, content_numbers
from nereid_zoo.layout.batches import sample_row

POOL = 20_000
"""Training layouts that neighbours are looked for in."""

_Key = tuple[tuple[str, ...], tuple[int, ...]]


class Neighbours:
    """Training layouts by the classes and parents of their elements."""

    def __init__(self, count: int = POOL, seed: int = 1) -> None:
        self._pool: dict[_Key, list[tuple[Section, list[Box]]]] = {}
        rng = Random(seed)
        for _ in range(count):
            section, boxes = sample_row(rng)
            self._pool.setdefault(_key(section), []).append((section, boxes))

    def layout(self, section: Section, rank: int = 0) -> list[Box]:
        """The boxes of its nearest neighbour, with rank 1 of the second nearest, and so on.

        Nearest by the numbers that the transformer is given, among sections of equal classes and parents, with x and width scaled
        to the canvas; where there is none, all elements get an empty box, which fails.
        """
        found = self._pool.get(_key(section), [])
        if not found:
            return [Box(0, 0, 0, 0)] * len(section)
        own = _numbers(section)
        distances = np.array([np.abs(_numbers(other) - own).sum() for other, _ in found])
        other, boxes = found[int(np.argsort(distances, kind="stable")[min(rank, len(found) - 1)])]
        scale = section.canvas.width / other.canvas.width
        return [box._replace(x=round(box.x * scale), width=round(box.width * scale)) for box in boxes]


def _key(section: Section) -> _Key:
    return tuple(element.kind for element in section.elements), section.parents


def _numbers(section: Section) -> np.ndarray:
    canvas = np.array(canvas_numbers(section.canvas))
    return np.concatenate([len(section) * canvas, np.array(content_numbers(section)).ravel()])

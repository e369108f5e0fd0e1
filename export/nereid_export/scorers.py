"""What counts how many pictures of a checkpoint are right: packages name theirs in the entry points `nereid.scorers`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

GROUP = "nereid.scorers"

Draw = Callable[[list[str], list[int]], Iterator[NDArray[np.uint8]]]
"""Pictures (uint8 H x W x 3) for prompts and seeds, in order."""


class Scorer(Protocol):
    """Knows what prompts of one kind of checkpoint ask for, and sees whether it is there."""

    @property
    def name(self) -> str:
        """What a point is given for."""
        ...

    def prompts(self, count: int) -> list[str]:
        """Prompts as the checkpoint knows them, none of which is scored."""
        ...

    def scored(self, count: int) -> list[str]:
        """The prompts that `score` has drawn, in its order."""
        ...

    def score(self, draw: Draw, count: int, told: Callable[[int], None]) -> float:
        """Percent of `count` pictures that are right; `told` how many are done."""
        ...


def scorer_for(checkpoint: Path) -> Scorer | None:
    """The first installed scorer that knows this checkpoint; entry points are functions of its folder, to a Scorer or None."""
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        if (scorer := entry.load()(checkpoint)) is not None:
            return scorer
    return None

"""What a run keeps between steps, as the loop sees it: features of a UNet, or a transformer's branches; knows neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Kept(Protocol):
    """What one run keeps between steps: which engine its steps call for that, what goes in of it, and what is kept of what comes.

    A half is 0, the conditional one, or 1. An engine is named by a member of the family's StrEnum.
    """

    @property
    def whole(self) -> StrEnum:
        """The engine that computes everything."""
        ...

    @property
    def nbytes(self) -> int: ...

    def variant(self, step: int, *, both: bool) -> StrEnum:
        """The engine that a step calls, by plan or because a half that is needed is not kept yet."""
        ...

    def inputs(self, variant: StrEnum, half: int) -> Mapping[str, NDArray[Any]]:
        """What such a call goes on from, of this run."""
        ...

    def without(self, variant: StrEnum) -> Sequence[str]:
        """Inputs of the whole engine that this one does not take."""
        ...

    def outputs(self, variant: StrEnum, step: int) -> tuple[str, ...]:
        """What of that such a call gives is to be kept."""
        ...

    def fits(self, shape: tuple[int, ...], sample: tuple[int, ...]) -> bool:
        """Whether a row of such an output may have this shape, where one of a sample has that."""
        ...

    def take(self, step: int, halves: Sequence[Mapping[str, NDArray[np.float32]]]) -> None:
        """Keep what a call gave, of the other half, too, where there was one; raises EngineError where it cannot be kept.

        Others in the call may have wanted more.
        """
        ...

    def forget(self) -> None:
        """The run has ended."""
        ...

    def steps_to_full(self, step: int, end: int) -> float:
        """Steps until the next whole one of a run that ends at `end`; infinite where none comes."""
        ...

    def steps_left(self, step: int, end: int) -> dict[StrEnum, int]:
        """Of each engine, as far as that is planned."""
        ...

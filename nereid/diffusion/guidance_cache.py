"""Reuse of guidance between steps: which steps compute the unconditional half is planned once, as feature caching is.

The unconditional half of classifier-free guidance (Ho and Salimans, 2022) costs a row of every call. Where a plan says so, a step
does without, and guides by the difference between both halves that an earlier step has found (Lv et al., 2024, FasterCache):
both predictions change from step to step, and what lies between them hardly does. By the unconditional prediction of an earlier
step itself it would guide by what has changed since, times the guidance scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.feature_cache import CachePlan


@dataclass(slots=True, eq=False)
class KeptDifference:
    """One run's conditional less its unconditional prediction (float32 C x H x W), and the steps from which on it is due anew."""

    plan: CachePlan
    difference: NDArray[np.float32] | None = None
    _made: int = -1

    def is_due(self, step: int) -> bool:
        """Whether a step has come, since it was made, that computes it."""
        return self.difference is None or any(self._made < due <= step for due in self.plan.full or ())

    def keep(self, step: int, difference: NDArray[np.float32]) -> None:
        """Take over what a step has found."""
        self.difference, self._made = difference, step

    def forget(self) -> None:
        """The run has ended."""
        self.difference = None

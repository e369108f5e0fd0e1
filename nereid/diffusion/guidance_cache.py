"""Reuse of the unconditional prediction between steps: which steps compute it is planned once, as feature caching is.

Of classifier-free guidance (Ho and Salimans, 2022) the unconditional half changes slowly from step to step, and costs a row of
every call. Where a plan says so, a step guides by the prediction that an earlier step has made of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.feature_cache import CachePlan


@dataclass(slots=True, eq=False)
class KeptPrediction:
    """One run's unconditional prediction (float32 C x H x W), and the steps from which on it must be made anew."""

    plan: CachePlan
    prediction: NDArray[np.float32] | None = None
    _made: int = -1

    def is_due(self, step: int) -> bool:
        """Whether a step has come, since it was made, that computes it."""
        return self.prediction is None or any(self._made < due <= step for due in self.plan.full or ())

    def keep(self, step: int, prediction: NDArray[np.float32]) -> None:
        """Take over what a call gave."""
        self.prediction, self._made = prediction.copy(), step  # the call's array holds everybody's

    def forget(self) -> None:
        """The run has ended."""
        self.prediction = None

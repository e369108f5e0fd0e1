"""What a run may keep between steps, as calibration sees it: features of the UNet, and what guidance is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.feature_cache import FEATURES
from nereid.diffusion.plan import OUT, EngineCall


@dataclass(frozen=True, slots=True)
class Kind:
    """What may be kept between steps: the request's `field`, the `outputs` that it is made `of`, and where facts have it."""

    field: str
    outputs: tuple[str, ...]
    """Beside the usual one."""
    of: Callable[[EngineCall, Mapping[str, NDArray]], NDArray[np.float32]]
    known: Callable[[Mapping[str, Any]], list[dict[str, Any]]]
    written: Callable[[Mapping[str, Any], list[dict[str, Any]]], dict[str, Any]]


KEPT_FEATURES = Kind(
    field="cache",
    outputs=(FEATURES,),
    of=lambda call, outputs: outputs[FEATURES],
    known=lambda facts: facts["cache"]["calibrations"],
    written=lambda facts, found: {"cache": {**facts["cache"], "calibrations": found}},
)


def _difference(call: EngineCall, outputs: Mapping[str, NDArray]) -> NDArray[np.float32]:
    """Between both halves' predictions, of the runs that have both."""
    made: NDArray[np.float32] = outputs[OUT]
    return made[list(call.negatives)] - made[list(call.negatives.values())]


KEPT_GUIDANCE = Kind(
    field="guidance_cache",
    outputs=(),
    of=_difference,
    known=lambda facts: facts.get("guidance_calibrations", []),
    written=lambda facts, found: {"guidance_calibrations": found},
)

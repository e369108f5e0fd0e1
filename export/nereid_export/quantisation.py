"""Static INT8 of one component, whichever engine: smoothing, ranges of real runs, and what is put back into higher precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from nereid_export.components import Component
from nereid_export.engines.base import Samples
from nereid_export.engines.check import Run, aggregate_error
from nereid_export.engines.precision import END_ERROR_BOUND, ERROR_BOUNDS, Precision
from nereid_export.observed import observe
from nereid_export.sensitivity import QuantisedGraph, search
from nereid_export.smoothing import smooth

INPUTS, RUNS = 4, 2
"""Inputs of the check, and whole runs where there are such, on which each part is rounded alone."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Of a graph: over calls, and at the end of whole runs where its component has such."""

    calls: float
    end: float | None

    @property
    def excess(self) -> float:
        """The larger of both over its bound; NaN where one is."""
        end = 0.0 if self.end is None else self.end / END_ERROR_BOUND
        return float(np.max([self.calls / ERROR_BOUNDS[Precision.INT8], end]))


def smoothed(component: Component, module: nn.Module, samples: Samples) -> int:
    """Smooth the module in place by the ranges of its calls; returns the layer norms that were."""
    samples.told(f"{component.name}: observing ranges in {len(samples.ranges)} calls")
    return smooth(component, module, observe(component, module, samples.ranges), samples.checks)


def put_back(component: Component, graph: QuantisedGraph, samples: Samples, norms: int) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Activations that must not be rounded for the engine to be within its bounds, and what the manifest says of it."""

    def told(text: str) -> None:
        samples.told(f"{component.name}: measuring the error with {text}")

    def measure(run: Run) -> Errors:
        return Errors(aggregate_error(samples.checks, run), samples.runs.error(run) if samples.runs else None)

    def alone(run: Run) -> float:
        return samples.runs.error(run, first=RUNS) if samples.runs else aggregate_error(few, run)

    facts: dict[str, Any] = {"calibration_calls": len(samples.ranges), "smoothed_norms": norms}
    if not samples.bounded:
        return (), {"quantization": facts}
    few = samples.checks[:: max(1, len(samples.checks) // INPUTS)][:INPUTS]
    found = search(graph, measure, alone, told)
    facts |= {"parts": found.parts, "kept": list(found.kept), "error_without_kept": found.rounded.calls}
    if found.rounded.end is not None:
        facts["end_error_without_kept"] = found.rounded.end
    return found.names, {"quantization": facts}

"""Static INT8 of one component, whichever engine: smoothing, ranges of real runs, and what is put back into higher precision."""

from __future__ import annotations

from typing import Any

from torch import nn

from nereid_export.components import Component
from nereid_export.engines.base import Samples
from nereid_export.engines.precision import ERROR_BOUNDS, Precision
from nereid_export.observed import observe
from nereid_export.sensitivity import QuantisedGraph, search
from nereid_export.smoothing import smooth


def smoothed(component: Component, module: nn.Module, samples: Samples) -> int:
    """Smooth the module in place by the ranges of its calls; returns the layer norms that were."""
    samples.told(f"{component.name}: observing ranges in {len(samples.ranges)} calls")
    return smooth(component, module, observe(component, module, samples.ranges), samples.checks)


def put_back(component: Component, graph: QuantisedGraph, samples: Samples, norms: int) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Activations that must not be rounded for the engine to be within its bound, and what the manifest says of it."""

    def told(text: str) -> None:
        samples.told(f"{component.name}: measuring the error with {text}")

    bound = ERROR_BOUNDS[Precision.INT8] if samples.error_bound is None else samples.error_bound
    found = search(graph, samples.checks, bound, told)
    facts = {
        "calibration_calls": len(samples.ranges),
        "smoothed_norms": norms,
        "parts": found.parts,
        "kept": list(found.kept),
        "error_without_kept": found.error_without_kept,
    }
    return found.names, {"quantization": facts}

"""SmoothQuant (Xiao et al. 2023): moves the range of outlying channels from a layer norm's output to the weights behind it.

What the module computes stays the same but for rounding; its activations become easier to quantise by one range a tensor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nereid_export.components import Component
from nereid_export.engines.check import Reference, aggregate_error, torch_run
from nereid_export.observed import Observed

ALPHA = 0.5
"""Share of the range that moves to the weights."""
_SAME = 1e-4
"""Relative error that smoothing may make: float32's rounding, far below what quantising does."""


def smooth(component: Component, module: nn.Module, observed: Mapping[str, Observed], checks: Sequence[Reference]) -> int:
    """Smooth every layer norm that feeds linear layers, in the module and in what was observed; returns how many.

    Where something else reads such an output too, the module computes something else: then all is put back, and it is 0.
    """
    layers: dict[str, list[str]] = defaultdict(list)
    for name, found in observed.items():
        if found.norm is not None:
            layers[found.norm].append(name)
    scales = {norm: _scale(module, observed, names) for norm, names in layers.items()}
    for norm, names in layers.items():
        _apply(module, observed, norm, names, scales[norm])
    if scales and not aggregate_error(checks[:1], torch_run(component, module)) <= _SAME:
        for norm, names in layers.items():
            _apply(module, observed, norm, names, 1 / scales[norm])
        return 0
    return len(scales)


def _scale(module: nn.Module, observed: Mapping[str, Observed], names: Sequence[str]) -> Tensor:
    largest = torch.stack([torch.maximum(observed[name].low.abs(), observed[name].high.abs()) for name in names]).amax(0)
    weights = torch.stack([_weight(module, name).abs().amax(0) for name in names]).amax(0)
    return largest.clamp(min=1e-5) ** ALPHA / weights.clamp(min=1e-5) ** (1 - ALPHA)


@torch.no_grad()
def _apply(module: nn.Module, observed: Mapping[str, Observed], norm: str, names: Sequence[str], scale: Tensor) -> None:
    made = module.get_submodule(norm)
    for parameter in (made.weight, made.bias):
        if isinstance(parameter, Tensor):
            parameter /= scale
    for name in names:
        weight, found = _weight(module, name), observed[name]
        weight *= scale
        found.low, found.high = found.low / scale, found.high / scale


def _weight(module: nn.Module, name: str) -> Tensor:
    weight = module.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight

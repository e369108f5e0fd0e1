"""What passes through a module's layers while it runs: ranges of inputs a channel, and which layer norm made them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nereid_export.components import Component
from nereid_export.engines.check import Inputs, torch_run

Layer = nn.Conv2d | nn.Linear


@dataclass(slots=True)
class Observed:
    """Smallest and largest input of one layer, a channel; `norm` names the layer norm whose output every input was."""

    low: Tensor
    high: Tensor
    norm: str | None


def observe(component: Component, module: nn.Module, calls: Sequence[Inputs]) -> dict[str, Observed]:
    """Run the module on every call's inputs; returns its convolutions and linear layers by name."""
    found: dict[str, Observed] = {}
    made_by: list[tuple[Tensor, str]] = []

    def normed(name: str) -> Callable[..., None]:
        return lambda layer, inputs, output: made_by.append((output, name))

    def met(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            value: Tensor = inputs[0]
            channel = 1 if isinstance(layer, nn.Conv2d) else value.ndim - 1
            others = [dim for dim in range(value.ndim) if dim != channel]
            low, high = value.amin(others), value.amax(others)
            # Held until the call ends, so that no other tensor has the identity.
            norm = next((other for tensor, other in made_by if tensor is value), None)
            if (known := found.get(name)) is None:
                found[name] = Observed(low, high, norm)
            else:
                known.low, known.high = torch.minimum(known.low, low), torch.maximum(known.high, high)
                known.norm = known.norm if known.norm == norm else None

        return hook

    hooks = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.LayerNorm):
            hooks.append(layer.register_forward_hook(normed(name)))
        elif isinstance(layer, Layer):
            hooks.append(layer.register_forward_pre_hook(met(name)))
    try:
        run = torch_run(component, module)
        for inputs in calls:
            run(inputs, [])
            made_by.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return found

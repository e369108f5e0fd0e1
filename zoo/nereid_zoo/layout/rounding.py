"""Bits of a layout transformer's weights: each layer has as many as what its rounding does to velocities asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from nereid_export.w4a8.inputs import Statistics
from nereid_export.w4a8.layers import BITS, MEAN_BITS, RANK, QuantisedLayer, SmoothedLayer, bits_each, in_codes, in_fewest_bytes
from nereid_zoo.layout.model import LayoutTransformer
from nereid_zoo.layout.observed import Call, layer_names


def quantised_layers(
    transformer: LayoutTransformer,
    statistics: Mapping[str, Statistics],
    calls: Sequence[Call],
    told: Callable[[str], None] = lambda text: None,
    *,
    rank: int = RANK,
) -> dict[str, QuantisedLayer]:
    """Of every layer that is quantised; where a block's proj is smoothed, its qkv is so, too.

    `calls` are those by which it is found how many bits each has.
    """
    names = layer_names(transformer)
    smoothed: dict[str, SmoothedLayer] = {}
    for name in sorted(names, key=lambda its: not its.endswith("proj")):  # before qkv, whose values it scales
        told(f"{name}: smoothing, layer {len(smoothed) + 1} of {len(names)}")
        smoothed[name] = SmoothedLayer.of(weights_of(transformer, name, smoothed), statistics[name])
    coded: dict[str, QuantisedLayer] = {}
    losses: dict[str, float] = {}
    for name in names:
        told(f"{name}: what its rounding does, layer {len(losses) + 1} of {len(names)}")
        coded[name] = in_codes(smoothed[name], rank=rank)
        losses[name] = loss_of(transformer, name, coded[name], smoothed, calls)
    bits = bits_each(losses, {name: layer.weights.size for name, layer in smoothed.items()}, MEAN_BITS)
    made: dict[str, QuantisedLayer] = {}
    for name in names:
        told(f"{name}: rounding, layer {len(made) + 1} of {len(names)}")
        own = coded[name] if bits[name] == BITS else in_codes(smoothed[name], rank=rank, bits=bits[name])
        made[name] = in_fewest_bytes(smoothed[name], own)
    return made


def weights_of(transformer: LayoutTransformer, name: str, layers: Mapping[str, SmoothedLayer | QuantisedLayer]) -> np.ndarray:
    """A layer's exact weights, before its own inputs are smoothed; a qkv's make the values that its proj takes."""
    weights: np.ndarray = transformer.get_submodule(name).get_parameter("weight").detach().numpy().copy()
    if name.endswith("qkv"):
        weights[-transformer.config.width :] *= layers[name.replace("qkv", "proj")].smooth[:, None]
    return weights


def loss_of(
    transformer: LayoutTransformer,
    name: str,
    layer: QuantisedLayer,
    layers: Mapping[str, SmoothedLayer],
    calls: Sequence[Call],
) -> float:
    """The squared error of these calls' velocities, relative, if of all layers this one alone had the weights that are stored."""
    weights = layer.stored * layer.smooth
    if name.endswith("qkv"):
        weights[-transformer.config.width :] /= layers[name.replace("qkv", "proj")].smooth[:, None]
    own = transformer.get_submodule(name).get_parameter("weight")
    exact, off, size = own.detach().clone(), 0.0, 0.0
    with torch.no_grad():
        own.copy_(torch.from_numpy(weights))
        try:
            for call in calls:
                off += float((((transformer(**call.inputs) - call.velocities) * call.valid) ** 2).sum())
                size += float(((call.velocities * call.valid) ** 2).sum())
        finally:
            own.copy_(exact)
    return off / max(size, 1e-12)

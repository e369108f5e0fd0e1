"""Reads a network of layouts from a folder: all of its tensors and no others, or one sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError, safe_open

from nereid.flow.errors import first_line

if TYPE_CHECKING:
    from torch import nn

Network = TypeVar("Network", bound="nn.Module")
_TYPES = ("F16", "BF16", "F32", "F64")


class WeightsError(ValueError):
    """Files that are not a network's."""


def read_network(kind: type[Network], home: Path, before: Mapping[str, Any] | None = None) -> Network:
    """A diffusers model (config.json, safetensors) in float32; `before` are settings of one whose file does not say them.

    Raises WeightsError where a file cannot be read, and where tensors are missing, of no use to it, of another shape or no float
    type: diffusers leaves the first without a value and the second out.
    """
    import torch

    made: Any = kind
    config, held = _config_in(home), _tensors_in(home)
    settings = {name: value for name, value in (before or {}).items() if name not in config}
    layers, blocks = config.get("layers"), sum(name.endswith(".fc1.bias") for name in held)
    if layers is not None and layers != blocks:  # before so many are made
        raise WeightsError(f"layers: {layers!r} is not allowed; it must be {blocks}, as the weights in {home} have them")
    try:
        with torch.device("meta"):
            wanted = {name: tuple(value.shape) for name, value in made.from_config(config | settings).state_dict().items()}
    except Exception as error:  # whatever arithmetic makes of odd settings
        raise WeightsError(f"{home / 'config.json'} makes no {kind.__name__}: {first_line(error)}") from None
    for what, names in (("lack", wanted.keys() - held.keys()), ("have", held.keys() - wanted.keys())):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            why = "" if what == "lack" else f", which a {kind.__name__} of these settings has not"
            raise WeightsError(f"the weights in {home} {what} {min(names)}{more}{why}")
    for name, (its, shape) in held.items():
        if its not in _TYPES:
            raise WeightsError(f"{name} in {home}: {its} is not allowed; it must be of one of {', '.join(_TYPES)}")
        if shape != wanted[name]:
            raise WeightsError(f"{name} in {home}: shape {shape} is not allowed; with these settings it must be {wanted[name]}")
    network: Network = made.from_pretrained(home, use_safetensors=True, **settings).float().eval()
    return network


def _config_in(home: Path) -> dict[str, Any]:
    file = home / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read: {first_line(error)}") from None
    if not isinstance(config, dict):
        raise WeightsError(f"{file} holds no JSON object")
    return config


def _tensors_in(home: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor in the folder."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for file in sorted(home.glob("*.safetensors")):
        try:
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118
                    part = opened.get_slice(name)
                    found[name] = part.get_dtype(), tuple(part.get_shape())
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{file} cannot be read: {first_line(error)}") from None
    if not found:
        raise WeightsError(f"{home} has no *.safetensors file with tensors")
    return found

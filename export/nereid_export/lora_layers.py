"""Plain LoRA in PEFT's names, from tensors to layers (Hu et al., 2021: B A times alpha over rank); knows no model.

What is not plain LoRA is refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from nereid.engines.digests import file_digest
from nereid_export.checkpoint import check_safetensors, read_json
from nereid_export.errors import ExportError

PEFT_FILE, PEFT_CONFIG, PEFT_PREFIX = "adapter_model.safetensors", "adapter_config.json", "base_model.model."
"""What PEFT writes: the weights, the settings beside them, and what every weight's name begins with."""
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_OTHER_KINDS = (
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("dora_scale", "DoRA"),
    ("magnitude_vector", "DoRA"),
    (".oft_", "OFT"),
)
_READ_SETTINGS = ("lora_alpha", "alpha_pattern", "use_rslora")
_INITIAL = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Ways to begin a training that leave the checkpoint's own weights as they are; `pissa`, `olora` and others do not."""
_WITHOUT_EFFECT = (
    *("r", "rank_pattern", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),  # the tensors tell
    *("bias", "lora_bias", "modules_to_save", "target_parameters", "trainable_token_indices"),  # keys of theirs are refused
    *("lora_dropout", "inference_mode", "ensure_weight_tying"),  # of training
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),  # of how it began
    *("task_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version"),
    *("fan_in_fan_out", "megatron_config", "megatron_core", "qalora_group_size", "runtime_config"),
)
"""Settings of PEFT's that change nothing of what is added to a model."""


@dataclass(frozen=True, slots=True, eq=False)
class LoraLayer:
    """`down` is rank x in (x kernel), `up` out x rank (x 1 x 1); their product times `factor` is added to the layer's weight."""

    name: str
    down: Tensor
    up: Tensor
    factor: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def delta(self, shape: torch.Size) -> Tensor:
        """What is added to a weight; raises ValueError where it has another shape."""
        made = (self.up.flatten(1) @ self.down.flatten(1)) * self.factor
        if made.shape[0] != shape[0] or made.numel() != shape.numel() or self.down.shape[2:] not in (shape[2:], ()):
            raise ValueError(f"{tuple(self.up.shape)} and {tuple(self.down.shape)} for a weight of shape {tuple(shape)}")
        return made.view(shape)


def lora_file(option: str, path: Path, names: tuple[str, ...]) -> Path:
    """The whole safetensors file at `path`, or in that folder under one of these names; raises ExportError."""
    if path.is_dir():
        named = [path / name for name in names if (path / name).is_file()]
        if not named:
            raise ExportError(f"{option}: {path} has no {' or '.join(names)}")
        path = named[0]
    if not path.is_file():
        raise ExportError(f"{option}: {path} is not there; it must be a safetensors file or a folder with one")
    if path.suffix != ".safetensors":
        raise ExportError(f"{option}: {path} is not a safetensors file; others can run code when read, and are refused")
    check_safetensors(path)
    return path


def lora_digest(file: Path) -> str:
    """SHA-256 of a file, with its adapter's settings."""
    return f"{file_digest(file)} {json.dumps(peft_config(file), sort_keys=True)}"


def peft_config(file: Path) -> dict[str, Any]:
    """The settings beside an adapter of PEFT's; none where the file is not one."""
    settings = file.with_name(PEFT_CONFIG)
    return read_json(settings) if settings.is_file() and file.name == PEFT_FILE else {}


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors by name, and the file's metadata; raises ExportError for other kinds than LoRA."""
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata() or {}
    for sign, kind in _OTHER_KINDS:
        for name in tensors:
            if sign in name:
                raise ExportError(f"{file}: {name} is of {kind}, which is not supported; it must be LoRA")
    return tensors, metadata


def without_peft_prefix(file: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An adapter of PEFT's own by the model's names, and its settings; raises ExportError where those are not there."""
    config = peft_config(file)
    if not config:
        raise ExportError(
            f"{file}: it is an adapter of PEFT, whose {PEFT_CONFIG} says how much of it is added; it must be "
            f"named {PEFT_FILE} and have that beside it"
        )
    return {name.removeprefix(PEFT_PREFIX): value for name, value in tensors.items()}, config


def paired(
    file: Path,
    tensors: Mapping[str, Tensor],
    alphas: Mapping[str, float],
    settings: Mapping[str, Any],
    *,
    part: str = "",
    scale: float = 1.0,
) -> dict[str, LoraLayer]:
    """By path of the layer; `alphas` stand above those of the `settings`, errors name the `part`. Raises ExportError."""
    _refuse_other_settings(file, settings)
    layers, lead = {}, f"{file}: {part}." if part else f"{file}: "
    for name, down in tensors.items():
        path = name.removesuffix(_DOWN)
        if path == name:
            if name.endswith(_UP) and name.removesuffix(_UP) + _DOWN in tensors:
                continue
            raise ExportError(f"{lead}{name} is not supported, or its counterpart is missing")
        up = tensors.get(path + _UP)
        if up is None:
            raise ExportError(f"{lead}{name} has no counterpart {path}{_UP}")
        rank = down.shape[0] if down.ndim > 1 else 0
        if not rank or up.ndim < 2 or up.shape[1:].numel() != rank:
            raise ExportError(
                f"{lead}{name} of shape {tuple(down.shape)} and its counterpart of shape {tuple(up.shape)} are "
                "not supported; they must have a rank in common"
            )
        alpha = alphas.get(path, of_pattern(settings.get("alpha_pattern"), path, settings.get("lora_alpha", rank)))
        factor = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
        layer = LoraLayer(name, down.float(), up.float(), scale * factor)
        if not (down.is_floating_point() and up.is_floating_point()):
            raise ExportError(f"{lead}{name} is of {down.dtype} and {up.dtype}; both must be floating-point numbers")
        if not (math.isfinite(factor) and layer.down.isfinite().all() and layer.up.isfinite().all()):
            raise ExportError(f"{lead}{name} or its alpha holds NaN or infinite values; weights must be finite")
        layers[path] = layer
    return layers


def _refuse_other_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """What PEFT's adapters and diffusers' metadata may say, and what is not done here."""
    start = settings.get("init_lora_weights")
    start = start.lower() if isinstance(start, str) else start
    if not any(start is allowed or start == allowed for allowed in _INITIAL):
        raise ExportError(
            f"{file}: init_lora_weights {start!r} is not supported, which changes the checkpoint's own weights, too; it "
            "must be plain LoRA, as PEFT's save_pretrained writes it with path_initial_model_for_weight_conversion"
        )
    kind = settings.get("peft_type", "LORA")
    if kind != "LORA":
        raise ExportError(f"{file}: peft_type {kind} is not supported; it must be LORA")
    for name, value in settings.items():
        if value and name not in (*_READ_SETTINGS, *_WITHOUT_EFFECT, "init_lora_weights", "peft_type"):
            raise ExportError(f"{file}: {name} is not supported; it must be plain LoRA")


def of_pattern(pattern: Mapping[str, float] | None, path: str, default: float) -> float:
    """A layer's own alpha or rank, where a pattern is for it: an expression for the end of its path, as PEFT reads it."""
    named = [value for name, value in (pattern or {}).items() if re.match(rf"(.*\.)?({name})$", path)]
    return float(named[0] if named else default)

"""LoRA weights fused into a checkpoint's parts while they are loaded (Hu et al., 2021): W + scale * alpha / rank * B A.

Files of diffusers, PEFT and kohya's scripts are read by diffusers' own converters. What is not plain LoRA, and what does not fit
the checkpoint, is refused by name: fused half, a style is neither there nor missing.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from nereid_export.checkpoint import check_safetensors, file_digest, read_json, understood
from nereid_export.errors import ExportError

FILE_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""Of diffusers' and PEFT's folders."""
LARGEST_SCALE = 10.0
_PEFT_PREFIX, _METADATA = "base_model.model.", "lora_adapter_metadata"
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True)
class Lora:
    """One file, and how much of it is added."""

    file: Path
    scale: float = 1.0

    def __str__(self) -> str:
        return f"{self.file.name}:{self.scale:g}"

    @classmethod
    def parse(cls, text: str) -> Lora:
        """Of `path[:scale]`, where the path is a file or a folder of diffusers or PEFT; raises ExportError."""
        path, scale = Path(text), 1.0
        before, colon, after = text.rpartition(":")
        if colon and not path.exists():
            with contextlib.suppress(ValueError):
                path, scale = Path(before), float(after)
        if not (math.isfinite(scale) and 0 < abs(scale) <= LARGEST_SCALE):
            raise ExportError(f"--lora: scale {scale:g} is not allowed; it must be within {LARGEST_SCALE:g}, and not 0")
        if path.is_dir():
            named = [path / name for name in FILE_NAMES if (path / name).is_file()]
            if not named:
                raise ExportError(f"--lora: {path} has no {' or '.join(FILE_NAMES)}")
            path = named[0]
        if not path.is_file():
            raise ExportError(f"--lora: {path} is not there; it must be a safetensors file or a folder with one")
        if path.suffix != ".safetensors":
            raise ExportError(f"--lora: {path} is not a safetensors file; others can run code when read, and are refused")
        check_safetensors(path)
        return cls(path, scale)

    def digest(self) -> str:
        """SHA-256 of what is fused: the file, its adapter's config and the scale."""
        return f"{file_digest(self.file)} {json.dumps(self._config(), sort_keys=True)} {self.scale!r}"

    def layers(self, unet_config: Mapping[str, Any]) -> dict[str, dict[str, _Layer]]:
        """By component and path of the layer; raises ExportError for what is not plain LoRA."""
        with safe_open(self.file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata() or {}
        self._refuse_other_kinds(tensors)
        with understood(self.file):
            if all(name.startswith(_PEFT_PREFIX) for name in tensors):
                parts, alphas, settings = _of_peft(tensors, self._config())
            else:
                parts, alphas = _of_diffusers(tensors, unet_config)
                settings = _settings(json.loads(metadata.get(_METADATA, "{}")))
            return {
                name: self._paired(name, found, alphas.get(name, {}), settings.get(name, {})) for name, found in parts.items()
            }

    def require_parts(self, unet_config: Mapping[str, Any], parts: Sequence[str]) -> None:
        """See Fused: it is then a LoRA of another family."""
        for part in self.layers(unet_config):
            if part not in parts:
                raise ExportError(f"{self.file}: it is for {part}, which this checkpoint has not; it must be of the same family")

    @torch.no_grad()
    def fuse(self, unet_config: Mapping[str, Any], part: str, module: nn.Module) -> None:
        """See Fused; names the first key that does not fit."""
        for path, layer in self.layers(unet_config).get(part, {}).items():
            try:
                weight = _submodule(module, path).weight
                weight.add_(layer.delta(weight.shape))
            except (AttributeError, ValueError) as error:
                raise ExportError(
                    f"{self.file}: {layer.name} does not fit the checkpoint's {part} ({error}); it must be of the same family"
                ) from None

    def _config(self) -> dict[str, Any]:
        file = self.file.with_name("adapter_config.json")
        return read_json(file) if file.is_file() and self.file.name == FILE_NAMES[1] else {}

    def _refuse_other_kinds(self, tensors: Mapping[str, Tensor]) -> None:
        for sign, kind in (("hada_", "LoHa"), ("lokr_", "LoKr"), ("dora_scale", "DoRA"), ("magnitude_vector", "DoRA")):
            for name in tensors:
                if sign in name:
                    raise ExportError(f"{self.file}: {name} is of {kind}, which is not supported; it must be LoRA")

    def _paired(
        self, part: str, tensors: Mapping[str, Tensor], alphas: Mapping[str, float], settings: Mapping[str, Any]
    ) -> dict[str, _Layer]:
        if settings.get("use_dora"):
            raise ExportError(f"{self.file}: use_dora is not supported; it must be plain LoRA")
        layers = {}
        for name, down in tensors.items():
            path = name.removesuffix(_DOWN)
            if path == name:
                if name.endswith(_UP) and name.removesuffix(_UP) + _DOWN in tensors:
                    continue
                raise ExportError(f"{self.file}: {part}.{name} is not supported, or its counterpart is missing")
            up = tensors.get(path + _UP)
            if up is None:
                raise ExportError(f"{self.file}: {part}.{name} has no counterpart {path}{_UP}")
            rank = down.shape[0]
            alpha = alphas.get(path, _of_pattern(settings.get("alpha_pattern"), path, settings.get("lora_alpha", rank)))
            factor = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
            layers[path] = _Layer(name, down.float(), up.float(), self.scale * factor)
        return layers


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """`down` is rank x in (x kernel), `up` out x rank (x 1 x 1)."""

    name: str
    down: Tensor
    up: Tensor
    factor: float

    def delta(self, shape: torch.Size) -> Tensor:
        """What is added to a weight; raises ValueError where it has another shape."""
        made = (self.up.flatten(1) @ self.down.flatten(1)) * self.factor
        if made.shape[0] != shape[0] or made.numel() != shape.numel() or self.down.shape[2:] not in (shape[2:], ()):
            raise ValueError(f"{tuple(self.up.shape)} and {tuple(self.down.shape)} for a weight of shape {tuple(shape)}")
        return made.view(shape)


def _submodule(module: nn.Module, path: str) -> Any:
    try:
        return module.get_submodule(path)
    except AttributeError:  # transformers 5 holds text models without this level
        return module.get_submodule(path.removeprefix("text_model."))


def _of_diffusers(
    tensors: dict[str, Tensor], unet_config: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, float]]]:
    """Tensors, and alphas where the file has any, by part, in PEFT's names."""
    from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
    from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(tensors, unet_config=SimpleNamespace(**unet_config))
    converted: dict[str, Callable[[Any], Any]] = {
        "unet": convert_unet_state_dict_to_peft,
        "text_encoder": lambda found: convert_state_dict_to_peft(convert_state_dict_to_diffusers(found)),
    }
    parts: dict[str, dict[str, Tensor]] = {}
    scales: dict[str, dict[str, float]] = {}
    for part in sorted({name.partition(".")[0] for name in state}):
        convert = converted.get(part.removesuffix("_2"))
        if convert is None:
            raise ValueError(f"{part} is no part of a pipeline")
        mine = {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}
        parts[part] = convert(mine)
        told = {name.removeprefix(f"{part}."): value for name, value in (alphas or {}).items() if name.startswith(f"{part}.")}
        scales[part] = {_path_of(name): float(value) for name, value in (convert(told) if told else {}).items()}
    return parts, scales


def _path_of(name: str) -> str:
    """The layer that an alpha is for, whose key may still name one of its two matrices."""
    return name.partition(".lora_A")[0].partition(".lora.")[0].removesuffix(".alpha")


def _of_peft(
    tensors: dict[str, Tensor], config: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, float]], dict[str, dict[str, Any]]]:
    """An adapter of PEFT's own, which is of one model."""
    found = {name.removeprefix(_PEFT_PREFIX): value for name, value in tensors.items()}
    part = "unet" if any("_block" in name for name in found) else "text_encoder"
    return {part: found}, {}, {part: dict(config)}


def _settings(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What diffusers writes of adapters (`unet.lora_alpha`), by part."""
    made: dict[str, dict[str, Any]] = {}
    for name, value in metadata.items():
        part, _, setting = name.partition(".")
        made.setdefault(part, {})[setting] = value
    return made


def _of_pattern(pattern: Mapping[str, float] | None, path: str, default: float) -> float:
    """A layer's own alpha, where its name ends with one of the pattern's."""
    named = [value for name, value in (pattern or {}).items() if path == name or path.endswith(f".{name}")]
    return float(named[0] if named else default)

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
from torch import Tensor, nn

from nereid_export.checkpoint import understood
from nereid_export.errors import ExportError
from nereid_export.lora_layers import (
    PEFT_FILE,
    PEFT_PREFIX,
    LoraLayer,
    lora_digest,
    lora_file,
    paired,
    read_tensors,
    without_peft_prefix,
)

FILE_NAMES = ("pytorch_lora_weights.safetensors", PEFT_FILE)
"""Of diffusers' and PEFT's folders."""
LARGEST_SCALE = 10.0
_METADATA = "lora_adapter_metadata"
_UNET = ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block", "up_blocks", "conv_out")
"""What a key begins with where a UNet was saved alone, without the name of its part."""
_KOHYA_PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_KOHYA_ENDS = ("lora_down.weight", "lora_up.weight", "alpha")
_NAMINGS = (("input_blocks", "middle_block", "output_blocks"), ("down_blocks", "mid_block", "up_blocks"))
"""Stability's names of a UNet's blocks, and diffusers': of a file with both, diffusers' converter drops the first silently."""


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
        return cls(lora_file("--lora", path, FILE_NAMES), scale)

    def digest(self) -> str:
        """SHA-256 of what is fused: the file, its adapter's config and the scale."""
        return f"{lora_digest(self.file)} {self.scale!r}"

    def layers(self, unet_config: Mapping[str, Any]) -> dict[str, dict[str, LoraLayer]]:
        """By component and path of the layer; raises ExportError for what is not plain LoRA."""
        tensors, metadata = read_tensors(self.file)
        if all(name.startswith(_KOHYA_PREFIXES) for name in tensors):
            self._refuse_what_converters_drop(tensors)
        with understood(self.file):
            if all(name.startswith(PEFT_PREFIX) for name in tensors):
                found, config = without_peft_prefix(self.file, tensors)
                part = "unet" if any("_block" in name for name in found) else "text_encoder"  # an adapter is of one model
                return {part: paired(self.file, found, {}, config, part=part, scale=self.scale)}
            told = json.loads(metadata.get(_METADATA, "{}"))
            if all(name.partition(".")[0] in _UNET for name in tensors):  # a UNet's own save_lora_adapter, save_attn_procs
                tensors, told = ({f"unet.{name}": value for name, value in its.items()} for its in (tensors, told))
            parts, alphas = _of_diffusers(dict(tensors), unet_config)  # converters take from what they are given
            self._refuse_what_was_lost(tensors, parts)
            settings = _settings(told)
            return {
                part: paired(self.file, its, alphas.get(part, {}), settings.get(part, {}), part=part, scale=self.scale)
                for part, its in parts.items()
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

    def _refuse_what_converters_drop(self, tensors: Mapping[str, Tensor]) -> None:
        """Of kohya's names, which diffusers takes for all that they can mean."""
        for name in tensors:
            if name.partition(".")[2] not in _KOHYA_ENDS:
                raise ExportError(f"{self.file}: {name} is not supported; it must be LoRA")
        named = [next((name for name in tensors if any(block in name for block in naming)), None) for naming in _NAMINGS]
        if None not in named:
            raise ExportError(
                f"{self.file}: {named[0]} and {named[1]} are names of two kinds, and layers could be meant twice; all "
                "must be of one"
            )

    def _refuse_what_was_lost(self, tensors: Mapping[str, Tensor], parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Whatever converters come to: of two names that they take for one layer, the first would be dropped silently."""
        given, left = sum(not name.endswith(".alpha") for name in tensors), sum(map(len, parts.values()))
        if left != given:
            raise ExportError(
                f"{self.file}: {given - left} of its {given} weights are of layers that others are of, too, by other names; all "
                "must be named in one way"
            )


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

    state, alphas, *_ = StableDiffusionLoraLoaderMixin.lora_state_dict(tensors, unet_config=SimpleNamespace(**unet_config))
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


def _settings(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What diffusers writes of adapters (`unet.lora_alpha`), by part."""
    made: dict[str, dict[str, Any]] = {}
    for name, value in metadata.items():
        part, _, setting = name.partition(".")
        made.setdefault(part, {})[setting] = value
    return made

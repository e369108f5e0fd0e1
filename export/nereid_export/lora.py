"""LoRA weights fused into a checkpoint's parts while they are loaded (Hu et al., 2021): W + scale * alpha / rank * B A.

Files of diffusers, PEFT and kohya's scripts are read by diffusers' own converters. What is not plain LoRA, and what does not fit
the checkpoint, is refused by name: fused half, a style is neither there nor missing.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
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
_PEFT_PREFIX, _PEFT_CONFIG, _METADATA = "base_model.model.", "adapter_config.json", "lora_adapter_metadata"
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_UNET = ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block", "up_blocks", "conv_out")
"""What a key begins with where a UNet was saved alone, without the name of its part."""
_KOHYA_PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_KOHYA_ENDS = ("lora_down.weight", "lora_up.weight", "alpha")
_NAMINGS = (("input_blocks", "middle_block", "output_blocks"), ("down_blocks", "mid_block", "up_blocks"))
"""Stability's names of a UNet's blocks, and diffusers': of a file with both, diffusers' converter drops the first silently."""
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
"""Settings of PEFT's that change nothing of what is added to a diffusers model."""


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
                config = self._config()
                if not config:
                    raise ExportError(
                        f"{self.file}: it is an adapter of PEFT, whose {_PEFT_CONFIG} says how much of it is added; it must be "
                        f"named {FILE_NAMES[1]} and have that beside it"
                    )
                parts, alphas, settings = _of_peft(tensors, config)
            else:
                told = json.loads(metadata.get(_METADATA, "{}"))
                if all(name.partition(".")[0] in _UNET for name in tensors):  # a UNet's own save_lora_adapter, save_attn_procs
                    tensors, told = ({f"unet.{name}": value for name, value in its.items()} for its in (tensors, told))
                parts, alphas = _of_diffusers(tensors, unet_config)
                settings = _settings(told)
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
        file = self.file.with_name(_PEFT_CONFIG)
        return read_json(file) if file.is_file() and self.file.name == FILE_NAMES[1] else {}

    def _refuse_other_kinds(self, tensors: Mapping[str, Tensor]) -> None:
        for sign, kind in _OTHER_KINDS:
            for name in tensors:
                if sign in name:
                    raise ExportError(f"{self.file}: {name} is of {kind}, which is not supported; it must be LoRA")
        if all(name.startswith(_KOHYA_PREFIXES) for name in tensors):
            self._refuse_what_converters_drop(tensors)

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

    def _refuse_other_settings(self, settings: Mapping[str, Any]) -> None:
        """What PEFT's adapters and diffusers' metadata may say, and what is not done here."""
        start = settings.get("init_lora_weights")
        start = start.lower() if isinstance(start, str) else start
        if not any(start is allowed or start == allowed for allowed in _INITIAL):
            raise ExportError(
                f"{self.file}: init_lora_weights {start!r} is not supported, which changes the checkpoint's own weights, too; it "
                "must be plain LoRA, as PEFT's save_pretrained writes it with path_initial_model_for_weight_conversion"
            )
        kind = settings.get("peft_type", "LORA")
        if kind != "LORA":
            raise ExportError(f"{self.file}: peft_type {kind} is not supported; it must be LORA")
        for name, value in settings.items():
            if value and name not in (*_READ_SETTINGS, *_WITHOUT_EFFECT, "init_lora_weights", "peft_type"):
                raise ExportError(f"{self.file}: {name} is not supported; it must be plain LoRA")

    def _paired(
        self, part: str, tensors: Mapping[str, Tensor], alphas: Mapping[str, float], settings: Mapping[str, Any]
    ) -> dict[str, _Layer]:
        self._refuse_other_settings(settings)
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
            rank = down.shape[0] if down.ndim > 1 else 0
            if not rank or up.ndim < 2 or up.shape[1:].numel() != rank:
                raise ExportError(
                    f"{self.file}: {part}.{name} of shape {tuple(down.shape)} and its counterpart of shape {tuple(up.shape)} are "
                    "not supported; they must have a rank in common"
                )
            alpha = alphas.get(path, _of_pattern(settings.get("alpha_pattern"), path, settings.get("lora_alpha", rank)))
            factor = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
            layer = _Layer(name, down.float(), up.float(), self.scale * factor)
            if not (down.is_floating_point() and up.is_floating_point()):
                kinds = f"{down.dtype} and {up.dtype}"
                raise ExportError(f"{self.file}: {part}.{name} is of {kinds}; both must be floating-point numbers")
            if not (math.isfinite(factor) and layer.down.isfinite().all() and layer.up.isfinite().all()):
                raise ExportError(f"{self.file}: {part}.{name} or its alpha holds NaN or infinite values; weights must be finite")
            layers[path] = layer
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
    """A layer's own alpha, where a pattern is for it: an expression for the end of its path, as PEFT reads it."""
    named = [value for name, value in (pattern or {}).items() if re.match(rf"(.*\.)?({name})$", path)]
    return float(named[0] if named else default)

"""LoRA adapters of a language model, read from PEFT's folders: which layers they change, and by which matrices; knows no engine.

Adapters of one model are served by one engine: beside every linear layer that any of them changes stands a branch of low rank
with the matrices of all (the idea of S-LoRA and Punica: rows of several adapters share a batch).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nereid_export.checkpoint import understood
from nereid_export.errors import ExportError
from nereid_export.llm_checkpoint import LlmCheckpoint
from nereid_export.lora_layers import (
    PEFT_FILE,
    PEFT_PREFIX,
    LoraLayer,
    lora_digest,
    lora_file,
    of_pattern,
    paired,
    read_tensors,
    without_peft_prefix,
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HEAD, _TABLE = "lm_head", "model.embed_tokens"
_NOT_DONE: tuple[tuple[str, object, str], ...] = (
    ("bias", "none", "whose training changes biases"),
    ("modules_to_save", None, "which are layers trained as a whole"),
    ("trainable_token_indices", None, "which are new embeddings"),
    ("target_parameters", None, "which are no linear layers"),
    ("lora_bias", False, "which adds biases"),
)
"""Settings of PEFT's that change more than linear layers, the value that does not, and what any other means."""


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """What an adapter adds to a layer: `down` is rank x inputs, `up` outputs x rank, its scale included; float32."""

    down: NDArray[np.float32]
    up: NDArray[np.float32]

    @classmethod
    def of(cls, layer: LoraLayer) -> LowRank:
        return cls(layer.down.numpy(), (layer.up * layer.factor).numpy())

    @classmethod
    def joined(cls, parts: Sequence[LowRank]) -> LowRank:
        """The sum of several."""
        return cls(np.concatenate([part.down for part in parts]), np.concatenate([part.up for part in parts], axis=1))

    def cut(self, start: int, stop: int) -> LowRank:
        """For some of the outputs."""
        return LowRank(self.down, self.up[start:stop])

    def placed(self, start: int, outputs: int) -> LowRank:
        """For a layer of so many outputs, of which its own begin at `start`."""
        up = np.zeros((outputs, self.up.shape[1]), np.float32)
        up[start : start + len(self.up)] = self.up
        return LowRank(self.down, up)


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """One linear layer's: what each adapter adds to it, in their order, None where it is left as it is."""

    inputs: int
    outputs: int
    layers: tuple[LowRank | None, ...]

    def stacked(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Adapters + 1 x inputs x rank, and x rank x outputs: the first adds nothing, smaller ranks are filled with zeros."""
        rank = max(len(layer.down) for layer in self.layers if layer is not None)
        down = np.zeros((len(self.layers) + 1, self.inputs, rank), np.float32)
        up = np.zeros((len(self.layers) + 1, rank, self.outputs), np.float32)
        for number, layer in enumerate(self.layers, 1):
            if layer is not None:
                down[number, :, : len(layer.down)] = layer.down.T
                up[number, : len(layer.down)] = layer.up.T
        return down, up

    def side_by_side(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """All ranks x inputs, outputs x all ranks, and whose each rank is, counted from 1."""
        own = [(number, layer) for number, layer in enumerate(self.layers, 1) if layer is not None]
        whole = LowRank.joined([layer for _, layer in own])
        owners = np.repeat([number for number, _ in own], [len(layer.down) for _, layer in own])
        return whole.down, whole.up, owners.astype(np.int64)


Branches = Mapping[str, Branch]
"""By the path of the layer in transformers' model."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter, and the name it is served by."""

    name: str
    file: Path

    @classmethod
    def parse(cls, text: str) -> Adapter:
        """Of `name=path`, where the path is a folder that PEFT has saved; raises ExportError."""
        name, equals, path = text.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise ExportError(
                f"--adapter: {text!r} is not allowed; it must be NAME=FOLDER, and NAME 1 to 64 letters, digits, '.', '_' and '-'"
            )
        return cls(name, lora_file("--adapter", Path(path), (PEFT_FILE,)))

    def digest(self) -> str:
        return lora_digest(self.file)

    def layers(self, checkpoint: LlmCheckpoint) -> dict[str, LowRank]:
        """By path in transformers' model; raises ExportError for what is not plain LoRA, and for what does not fit."""
        tensors, _ = read_tensors(self.file)
        with understood(self.file):
            for name in tensors:
                if not name.startswith(PEFT_PREFIX):
                    raise ExportError(f"{self.file}: {name} is not supported; names of PEFT's begin with {PEFT_PREFIX}")
            found, config = without_peft_prefix(self.file, tensors)
            for setting, nothing, meaning in _NOT_DONE:
                if setting == "bias" and not checkpoint.has_biases():
                    continue  # trained was what there is none of
                if config.get(setting) and config[setting] != nothing:
                    sentence = f"{setting} {config[setting]!r} is not supported, {meaning}"
                    raise ExportError(f"{self.file}: {sentence}; it must be LoRA of linear layers alone")
            layers = paired(self.file, self._without_copies(found, checkpoint), {}, config)
            self._check(layers, config, checkpoint)
        return {path: LowRank.of(layer) for path, layer in layers.items()}

    def _without_copies(self, tensors: Mapping[str, Tensor], checkpoint: LlmCheckpoint) -> dict[str, Tensor]:
        """PEFT saves head and embedding beside an adapter of the head; they must be the checkpoint's own."""
        kept = {}
        for name, value in tensors.items():
            path = name.removesuffix(".weight").removesuffix(".base_layer")
            if not name.endswith(".weight") or path not in (_HEAD, _TABLE):
                kept[name] = value
                continue
            tied = path == _HEAD and (checkpoint.config.get("tie_word_embeddings") or not checkpoint.has(f"{_HEAD}.weight"))
            own = checkpoint.tensor(f"{_TABLE if tied else path}.weight")
            if not torch.equal(own.to(value.dtype), value):
                raise ExportError(f"{self.file}: {name} is not the checkpoint's; embeddings of its own are not supported")
        return kept

    def _check(self, layers: Mapping[str, LoraLayer], config: Mapping[str, Any], checkpoint: LlmCheckpoint) -> None:
        """The file must have what its settings say, and the checkpoint the layers: PEFT leaves out the rest with a warning."""
        shapes = checkpoint.linear_layers()
        for path, layer in layers.items():
            shape = shapes.get(path)
            if shape is None:
                where = f"which {checkpoint.folder.name} has not among its linear layers"
                raise ExportError(f"{self.file}: {layer.name} is for {path}, {where}; it must be an adapter of that checkpoint")
            if (len(layer.up), *layer.down.shape[1:]) != shape:
                made = f"{tuple(layer.up.shape)} and {tuple(layer.down.shape)}"
                raise ExportError(f"{self.file}: {layer.name} does not fit {path}: {made} for a weight of shape {shape}")
            if not _is_targeted(path, config):
                named = f"target_modules {config.get('target_modules')!r}"
                raise ExportError(f"{self.file}: {layer.name} is not among its {named}, and PEFT would leave it out")
            rank = of_pattern(config.get("rank_pattern"), path, config.get("r", layer.rank))
            if layer.rank != rank:
                raise ExportError(f"{self.file}: {layer.name} has rank {layer.rank}, and its settings (r, rank_pattern) {rank:g}")
        missing = [path for path in shapes if path not in layers and _is_targeted(path, config)]
        if missing:
            raise ExportError(f"{self.file} has nothing for {missing[0]}, which is among its target_modules; save it again whole")


def read_branches(checkpoint: LlmCheckpoint, adapters: Sequence[Adapter]) -> dict[str, Branch]:
    """What all adapters add, layer by layer; raises ExportError as Adapter.layers does."""
    read = [adapter.layers(checkpoint) for adapter in adapters]
    shapes = checkpoint.linear_layers() if read else {}
    changed = [path for path in shapes if any(path in layers for layers in read)]
    return {path: Branch(shapes[path][1], shapes[path][0], tuple(layers.get(path) for layers in read)) for path in changed}


def check_adapters(adapters: Sequence[Adapter], model: str) -> None:
    """Raise ExportError for a name that another adapter has, or the model itself."""
    seen: dict[str, str] = {model: "the model's own name"}
    for adapter in adapters:
        if adapter.name in seen:
            raise ExportError(f"--adapter: {adapter.name!r} is not allowed, it is {seen[adapter.name]}; names must differ")
        seen[adapter.name] = "another adapter's name"


def _is_targeted(path: str, config: Mapping[str, Any]) -> bool:
    """Whether an adapter's settings mean this layer, as PEFT reads them."""
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    if excluded and _is_named(path, excluded):
        return False
    if targets == "all-linear":
        return path != _HEAD
    if not targets or not _is_named(path, targets):
        return False
    if isinstance(targets, str) or path in targets:
        return True
    numbers = config.get("layers_to_transform")
    if numbers is None or numbers == []:
        return True
    patterns = config.get("layers_pattern") or r"[^.]*"
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if found := re.match(rf"(?:^|.*?\.){pattern}\.(?P<number>\d+)\.", path):
            return int(found["number"]) in ([numbers] if isinstance(numbers, int) else numbers)
    return False


def _is_named(path: str, names: str | Sequence[str]) -> bool:
    """By an expression for the whole path, or by one of several ends of it."""
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)

"""Opens a local transformers folder of a language model: is every file whole, safe to read, and of a known family?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nereid.engines.digests import file_digest
from nereid_export.chat_templates import templates_of
from nereid_export.checkpoint import check_safetensors, no_weights, read_json, understood
from nereid_export.errors import ExportError

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Phi3ForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "SmolLM3ForCausalLM",
)
"""Families that are exported. Others that onnxruntime-genai's builder knows have not been tried here."""

SHORTEST_CONTEXT = 16
_PHI3_ORIGINAL_CONTEXT = 4096
"""Transformers' default, where config.json does not say it."""


@dataclass(frozen=True, slots=True)
class LlmCheckpoint:
    """A folder that has been looked through and found exportable."""

    folder: Path
    config: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> LlmCheckpoint:
        """Look the folder through without loading weights; raises ExportError with what is wrong."""
        if not folder.is_dir():
            raise ExportError(f"{folder} is not a folder; it must be a local transformers folder")
        config = read_json(folder / "config.json")
        names = config.get("architectures") or []
        if not isinstance(names, list) or len(names) != 1 or names[0] not in ARCHITECTURES:
            shown = ", ".join(map(repr, names)) or "none"
            raise ExportError(
                f"{folder / 'config.json'}: architecture {shown} is not supported; it must be one of {', '.join(ARCHITECTURES)}"
            )
        if config.get("quantization_config"):
            raise ExportError(f"{folder / 'config.json'}: the checkpoint is quantised already; export the original")
        if config.get("use_bidirectional_attention"):
            raise ExportError(
                f"{folder / 'config.json'}: use_bidirectional_attention {config['use_bidirectional_attention']} is not allowed; "
                "a token of a language model sees those before it alone"
            )
        checkpoint = cls(folder, config)
        if not checkpoint.weights:
            raise no_weights(folder)
        for file in checkpoint.weights:
            check_safetensors(file)
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            missing = {name for name in read_json(index).get("weight_map", {}).values() if not (folder / name).is_file()}
            if missing:
                raise ExportError(f"{folder} lacks {', '.join(sorted(missing))}, which {index.name} names")
        if not (folder / "tokenizer.json").is_file():
            raise ExportError(f"{folder} has no tokenizer.json; save the tokenizer with transformers' fast tokenizer first")
        checkpoint._check_settings()
        return checkpoint

    def with_settings(self, changed: Mapping[str, Any], folder: Path) -> Path:
        """The checkpoint with other settings in config.json, made in `folder` where there are any."""
        if not changed:
            return self.folder
        folder.mkdir()
        for file in self.folder.iterdir():
            if file.is_file() and file.name != "config.json":
                (folder / file.name).symlink_to(file.resolve())
        (folder / "config.json").write_text(json.dumps({**self.config, **changed}))
        return folder

    def _check_settings(self) -> None:
        """Everything that is read later on can be read, before anything slow begins."""
        from tokenizers import Tokenizer

        read_json(self.folder / "tokenizer.json")
        for name in ("tokenizer_config.json", "generation_config.json"):
            if (self.folder / name).is_file():
                read_json(self.folder / name)
        templates_of(self.folder)
        with understood(self.folder / "tokenizer.json"):
            Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        with understood(self.folder / "config.json"):
            numbers = ("vocab_size", "hidden_size", "max_position_embeddings", "num_hidden_layers", "num_attention_heads")
            for name in numbers:
                if not isinstance(self.config[name], int) or self.config[name] < 1:
                    raise ExportError(f"{self.folder / 'config.json'}: {name} {self.config[name]!r} must be a whole number")
            if self.head_size < 1 or not all(isinstance(token, int) for token in self.eos_token_ids()):
                raise ExportError(f"{self.folder / 'config.json'}: head_dim or eos_token_id is not a whole number")

    @property
    def weights(self) -> list[Path]:
        """The files that transformers would read; a second copy beside them (consolidated.safetensors) is left out."""
        single, index = self.folder / "model.safetensors", self.folder / "model.safetensors.index.json"
        if single.is_file():
            return [single]
        if index.is_file():
            named = {str(name) for name in read_json(index).get("weight_map", {}).values()}
            return sorted(file for file in self.folder.glob("*.safetensors") if file.name in named)
        return sorted(self.folder.glob("*.safetensors"))

    def weight_bytes(self) -> int:
        """Size of all weights on disk."""
        return sum(file.stat().st_size for file in self.weights)

    def parameters(self) -> int:
        """Number of weights, counted in the files."""
        from math import prod

        from safetensors import safe_open

        total = 0
        for file in self.weights:
            with safe_open(file, framework="np") as opened:
                total += sum(prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
        return total

    def tensor(self, name: str) -> Any:
        """A weight by its name, as PyTorch reads it; raises KeyError where there is none of that name."""
        from safetensors import safe_open

        for file in self.weights:
            with safe_open(file, framework="pt") as opened:
                if name in opened.keys():  # noqa: SIM118
                    return opened.get_tensor(name)
        raise KeyError(name)

    def names(self) -> Iterator[str]:
        """Of all weights."""
        from safetensors import safe_open

        for file in self.weights:
            with safe_open(file, framework="np") as opened:
                yield from opened.keys()

    def has(self, name: str) -> bool:
        return name in self.names()

    def has_biases(self) -> bool:
        return any(name.endswith(".bias") for name in self.names())

    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of every linear layer, by its path in transformers' model; a tied head is one of them."""
        from safetensors import safe_open

        made: dict[str, tuple[int, int]] = {}
        for file in self.weights:
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():  # noqa: SIM118
                    shape = opened.get_slice(name).get_shape()
                    if name.endswith(".weight") and len(shape) == 2:
                        made[name.removesuffix(".weight")] = (int(shape[0]), int(shape[1]))
        table = made.pop("model.embed_tokens", None)
        return made if table is None else {"lm_head": table, **made}

    def active_parameters(self) -> int:
        """Weights that one token is multiplied with: all but the embedding table, which is looked up (unless it is the head)."""
        table = self.config["vocab_size"] * self.config["hidden_size"]
        return self.parameters() - (0 if self.config.get("tie_word_embeddings") else int(table))

    def eos_token_ids(self) -> list[int]:
        """From the generation settings where there are any, else from the model's."""
        settings = self.folder / "generation_config.json"
        found = read_json(settings).get("eos_token_id") if settings.is_file() else None
        found = self.config.get("eos_token_id") if found is None else found
        return [] if found is None else [found] if isinstance(found, int) else list(found)

    @property
    def architecture(self) -> str:
        return str(self.config["architectures"][0])

    @property
    def head_size(self) -> int:
        return int(self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"])

    @property
    def longest_context(self) -> int:
        """Tokens of a sequence that the checkpoint was made for."""
        return int(self.config["max_position_embeddings"])

    @property
    def rope_switch(self) -> int | None:
        """Tokens beyond which LongRoPE rotates every key by other factors, the earliest too; None where it never does."""
        given = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        kinds = ("longrope", "su", "yarn") if self.architecture == "Phi3ForCausalLM" else ("longrope",)
        name = "original_max_position_embeddings"
        switches = [
            int(self.config.get(name) or rope.get(name) or _PHI3_ORIGINAL_CONTEXT)
            for rope in (given, *(by_layer for by_layer in given.values() if isinstance(by_layer, dict)))
            if rope.get("rope_type", rope.get("type")) in kinds
        ]
        return min((switch for switch in switches if switch < self.longest_context), default=None)

    def served_context(self, wanted: int | None) -> int:
        """Tokens that prompt and answer may have; raises ExportError where the engine would not compute what the checkpoint does.

        Keys are cached as they were rotated, so a sequence cannot go on where LongRoPE rotates all of them anew.
        """
        longest, switch = self.longest_context, self.rope_switch
        if wanted is not None and not SHORTEST_CONTEXT <= wanted <= longest:
            raise ExportError(f"--context-length: {wanted} is not allowed; it must be {SHORTEST_CONTEXT} to {longest}")
        if switch is not None and (wanted or longest) > switch:
            raise ExportError(
                f"{self.folder / 'config.json'}: beyond {switch} tokens LongRoPE rotates all keys by other factors, and those in "
                f"the KV cache cannot be; give --context-length {switch} or less"
            )
        return wanted or longest

    @property
    def unlisted_window(self) -> int | None:
        """How far every layer's attention sees back, where config.json does not list it layer by layer (`layer_types`)."""
        listed = "layer_types" in self.config or self.architecture not in ("MistralForCausalLM", "Phi3ForCausalLM")
        return None if listed else self.config.get("sliding_window")

    def digest(self) -> str:
        """SHA-256 over the files that an export reads, names included."""
        total = hashlib.sha256()
        for file in (*self.weights, *sorted(self.folder.glob("*.json")), *sorted(self.folder.glob("*.jinja"))):
            total.update(f"{file.name}\0{file_digest(file)}".encode())
        return total.hexdigest()

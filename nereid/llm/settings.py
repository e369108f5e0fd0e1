"""What one exported language model is, and the limits it is served with; read once, resolved, frozen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nereid.flow.parameters import read_parameters
from nereid.llm.engine import longest_row

LLM_FILE = "llm.json"
"""Where export leaves a model's facts, in its version folder beside tokenizer.json and the engine."""


DRAFT_FOLDER = "draft"
"""Where export leaves a draft model's engine, in the version folder."""

MAY_BE_ZERO = ("max_queue", "prefix_cache_megabytes", "stream_interval_seconds", "threads")

SPECULATIONS = ("none", "ngram", "draft")


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmFacts:
    """Facts of a checkpoint and its engine. Bytes and FLOPs are what one decoded token costs at an empty context."""

    architecture: str
    precision: str
    context_length: int
    vocabulary: int
    eos_token_ids: tuple[int, ...]
    head_size: int
    weight_bytes: int
    flops_per_token: int
    kv_bytes_per_token: int

    @classmethod
    def read(cls, folder: Path) -> LlmFacts:
        """Parse what export wrote."""
        raw = json.loads((folder / LLM_FILE).read_text())
        raw["eos_token_ids"] = tuple(raw["eos_token_ids"])
        return cls(**{name: raw[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmLimits:
    """What one `llm` instance takes on. Every field is a parameter of its config.pbtxt, spelled the same."""

    max_rows: int = 16
    max_queue: int = 128
    kv_tokens: int = 32_768
    prefill_chunk: int = 128
    idle_prefill_chunk: int = 512
    prefix_cache_megabytes: int = 256
    max_input_bytes: int = 1_000_000
    default_timeout_seconds: float = 600.0
    stream_interval_seconds: float = 0.04
    speculation: str = "none"
    speculation_tokens: int = 6
    speculation_rows: int = 2
    threads: int = 0
    batch_invariant: bool = True
    watchdog_seconds: float = 10.0

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> LlmLimits:
        """Read config.pbtxt parameters; raises ValueError naming the one that does not parse or is out of range."""
        limits = read_parameters(cls, parameters, may_be_zero=MAY_BE_ZERO)
        if limits.speculation not in SPECULATIONS:
            raise ValueError(f"parameter speculation: {limits.speculation!r} is not allowed; it must be none, ngram or draft")
        return limits

    def draft_tokens(self, facts: LlmFacts) -> int:
        """Places of a draft model's KV memory: a row as long as any for each sequence that may guess, and the scratch row."""
        return (self.speculation_rows + 1) * longest_row(facts.context_length, self.kv_tokens)

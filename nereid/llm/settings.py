"""What one exported language model is, and the limits it is served with; read once, resolved, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from nereid.engines.engine_files import ENGINE_FILES
from nereid.flow.exported import exported_facts
from nereid.flow.parameters import read_parameters, refused, require_one_of
from nereid.llm.engine import longest_row

LLM_FILE = "llm.json"
"""Where export leaves a model's facts, in its version folder beside tokenizer.json and the engine."""

TOKENIZER_FILE = "tokenizer.json"
DRAFT_FOLDER = "draft"
"""Where export leaves a draft model's engine, in the version folder."""

MAY_BE_ZERO = ("max_queue", "prefix_cache_megabytes", "stream_interval_seconds", "stream_answers_per_second", "threads")

SPECULATIONS = ("none", "ngram", "draft")

KV_CACHE_PRECISIONS = ("fp32", "int8")

SMALLEST_KV_TOKENS = 8
"""Of which a sequence may have a half, two of them as padding: one token of a prompt and one of its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmFacts:
    """Facts of a checkpoint and its engine. Bytes and FLOPs are what one decoded token costs at an empty context.

    `longest_token` is how many characters the longest token of text has; `adapters` are the engine's by name, in its order;
    `embedding_width` is of a token's last hidden state, 0 where the export kept none.
    """

    architecture: str
    precision: str
    context_length: int
    vocabulary: int
    eos_token_ids: tuple[int, ...]
    head_size: int
    weight_bytes: int
    flops_per_token: int
    kv_bytes_per_token: int
    longest_token: int = 512
    adapters: tuple[str, ...] = ()
    embedding_width: int = 0

    @classmethod
    def read(cls, folder: Path) -> LlmFacts:
        """Parse what export wrote; raises ValueError naming the file and what is wrong with it."""
        with exported_facts(folder / LLM_FILE) as raw:
            if missing := [field.name for field in fields(cls) if field.default is MISSING and field.name not in raw]:
                raise KeyError(", ".join(missing))
            kinds = {field.name: field.type for field in fields(cls)}
            return cls(**{name: _typed(name, str(kind), raw[name]) for name, kind in kinds.items() if name in raw})


def _typed(name: str, kind: str, value: object) -> Any:
    """A fact of the right type."""
    if kind.startswith("tuple") and isinstance(value, list):
        item_type = str if kind.startswith("tuple[str") else int
        if all(type(item) is item_type for item in value):
            return tuple(value)
    if (kind == "int" and type(value) is int) or (kind == "str" and isinstance(value, str)):
        return value
    raise ValueError(f"{name} is {value!r}")


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer beside the facts; raises ValueError naming the file where it is not one."""
    file = folder / TOKENIZER_FILE
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises Exception itself
        raise ValueError(f"{file} is no tokenizer that can be read: {error}; export the model again") from None


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
    stream_answers_per_second: float = 0.0
    speculation: str = "none"
    speculation_tokens: int = 6
    speculation_rows: int = 2
    threads: int = 0
    batch_invariant: bool = True
    watchdog_seconds: float = 10.0
    engine: str = "onnxruntime"
    kv_cache_precision: str = "fp32"

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> LlmLimits:
        """Read config.pbtxt parameters; raises ValueError naming the one that does not parse or is out of range."""
        limits = read_parameters(cls, parameters, may_be_zero=MAY_BE_ZERO)
        require_one_of(limits, "speculation", SPECULATIONS)
        require_one_of(limits, "engine", ENGINE_FILES)
        require_one_of(limits, "kv_cache_precision", KV_CACHE_PRECISIONS)
        if limits.kv_tokens < SMALLEST_KV_TOKENS:
            raise refused("kv_tokens", limits.kv_tokens, f"at least {SMALLEST_KV_TOKENS}")
        if limits.kv_cache_precision != "fp32":
            limits._check_rounded_cache()
        return limits

    @property
    def engine_file(self) -> str:
        return ENGINE_FILES[self.engine]

    def _check_rounded_cache(self) -> None:
        """The tokens of a block share a scale, so that what is written later changes what was written before."""
        told = f"parameter kv_cache_precision: {self.kv_cache_precision} is not allowed with"
        if self.engine != "openvino":
            raise ValueError(f"{told} engine {self.engine}; export the model with --engine openvino, or use fp32")
        if self.batch_invariant:
            raise ValueError(f"{told} batch_invariant true: a token is rounded with its neighbours; set one of the two otherwise")

    def draft_tokens(self, facts: LlmFacts, block: int = 1) -> int:
        """Places of a draft model's KV cache: a row as long as any for each sequence that may speculate, and the scratch row.

        Every row is whole blocks.
        """
        longest = longest_row(facts.context_length, self.kv_tokens)
        return (self.speculation_rows + 1) * -(-longest // block) * block

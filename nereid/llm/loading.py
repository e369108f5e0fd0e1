"""Opens an exported model's engine, and the memory over it: the one place of the loop that tells engines apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from nereid.llm.blocks import DraftBlocks, KvBlocks
from nereid.llm.engine import DraftEngine, KvMemory
from nereid.llm.prefix_cache import PrefixCache
from nereid.llm.rows import KvRows
from nereid.llm.settings import DRAFT_FOLDER, LlmFacts, LlmLimits

_BLOCK = 32
"""Tokens of a block of the engines that export writes."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """What the loop computes with; `vocabulary` is how many logits a row has."""

    memory: KvMemory
    vocabulary: int
    draft: DraftEngine | None = None


def load_model(folder: Path, facts: LlmFacts, limits: LlmLimits, gpu: int | None) -> LoadedModel:
    """The model in a version folder; raises ValueError where files, limits and machine do not fit."""
    try:
        return _load_openvino(folder, facts, limits) if limits.engine == "openvino" else _load_onnx(folder, facts, limits, gpu)
    except MemoryError:
        raise ValueError(
            f"parameter kv_tokens: {limits.kv_tokens} with prefix_cache_megabytes {limits.prefix_cache_megabytes} is not "
            f"allowed; the memory does not hold so many tokens of {facts.kv_bytes_per_token} bytes, it must be fewer"
        ) from None


def check_widths(facts: LlmFacts, tokenizer: Tokenizer, vocabulary: int, draft: DraftEngine | None) -> None:
    """Raises ValueError where an engine's logits are not for the model's tokens; a draft model's may differ in padding."""
    if vocabulary != facts.vocabulary:
        raise ValueError(f"the engine has logits for {vocabulary} tokens, and the model has {facts.vocabulary}")
    tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
    if draft is not None and draft.vocabulary < tokens:
        raise ValueError(f"the draft model has logits for {draft.vocabulary} tokens, and the tokenizer has {tokens}")


def _check_adapters(facts: LlmFacts, has_adapters: bool) -> None:
    """One that the engine has not would be answered by the model itself, without a word."""
    if bool(facts.adapters) != has_adapters:
        said = ", ".join(facts.adapters) or "no adapters"
        raise ValueError(
            f"the engine has {'' if has_adapters else 'no '}adapters, and llm.json names {said}; export the model again"
        )


def _check_states(facts: LlmFacts, width: int) -> None:
    """A request for them must not find out."""
    if facts.embedding_width != width:
        raise ValueError(
            f"the engine gives last hidden states of {width} values, and llm.json names {facts.embedding_width}; "
            "export the model again"
        )


def _load_onnx(folder: Path, facts: LlmFacts, limits: LlmLimits, gpu: int | None) -> LoadedModel:
    from nereid.engines.onnx_causal import OnnxCausalEngine

    options: dict[str, Any] = {"threads": limits.threads, "gpu": gpu, "batch_invariant": limits.batch_invariant}
    draft, draft_file = None, folder / DRAFT_FOLDER / limits.engine_file
    if draft_file.is_file():
        draft = OnnxCausalEngine.load(draft_file, tokens=limits.draft_tokens(facts), **options)
    engine = OnnxCausalEngine.load(folder / limits.engine_file, tokens=limits.kv_tokens, **options)
    _check_adapters(facts, engine.has_adapters)
    _check_states(facts, engine.states_width)
    cache = PrefixCache(limits.prefix_cache_megabytes * 2**20)
    return LoadedModel(KvRows(engine, cache, limits.max_rows, facts.context_length), engine.vocabulary, draft)


def _load_openvino(folder: Path, facts: LlmFacts, limits: LlmLimits) -> LoadedModel:
    from nereid.engines.openvino_causal import OpenVinoCausalEngine

    options: dict[str, Any] = {
        "threads": limits.threads,
        "batch_invariant": limits.batch_invariant,
        "kv_cache_precision": limits.kv_cache_precision,
    }
    draft, draft_file = None, folder / DRAFT_FOLDER / limits.engine_file
    if draft_file.is_file():
        tokens = limits.draft_tokens(facts, block=_BLOCK)
        draft = DraftBlocks(OpenVinoCausalEngine.load(draft_file, tokens=tokens, **options))
    cached_bytes = limits.prefix_cache_megabytes * 2**20
    engine = OpenVinoCausalEngine.load(folder / limits.engine_file, tokens=limits.kv_tokens, cached_bytes=cached_bytes, **options)
    _check_adapters(facts, engine.has_adapters)
    _check_states(facts, engine.states_width)
    memory = KvBlocks(engine, limits.kv_tokens, limits.max_rows, facts.context_length, caches=cached_bytes > 0)
    return LoadedModel(memory, engine.vocabulary, draft)

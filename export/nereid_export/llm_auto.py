"""`nereid export llm --engine auto`: every engine that can compute the model is built and timed as the server calls it."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from nereid.llm.engine import Chunk, KvMemory
from nereid.llm.loading import load_model
from nereid.llm.sampling import Sampling
from nereid.llm.sequences import GeneratedSequence
from nereid.llm.settings import LlmFacts, LlmLimits
from nereid.llm.text import TextStream
from nereid_export.choice import Row, pick
from nereid_export.errors import ExportError, first_line
from nereid_export.llm_built import EngineBuilder
from nereid_export.llm_checkpoint import LlmCheckpoint
from nereid_export.llm_options import LlmEngine, LlmExportOptions
from nereid_export.timing import median_milliseconds

_PROMPT_TOKENS = 32
_CALLS = 48
_SECONDS = 1.0
_PLACES = 256
"""Of each row: a prompt, and what the calls append to it."""


def candidates(
    options: LlmExportOptions, parts: Sequence[LlmCheckpoint], builders: Mapping[LlmEngine, EngineBuilder]
) -> tuple[list[LlmEngine], list[Row]]:
    """Engines to build, and rows of those that cannot compute the model here; raises ExportError where none can."""
    if options.engine is not LlmEngine.AUTO:
        for part in parts:
            builders[options.engine].check(part, options)
        return [options.engine], []
    able, refused = [], []
    for engine, builder in builders.items():
        own = replace(options, engine=engine, step_rows=())
        try:
            own.check()
            for part in parts:
                builder.check(part, own)
            able.append(engine)
        except ExportError as error:
            refused.append(dropped(engine, options, error))
    if not able:
        reasons = "; ".join(dict.fromkeys(row.dropped for row in refused))
        raise ExportError(f"--engine auto has no engine for this model here: {reasons}")
    return able, refused


def dropped(engine: LlmEngine, options: LlmExportOptions, error: Exception) -> Row:
    """The row of an engine that was not built."""
    return Row(engine=engine, precision=options.precision, dropped=first_line(error).removesuffix("; nothing was published"))


def measured(engine: LlmEngine, folder: Path, options: LlmExportOptions, figures: Mapping[str, Any]) -> Row:
    """The row of the engine in `folder`, timed at the expected numbers of answers."""
    expected, facts = options.expected_rows, LlmFacts.read(folder)
    row = Row(
        engine=engine,
        precision=options.precision,
        error=figures["logits_error"],
        bytes=figures["engine_bytes"],
        invariant_from=1,
        compared=True,
    )
    limits = LlmLimits(engine=engine, kv_tokens=(max(expected) + 1) * _PLACES, max_rows=max(expected), prefix_cache_megabytes=0)
    try:
        loaded = load_model(folder, facts, limits, None)
        row.milliseconds = {count: round(_milliseconds(loaded.memory, facts, count), 3) for count in expected}
    except Exception as error:  # the engines' have no class in common
        row.dropped = f"it cannot be run here: {first_line(error)}"
    gc.collect()  # engines have threads that wait busily: the next one is timed alone
    return row


def elect(rows: Sequence[Row], expected: Sequence[int]) -> LlmEngine:
    """The engine of least time a token; marks its row. Raises ExportError naming every reason where none is left."""
    try:
        chosen = pick(rows, expected)
    except LookupError as error:
        raise ExportError(f"--engine auto: no engine is left to choose from: {error}") from None
    chosen.chosen = True
    return LlmEngine(chosen.engine)


def _milliseconds(memory: KvMemory, facts: LlmFacts, rows: int) -> float:
    """Of a call that decodes one token of each of so many answers."""
    draw = np.random.default_rng(0)
    answers = [_answer(draw.integers(0, facts.vocabulary, _PROMPT_TOKENS).tolist()) for _ in range(rows)]
    for answer in answers:
        if not memory.begin(answer, _PLACES):
            raise ValueError(f"{rows} answers of {_PLACES} tokens do not fit in the memory")
        memory.run([], [Chunk(answer, answer.prompt)])
        answer.computed = len(answer.prompt)
        memory.join(answer)
        answer.tokens.append(answer.prompt[0])

    def decode() -> None:
        memory.grow()
        memory.run(answers, [])
        for answer in answers:
            answer.computed += 1
            answer.tokens.append(answer.prompt[answer.computed % _PROMPT_TOKENS])

    took = median_milliseconds(decode, _SECONDS, _CALLS)
    for answer in answers:
        memory.release(answer)
    return took


def _answer(prompt: list[int]) -> GeneratedSequence:
    return GeneratedSequence(
        prompt=prompt,
        sampling=Sampling(temperature=0.0),
        max_tokens=_PLACES,
        stop_ids=frozenset(),
        text=TextStream(Tokenizer.from_str('{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}')),
        emit=_unheard,
    )


def _unheard(delta: object) -> None:
    """Nobody listens to an answer that is only timed."""

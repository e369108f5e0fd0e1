"""The loop over real engines, a tiny model on each: tokens are the same whatever happens around a sequence."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_service import answering
from test_worker_deaths import tokens
from tokenizers import Tokenizer

from nereid.llm.loading import LoadedModel, load_model
from nereid.llm.sampling import Sampling
from nereid.llm.scheduler import LlmScheduler
from nereid.llm.sequences import GeneratedSequence
from nereid.llm.service import LlmModel
from nereid.llm.settings import LlmFacts, LlmLimits
from nereid.llm.speculation import DraftModel, DraftProposer, PromptLookup, SpeculationMeter
from nereid.llm.text import TextStream
from nereid.llm.tick import Tick
from nereid_export.llm import LlmEngine

import checkpoints as make
from conftest import export_llm
from waiting import until

pytestmark = pytest.mark.torch

Load = Callable[..., tuple[LoadedModel, LlmFacts, LlmLimits]]


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def load(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Load:
    """The exported model, in int4 and with a draft model, under some limits."""
    pytest.importorskip(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = make.make_llm(folder / "llama", "llama", max_position_embeddings=1024)
    draft = make.make_llm(folder / "qwen3", "qwen3", max_position_embeddings=1024)
    export_llm(checkpoint, folder / "out", "int4", engine=LlmEngine(request.param), draft=draft)
    version = folder / "out" / "llm" / "1"
    limits = LlmLimits(engine=request.param, kv_tokens=4096, max_rows=6, threads=1, prefix_cache_megabytes=0)

    def loaded(**changes: Any) -> tuple[LoadedModel, LlmFacts, LlmLimits]:
        own = replace(limits, **changes)
        facts = LlmFacts.read(version)
        return load_model(version, facts, own, None), facts, own

    loaded.version = version  # type: ignore[attr-defined]
    return loaded


def sequence(prompt: list[int], tokens: int, seed: int, proposer: Any = None) -> GeneratedSequence:
    return GeneratedSequence(
        prompt=prompt,
        sampling=Sampling(temperature=1.0, seed=seed),
        max_tokens=tokens,
        stop_ids=frozenset(),
        text=TextStream(Tokenizer.from_str('{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}')),
        emit=lambda delta: None,
        proposer=proposer,
        meter=SpeculationMeter(4) if proposer is not None else None,
    )


def run(loaded: LoadedModel, limits: LlmLimits, arrivals: list[tuple[int, GeneratedSequence]]) -> list[Tick]:
    ticks: list[Tick] = []
    scheduler = LlmScheduler(loaded.memory, 16, 64, limits.speculation_rows, ticks.append)
    for tick in range(2000):
        scheduler.advance([one for at, one in arrivals if at <= tick and not one.finished])
        if all(one.finished for _, one in arrivals):
            return ticks
    raise AssertionError("some sequences never ended")


def arrivals(count: int = 6, longest: int = 90) -> list[tuple[int, GeneratedSequence]]:
    rng = random.Random(5)
    return [
        (rng.randrange(12), sequence([rng.randrange(3, 250) for _ in range(rng.randrange(1, longest))], 220, seed))
        for seed in range(count)
    ]


def test_tokens_alone_and_among_others_are_the_same(load: Load) -> None:
    """Chunks of prompts beside decoding rows, memory that runs out, prompts known before."""
    alone, crowd, tight, cached, again = (arrivals() for _ in range(5))
    loaded, _, limits = load()
    for _, one in alone:
        run(loaded, limits, [(0, one)])
    ticks = run(loaded, limits, crowd)
    assert any(tick.prompt_tokens and tick.decoded_rows for tick in ticks)
    assert max(tick.decoded_rows for tick in ticks) > 3
    loaded, _, limits = load(kv_tokens=1100)
    lost = sum(tick.preempted for tick in run(loaded, limits, tight))
    loaded, _, limits = load(prefix_cache_megabytes=1)
    run(loaded, limits, cached)
    run(loaded, limits, again)
    assert sum(one.cached_tokens for _, one in again) > 64
    expected = [one.written for _, one in alone]
    for others in (crowd, tight, cached, again):
        assert [one.written for _, one in others] == expected
    assert lost > 0


@pytest.mark.parametrize("kind", ["ngram", "draft"])
def test_speculation_draws_the_same_tokens(load: Load, kind: str) -> None:
    """Several tokens of a row in one call; an answer whose logits were rounded otherwise would still draw the same here."""
    loaded, facts, limits = load()
    assert loaded.draft is not None
    draft = DraftModel(loaded.draft, 2, loaded.draft.tokens // 3, facts.vocabulary, 64)
    prompt = [random.Random(1).randrange(3, 250) for _ in range(30)] * 2
    plain = sequence(prompt, 60, 3)
    run(loaded, limits, [(0, plain)])
    speculated = sequence(prompt, 60, 3, PromptLookup() if kind == "ngram" else DraftProposer(draft))
    ticks = run(loaded, limits, [(0, speculated)])
    assert speculated.written == plain.written
    assert kind == "ngram" or sum(tick.draft_tokens for tick in ticks) > 0


def test_a_worker_that_dies_is_replaced_by_one_that_answers_the_same(load: Load) -> None:
    _, _, limits = load()
    own = replace(limits, stream_interval_seconds=0.0)
    with answering(own, model=LlmModel.read("llm", load.version, own, None)) as ask:  # type: ignore[attr-defined]
        expected = ask(prompt="once upon", max_tokens=150, seed=3).wait()
        assert expected.error is None
        caller = ask(prompt="once upon", max_tokens=150, seed=3, stream=True)
        until(lambda: bool(caller.answers))
        os.kill(ask.service.worker_pid, signal.SIGKILL)  # type: ignore[attr-defined]
        assert caller.wait().error is None
        assert tokens(caller) == tokens(expected)


def test_a_parameter_for_another_engine_than_was_exported_is_refused(load: Load, tmp_path: Path) -> None:
    _, _, limits = load()
    (tmp_path / limits.engine_file).write_bytes(b"")
    other = replace(limits, engine="openvino" if limits.engine == "onnxruntime" else "onnxruntime")
    with pytest.raises(ValueError, match=rf"parameter engine: {other.engine} needs {other.engine_file}, which .* has not"):
        LlmModel.read("llm", tmp_path, other, None)

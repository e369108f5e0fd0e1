"""Embeddings: the mean of a prompt's last hidden states, whatever the chunks, the company and the cache."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from test_requests import FACTS, WORDS, text
from test_scheduler import Make, alone, run, sequence
from test_scheduler import make as make  # its fixture: a scheduler over rows, and one over blocks
from test_service import Ask, Collected, answering

from nereid.flow.errors import CancelledError, ContextLengthError, DeadlineError, EngineError, InvalidRequestError
from nereid.llm.loading import _check_states
from nereid.llm.prompt_means import PromptMean
from nereid.llm.requests import parse_llm_request
from nereid.llm.sequences import Delta, GeneratedSequence
from nereid.llm.service import LlmModel
from nereid.llm.settings import LlmFacts, LlmLimits

from closed_form import WIDTH, mean_of
from waiting import until

PROMPT = [(7 * i) % 43 for i in range(300)]
KEEPS = LlmFacts(**{**asdict(FACTS), "context_length": 2000, "embedding_width": WIDTH})


def embedded(prompt: list[int], adapter: int = 0) -> tuple[GeneratedSequence, list[Delta]]:
    one = sequence(prompt, 0)
    deltas: list[Delta] = []
    one.emit, one.mean, one.adapter = deltas.append, PromptMean(), adapter
    return one, deltas


def embedding(deltas: list[Delta]) -> bytes:
    (only,) = deltas
    assert only.embedding is not None
    return only.embedding.tobytes()


def test_an_embedding_is_the_same_alone_and_in_company_which_is_not_disturbed(make: Make) -> None:
    scheduler, ticks = make(cache=2**20, prefill_chunk=24, idle_prefill_chunk=100)
    one, told = embedded(PROMPT)
    run(scheduler, [(0, one)])
    assert embedding(told) == mean_of(PROMPT).tobytes()
    assert max(tick.prompt_tokens for tick in ticks) == 100
    answers = [sequence(PROMPT[:70], 30), sequence([1, 2, 3], 40), sequence(PROMPT[:90], 20)]
    (first, its), (second, others), (third, last) = embedded(PROMPT), embedded(PROMPT[5:60]), embedded(PROMPT, 1)
    run(scheduler, [(0, answers[0]), (0, answers[1]), (1, first), (1, second), (1, answers[2]), (2, third)])
    assert embedding(its) == embedding(told)
    assert embedding(others) == mean_of(PROMPT[5:60]).tobytes()
    assert embedding(last) == mean_of(PROMPT, 1).tobytes()
    assert [one.written for one in answers] == [alone(one) for one in answers]
    assert scheduler.memory.held == []


def test_short_prompts_share_a_tick(make: Make) -> None:
    scheduler, ticks = make(idle_prefill_chunk=512)
    several = [embedded([place, place + 1, place + 2]) for place in range(8)]
    run(scheduler, [(0, one) for one, _ in several])
    assert [tick.prompt_tokens for tick in ticks] == [24]
    assert [embedding(told) for _, told in several] == [mean_of(one.prompt).tobytes() for one, _ in several]


def test_nothing_of_it_comes_from_the_prefix_cache_or_goes_there(make: Make) -> None:
    scheduler, _ = make(cache=2**20)
    run(scheduler, [(0, sequence(PROMPT, 3))])
    queried = scheduler.memory.prefix_hits
    one, told = embedded(PROMPT)
    run(scheduler, [(0, one)])
    assert embedding(told) == mean_of(PROMPT).tobytes()
    assert scheduler.memory.prefix_hits == queried
    other = PROMPT[100:]
    run(scheduler, [(0, embedded(other)[0])])
    assert scheduler.memory.known(other) == 0


def test_nobody_waits_for_the_blocks_of_a_prompt_that_is_embedded(make: Make) -> None:
    scheduler, ticks = make(cache=2**20)
    (one, _), answer = embedded(PROMPT[:200]), sequence(PROMPT[:200], 2)
    run(scheduler, [(0, one), (0, answer)])
    assert ticks[0].prompt_tokens == 400


def test_a_prompt_that_lost_its_place_is_taken_once() -> None:
    rows = np.random.default_rng(1).standard_normal((5, WIDTH)).astype(np.float32)
    mean, whole = PromptMean(), PromptMean()
    mean.take(0, rows[:3])
    mean.take(0, rows[:2])
    mean.take(2, rows[2:4])
    mean.take(4, rows[4:])
    whole.take(0, rows)
    assert mean.value.tobytes() == whole.value.tobytes()
    np.testing.assert_allclose(whole.value, rows.mean(0), rtol=1e-6)


def test_states_that_are_not_finite_fail_that_request_alone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, _ = make()
    kind = type(scheduler.memory)
    plain = kind.run

    def broken(memory: Any, decoding: Any, chunks: Any) -> Any:
        logits, read = plain(memory, decoding, chunks)
        return logits, [values * np.nan if chunk.states else values for chunk, values in zip(chunks, read, strict=True)]

    monkeypatch.setattr(kind, "run", broken)
    (one, told), answer = embedded(PROMPT[:20]), sequence([1, 2], 5)
    run(scheduler, [(0, one), (0, answer)])
    assert told == []
    assert isinstance(one.error, EngineError)
    assert answer.written == alone(answer)


def test_an_engine_without_states_does_not_stand_in_for_one_with_them() -> None:
    _check_states(KEEPS, WIDTH)
    with pytest.raises(ValueError, match=r"last hidden states of 0 values, and llm\.json names 6; export the model again"):
        _check_states(KEEPS, 0)


# --- what may be asked ---


def parse(facts: LlmFacts = KEEPS, **inputs: np.ndarray) -> Any:
    return parse_llm_request(
        {"text_input": text("w1 w2 w3"), "task": text("embed"), **inputs}, WORDS, facts, LlmLimits(), facts.context_length
    )


def test_a_request_to_embed() -> None:
    made = parse(sampling_parameters=text('{"priority": 9, "add_special_tokens": false}'), stream=np.array([False]))
    assert (made.embeds, made.max_tokens, made.priority, made.outputs) == (True, 0, 9, {"embedding"})
    asks = parse(return_num_input_tokens=np.array([True]))
    assert asks.outputs == {"embedding", "num_input_tokens", "num_cached_tokens"}
    assert not parse(task=text("generate")).embeds


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"task": text("rank")}, "task: 'rank' is not allowed; it must be generate or embed"),
        ({"stream": np.array([True])}, "stream: True is not allowed"),
        ({"max_tokens": np.array([0], np.int32)}, "max_tokens: 0 is not allowed"),
        ({"return_logprobs": np.array([True])}, "return_logprobs: True"),
        ({"sampling_parameters": text('{"temperature": 0}')}, "temperature: 0 is not allowed; it must be absent where the task"),
        ({"sampling_parameters": text('{"prompt_logprobs": 0}')}, "prompt_logprobs: 0"),
        ({"text_input": text("")}, "text_input"),
    ],
)
def test_what_means_nothing_there_is_refused_by_name(inputs: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        parse(**inputs)


def test_a_model_without_states_and_a_prompt_that_is_too_long() -> None:
    with pytest.raises(InvalidRequestError, match=r"task: 'embed' is not allowed; .* exported without --embeddings"):
        parse(FACTS)
    with pytest.raises(ContextLengthError, match="text_input: '2001 tokens' is not allowed"):
        parse(text_input=text("w1 " * 2001))


# --- whole requests ---


@pytest.fixture(scope="module")
def ask() -> Any:
    limits = LlmLimits(max_rows=4, max_queue=8, stream_interval_seconds=0.0)
    model = LlmModel(
        name="llm",
        facts=KEEPS,
        limits=limits,
        tokenizer=WORDS,
        settings={"limits": asdict(limits)},
        fingerprint="closed-form",
        function="closed_form_worker:run",
    )
    with answering(limits, model=model) as made:
        yield made


def embed(ask: Ask, ids: list[int], caller: Collected | None = None, **inputs: np.ndarray) -> Collected:
    caller = caller or Collected()
    told = {"task": text("embed"), "input_ids": np.array(ids, np.int32), "return_num_input_tokens": np.array([True])}
    ask.service.handle({**told, **inputs}, caller)  # type: ignore[attr-defined]
    return caller


def test_an_embedding_is_one_answer_beside_others(ask: Ask) -> None:
    ids = PROMPT[:50]
    crowd = [ask(max_tokens=60) for _ in range(2)]
    made = [embed(ask, ids[place:]) for place in (0, 7)]
    for place, caller in zip((0, 7), made, strict=True):
        (answer,) = caller.wait().answers
        assert answer.keys() == {"embedding", "num_input_tokens", "num_cached_tokens", "system_fingerprint"}
        assert answer["embedding"].tobytes() == mean_of(ids[place:]).tobytes()
        assert (answer["num_input_tokens"][0], answer["num_cached_tokens"][0]) == (50 - place, 0)
    assert all(caller.wait().error is None for caller in crowd)

    def told(name: str) -> float:
        return sum(value for found, value, _ in list(ask.recorded) if found == name)  # type: ignore[attr-defined]

    until(lambda: told("nereid_llm_embedded_tokens_total") >= 93)
    assert told("nereid_llm_embeddings_total") == 2


def test_an_embedding_is_cancelled_and_given_up_as_an_answer_is(ask: Ask) -> None:
    gone = embed(ask, PROMPT * 5, Collected(gone=True)).wait()
    assert isinstance(gone.error, CancelledError)
    late = embed(ask, PROMPT[:50], timeout_seconds=np.array([1e-6], np.float32)).wait()
    assert isinstance(late.error, DeadlineError)
    assert json.dumps(embed(ask, PROMPT[:5]).wait().answers[0]["embedding"].tolist())

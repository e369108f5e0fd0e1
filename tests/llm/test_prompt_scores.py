"""Log probabilities of prompts: the model's own, whatever the chunks, the company and the cache; and answers of no token."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from test_requests import WORDS
from test_scheduler import Make, run, sequence
from test_scheduler import make as make  # its fixture: a scheduler over rows, and one over blocks
from test_service import Ask, answering
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from nereid.llm.prompt_places import places_in_text, places_of_ids
from nereid.llm.prompt_scores import PromptLogprob, ScoredPrompt
from nereid.llm.sampling import log_softmax
from nereid.llm.sequences import Delta, FinishReason, GeneratedSequence
from nereid.llm.settings import LlmLimits

from closed_form import logits_after

PROMPT = [(7 * i) % 43 for i in range(90)]


def expected(prompt: list[int], top: int) -> list[PromptLogprob]:
    """What the model in closed form says of a prompt, all at once."""
    made = []
    for place in range(1, len(prompt)):
        values = log_softmax(logits_after(prompt[:place], 50))
        order = np.argsort(-values, kind="stable")
        rank = int(np.flatnonzero(order == prompt[place])[0]) + 1
        likeliest = tuple((int(token), float(values[token])) for token in order[:top])
        made.append(PromptLogprob(prompt[place], float(values[prompt[place]]), rank, likeliest))
    return made


def scored(prompt: list[int], max_tokens: int = 3, top: int = 2) -> tuple[GeneratedSequence, list[Delta]]:
    one = sequence(prompt, max_tokens)
    deltas: list[Delta] = []
    one.emit, one.scored_prompt = deltas.append, ScoredPrompt(prompt, top, 50)
    return one, deltas


def test_a_prompt_is_scored_as_the_model_does_in_any_chunks_and_company(make: Make) -> None:
    scheduler, _ = make(cache=2**20)
    one, deltas = scored(PROMPT)
    run(scheduler, [(0, sequence(PROMPT[:70], 30)), (0, sequence([1, 2, 3], 40)), (2, one), (3, sequence(PROMPT, 10))])
    assert deltas[0].prompt_logprobs == tuple(expected(PROMPT, 2))
    assert [delta.prompt_logprobs for delta in deltas[1:]] == [None] * (len(deltas) - 1)


def test_a_scored_prompt_draws_the_tokens_of_one_that_is_not(make: Make) -> None:
    scheduler, _ = make(cache=2**20)
    plain, (one, _) = sequence(PROMPT, 20), scored(PROMPT, 20)
    run(scheduler, [(0, plain)])
    run(scheduler, [(0, one)])
    assert one.written == plain.written


def test_what_the_prefix_cache_has_of_a_scored_prompt_is_not_used_and_serves_the_next(make: Make) -> None:
    scheduler, _ = make(cache=2**20)
    (first, told), (second, again), plain = scored(PROMPT), scored(PROMPT), sequence(PROMPT, 3)
    for one in (first, second, plain):
        run(scheduler, [(0, one)])
    assert told[0].prompt_logprobs == again[0].prompt_logprobs == tuple(expected(PROMPT, 2))
    assert (first.cached_tokens, second.cached_tokens) == (0, 0)
    assert plain.cached_tokens > 0


def test_logits_of_no_more_than_a_chunk_are_held(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nereid.llm.prompt_scores.LOGITS_BYTES", 4 * 50 * 40)
    scheduler, _ = make(cache=2**20)
    kept: list[int] = []
    kind = type(scheduler.memory)
    plain = kind.run

    def watched(memory: Any, decoding: Any, chunks: Any) -> Any:
        kept.extend(chunk.keep for chunk in chunks)
        return plain(memory, decoding, chunks)

    monkeypatch.setattr(kind, "run", watched)
    one, deltas = scored(PROMPT)
    run(scheduler, [(0, one), (0, sequence([4, 5], 3))])
    assert max(kept) == 40
    assert deltas[0].prompt_logprobs == tuple(expected(PROMPT, 2))


def test_an_answer_of_no_token_ends_when_its_prompt_is_read(make: Make) -> None:
    scheduler, _ = make(cache=2**20)
    one, deltas = scored(PROMPT, max_tokens=0)
    run(scheduler, [(0, sequence([1, 2], 8)), (0, one)])
    assert [(delta.tokens, delta.finish_reason) for delta in deltas] == [((), FinishReason.LENGTH)]
    assert deltas[0].prompt_logprobs == tuple(expected(PROMPT, 2))
    assert scheduler.memory.decoding == []


def test_a_prompt_that_is_read_again_is_scored_once() -> None:
    scores = ScoredPrompt([1, 2, 3, 4], 1, 50)
    rows = [logits_after([1, 2, 3, 4][: place + 1], 50) for place in range(4)]
    scores.take(0, np.stack(rows[:2]))
    assert not scores.is_complete
    scores.take(0, np.stack(rows[:3]))  # it had lost its place
    scores.take(3, np.stack(rows[3:]))
    assert scores.is_complete
    assert scores.found == expected([1, 2, 3, 4], 1)


@pytest.fixture(scope="module")
def ask() -> Any:
    with answering(LlmLimits(max_rows=4, max_queue=4, stream_interval_seconds=0.0)) as made:
        yield made


def told(answer: Any) -> list[dict[str, Any]]:
    return json.loads(answer["prompt_logprobs"][0])


@pytest.mark.parametrize("stream", [False, True])
def test_the_first_answer_tells_of_the_prompt_and_no_other(ask: Ask, stream: bool) -> None:
    made = ask(prompt="w3 w4 w5", max_tokens=4, stream=stream, n=2, prompt_logprobs=1).wait()
    assert made.error is None
    first, *others = [told(answer) for answer in made.answers if "prompt_logprobs" in answer]
    assert not others
    assert "prompt_logprobs" in made.answers[0]
    assert [(item["token_id"], item["text_offset"]) for item in first] == [(3, 0), (4, 2), (5, 5)]
    assert (first[0]["logprob"], first[0]["rank"], first[0]["top"]) == (None, None, [])
    wanted = expected([3, 4, 5], 1)
    assert [item["rank"] for item in first[1:]] == [item.rank for item in wanted]
    assert [item["logprob"] for item in first[1:]] == [round(item.logprob, 6) for item in wanted]
    assert [item["top"][0]["token_id"] for item in first[1:]] == [item.top[0][0] for item in wanted]


@pytest.mark.parametrize("stream", [False, True])
def test_no_token_is_written_where_none_is_asked_for(ask: Ask, stream: bool) -> None:
    made = ask(prompt="w3 w4 w5", max_tokens=0, stream=stream).wait()
    assert made.error is None
    (answer,) = made.answers
    assert (answer["text_output"][0], answer["finish_reason"][0], answer["output_ids"].tolist()) == (b"", b"length", [])
    assert "prompt_logprobs" not in answer


def tokenizer(decoder: Any, pre: Any) -> Tokenizer:
    made = Tokenizer(models.BPE({"<s>": 0, **{chr(c): i for i, c in enumerate(range(33, 324), 1)}}, []))
    made.pre_tokenizer, made.decoder = pre, decoder
    made.add_special_tokens(["<s>"])
    made.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=True), processors.TemplateProcessing("<s> $A <s>", special_tokens=[("<s>", 0)])]
    )
    return made


def test_tokens_begin_where_their_text_does() -> None:
    bytewise = tokenizer(decoders.ByteLevel(), pre_tokenizers.ByteLevel(add_prefix_space=False))
    text = "a é🦊 <s>b"
    encoding = bytewise.encode(text)
    places = places_in_text(encoding)
    # What the tokenizer adds has no width; the parts of a character begin where it does; what was written is text.
    assert places == (0, 0, 1, 2, 2, 3, 3, 3, 3, 4, 5, 8, 9)
    assert text[places[-2] : places[-1]] == "b"
    assert places_of_ids(encoding.ids, bytewise)[:4] == (0, 3, 4, 5)
    assert places_of_ids([1, 2], WORDS) == (0, 2)

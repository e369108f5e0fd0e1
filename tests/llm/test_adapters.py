"""Adapters in the loop over a model in closed form, whose logits depend on the adapter of every token they have seen."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import pytest
from test_requests import FACTS, LIMITS, WORDS, text
from test_scheduler import Make, make_blocks, make_rows, run, sequence
from test_service import Ask, Collected, answering
from test_worker_deaths import tokens

from nereid.flow.errors import InvalidRequestError
from nereid.flow.metrics import Recorder
from nereid.llm import loading
from nereid.llm.observer import LlmObserver, Peak
from nereid.llm.orders import Order
from nereid.llm.prefix_cache import BLOCK
from nereid.llm.requests import LlmRequest, parse_llm_request
from nereid.llm.sampling import Row, sample
from nereid.llm.sequences import GeneratedSequence
from nereid.llm.service import LlmModel
from nereid.llm.settings import LlmFacts, LlmLimits
from nereid.llm.speculation import DraftModel, DraftProposer

from closed_form import ADAPTED, ClosedFormEngine, logits_after
from waiting import until

PROMPT = [3, 1, 4, 1, 5] * 12
ADAPTERS = ("sql", "poems")


@pytest.fixture(params=["rows", "blocks"])
def make(request: pytest.FixtureRequest) -> Make:
    """The loop over either kind of memory."""
    return make_rows if request.param == "rows" else make_blocks


def adapted(adapter: int, prompt: list[int] = PROMPT, max_tokens: int = 20, **settings: Any) -> GeneratedSequence:
    made = sequence(list(prompt), max_tokens, **{"seed": 3, **settings})
    made.adapter = adapter
    return made


def alone(wanted: GeneratedSequence) -> list[int]:
    """What the model answers by that adapter, without any loop."""
    seen = [token + wanted.adapter * ADAPTED for token in wanted.prompt]
    written: list[int] = []
    while len(written) < wanted.max_tokens and not wanted.stop_ids.intersection(written[-1:]):
        written.append(int(sample(logits_after(seen, 50)[None], [Row(wanted.sampling, len(written))])[0]))
        seen.append(written[-1] + wanted.adapter * ADAPTED)
    return written


# --- the prefix cache ---


@pytest.mark.parametrize("order", [(1, 2), (2, 1), (0, 1), (1, 0)])
def test_a_prompt_never_takes_what_another_adapter_has_computed_of_it(make: Make, order: tuple[int, int]) -> None:
    """The same prompt by two of them, and by the first once more: that one alone is found."""
    scheduler, _ = make(cache=2**20)
    first, second, again = (adapted(number) for number in (*order, order[0]))
    for one in (first, second, again):
        run(scheduler, [(0, one)])
        assert one.written == alone(one)
    assert [first.cached_tokens, second.cached_tokens] == [0, 0]
    assert again.cached_tokens == (len(PROMPT) - 1) // scheduler.memory.prefix_block * scheduler.memory.prefix_block > 0
    assert first.written != second.written


def test_a_finished_answer_is_read_again_by_its_own_adapter(make: Make) -> None:
    scheduler, _ = make(cache=2**20)
    first = adapted(1, PROMPT[:20], 100)
    first.stop_ids = frozenset()
    run(scheduler, [(0, first)])
    while scheduler.rest():
        pass
    for adapter, found in ((2, 0), (1, len(first.tokens) // BLOCK * BLOCK)):
        turn = adapted(adapter, [*first.tokens, 8, 8])
        run(scheduler, [(0, turn)])
        assert turn.cached_tokens == found
        assert turn.written == alone(turn)


def test_a_prompt_does_not_wait_for_what_another_adapter_reads(make: Make) -> None:
    """It waits for its own: there is something to find when that is done."""
    scheduler, ticks = make(cache=2**20)
    first, other, same = adapted(1, PROMPT * 3), adapted(2, PROMPT * 3), adapted(1, PROMPT * 3, seed=4)
    run(scheduler, [(0, first), (0, other), (0, same)])
    assert ticks[0].prompt_tokens == 2 * len(first.prompt)
    assert [one.cached_tokens > 0 for one in (first, other, same)] == [False, False, True]
    assert all(one.written == alone(one) for one in (first, other, same))


# --- the batch ---


def test_answers_of_several_adapters_share_the_batch_and_are_each_as_alone(make: Make) -> None:
    """Where memory runs out, too: what is computed again is computed by the same adapter."""
    for places, cache in ((16_384, 2**16), (2048, 0)):
        scheduler, ticks = make(places, cache=cache)
        arrivals = [(number // 2, adapted(number % 3, PROMPT[: 20 + number], 260, seed=number)) for number in range(8)]
        for _, one in arrivals:
            one.stop_ids = frozenset()
        run(scheduler, arrivals)
        assert max(tick.decoded_rows for tick in ticks) > 2
        assert [one.written for _, one in arrivals] == [alone(one) for _, one in arrivals]
    assert sum(tick.preempted for tick in ticks) > 0


@pytest.mark.parametrize("kind", ["ngram", "draft"])
def test_drafts_change_no_token_of_an_adapters_answer(make: Make, kind: str) -> None:
    """A draft model has no adapters: what it proposes is checked by the row's own."""
    draft = DraftProposer(DraftModel(ClosedFormEngine(4096), 2, 1000, 50, 64)) if kind == "draft" else None
    scheduler, ticks = make()
    one = adapted(1, PROMPT, 200, drafts=4, draft=draft, temperature=0.0)
    one.stop_ids = frozenset()
    run(scheduler, [(0, one)])
    assert one.written == alone(one)
    assert sum(tick.draft_tokens for tick in ticks) > 0


# --- the request ---


FACTS_WITH = replace(FACTS, adapters=ADAPTERS)


def parse(facts: LlmFacts = FACTS_WITH, **sampling: Any) -> LlmRequest:
    inputs = {"text_input": text("w1 w2 w3"), "sampling_parameters": text(json.dumps(sampling))}
    return parse_llm_request(inputs, WORDS, facts, LIMITS, facts.context_length)


def test_an_adapter_is_chosen_by_name_and_none_of_them_is_the_model() -> None:
    assert (parse().adapter, parse(lora_name=None).adapter) == (0, 0)
    assert (parse(lora_name="sql").adapter, parse(lora_name="poems").adapter) == (1, 2)


@pytest.mark.parametrize(
    ("facts", "name", "words"),
    [
        (
            FACTS_WITH,
            "prose",
            "lora_name: 'prose' is not allowed; it must be absent, or one of .* adapters: sql, poems",
        ),
        (FACTS_WITH, "", "lora_name: '' is not allowed"),
        (FACTS, "sql", "lora_name: 'sql' is not allowed; it must be absent: this model has no adapters"),
        (FACTS_WITH, 3, "lora_name: 3 is not allowed; it must be a string"),
    ],
)
def test_a_name_that_is_none_of_them_is_refused_with_those_there_are(facts: LlmFacts, name: object, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        parse(facts, lora_name=name)


def test_the_worker_is_told_of_the_adapter() -> None:
    order = Order.of(parse(lora_name="poems"))
    assert Order.read(order.message(7)).adapter == 2


def test_an_engine_without_the_adapters_that_are_named_is_not_served() -> None:
    with pytest.raises(ValueError, match=r"the engine has no adapters, and llm.json names sql, poems; export the model again"):
        loading._check_adapters(FACTS_WITH, False)
    with pytest.raises(ValueError, match=r"the engine has adapters, and llm.json names no adapters; export the model again"):
        loading._check_adapters(FACTS, True)


# --- the service ---


@contextmanager
def answering_with_adapters() -> Iterator[Ask]:
    limits = LlmLimits(max_rows=4, max_queue=4, stream_interval_seconds=0.0)
    model = LlmModel(
        name="llm",
        facts=replace(FACTS_WITH, context_length=2000),
        limits=limits,
        tokenizer=WORDS,
        settings={"limits": asdict(limits)},
        fingerprint="closed-form",
        function="closed_form_worker:run",
    )
    with answering(limits, model=model) as made:
        yield made


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    with answering_with_adapters() as made:
        yield made


def asked(ask: Ask, name: str | None, **more: Any) -> Collected:
    return ask(prompt="w3 w1 w4 w1 w5 w9 w2 w6", max_tokens=60, seed=3, ignore_eos=True, lora_name=name, **more)


def test_each_adapter_answers_in_its_own_way_together_with_the_others(ask: Ask) -> None:
    callers = [asked(ask, name) for name in (None, "sql", "poems", "sql")]
    said = [tokens(caller.wait()) for caller in callers]
    assert said[1] == said[3]
    assert len({tuple(one) for one in said}) == 3
    for name, one in zip((None, "sql", "poems"), said, strict=False):
        assert tokens(asked(ask, name).wait()) == one


def test_an_answer_goes_on_by_its_adapter_after_its_worker_has_died(ask: Ask) -> None:
    expected = tokens(asked(ask, "sql").wait())
    caller = asked(ask, "sql", stream=True)
    until(lambda: bool(caller.answers))
    os.kill(ask.service.worker_pid, signal.SIGKILL)  # type: ignore[attr-defined]
    assert caller.wait().error is None
    assert tokens(caller) == expected


def test_requests_and_tokens_are_counted_by_adapter() -> None:
    told = ("nereid_llm_adapter_requests_total", "nereid_llm_adapter_generation_tokens_total")
    with answering_with_adapters() as ask:
        assert asked(ask, None).wait().error is None
        assert asked(ask, "poems").wait().error is None
        assert isinstance(ask(prompt="w1", lora_name="prose").wait().error, InvalidRequestError)
    recorded: list[tuple[str, float, str]] = ask.recorded  # type: ignore[attr-defined]
    assert [entry for entry in recorded if entry[0] in told] == [(told[0], 1, "success"), (told[1], 60, "")]
    labels: list[dict[str, str]] = []
    observer = LlmObserver(Recorder(lambda metric, value, given: labels.append(dict(given))), Peak(1.0, 1.0))
    observer.start(FACTS_WITH)
    observer.adapted(2, "success", 60)
    until(lambda: labels == [{"adapter": "poems", "outcome": "success"}, {"adapter": "poems"}])
    observer.stop()

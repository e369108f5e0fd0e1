"""The prefix cache among callers who do not trust each other: what is kept for one salt is found by it alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from test_orders import loop_of
from test_requests import parse, text
from test_scheduler import Make, alone, make_blocks, make_rows, run, sequence
from test_service import Ask, Collected, answering

from nereid.flow.errors import InvalidRequestError
from nereid.llm.orders import Order
from nereid.llm.prefix_cache import BLOCK
from nereid.llm.requests import LlmRequest
from nereid.llm.sequences import GeneratedSequence
from nereid.llm.settings import LlmLimits

PROMPT = [3, 1, 4, 1, 5] * 12
FOUND = (len(PROMPT) - 1) // BLOCK * BLOCK


@pytest.fixture(params=["rows", "blocks"])
def make(request: pytest.FixtureRequest) -> Make:
    """The loop over either kind of memory."""
    return make_rows if request.param == "rows" else make_blocks


def salted(salt: str, prompt: list[int] = PROMPT, max_tokens: int = 20, **settings: Any) -> GeneratedSequence:
    made = sequence(list(prompt), max_tokens, **{"seed": 3, **settings})
    made.cache_salt = salt
    return made


@pytest.mark.parametrize("salts", [("a", "b"), ("", "a"), ("a", ""), ("a", "aa")])
def test_a_prompt_is_found_by_its_salt_alone(make: Make, salts: tuple[str, str]) -> None:
    """Its tokens are the same all the same."""
    scheduler, _ = make(cache=2**20)
    first, second, again, other = (salted(salt) for salt in (*salts, *salts))
    for one in (first, second, again, other):
        run(scheduler, [(0, one)])
        assert one.written == alone(one)
    assert [one.cached_tokens for one in (first, second, again, other)] == [0, 0, FOUND, FOUND]


def test_a_finished_answer_is_read_again_for_its_own_salt(make: Make) -> None:
    scheduler, _ = make(cache=2**20)
    first = salted("a", PROMPT[:20], 100)
    first.stop_ids = frozenset()
    run(scheduler, [(0, first)])
    while scheduler.rest():
        pass
    for salt, found in (("b", 0), ("", 0), ("a", len(first.tokens) // BLOCK * BLOCK)):
        turn = salted(salt, [*first.tokens, 8, 8])
        run(scheduler, [(0, turn)])
        assert turn.cached_tokens == found


def test_a_prompt_does_not_wait_for_what_is_read_for_another_salt(make: Make) -> None:
    """How long it waits would tell whose prompts are alike."""
    scheduler, ticks = make(cache=2**20)
    first, other, same = salted("a", PROMPT * 3), salted("b", PROMPT * 3), salted("a", PROMPT * 3, seed=4)
    run(scheduler, [(0, first), (0, other), (0, same)])
    assert ticks[0].prompt_tokens == 2 * len(first.prompt)
    assert [one.cached_tokens > 0 for one in (first, other, same)] == [False, False, True]


def asked(**sampling: Any) -> LlmRequest:
    return parse(sampling_parameters=text(json.dumps(sampling)))


def test_a_salt_is_a_text_and_null_is_none() -> None:
    assert asked(cache_salt="tenant 1").cache_salt == "tenant 1"
    assert asked().cache_salt == asked(cache_salt=None).cache_salt == ""
    for wrong, shown in (("", "'0 characters'"), ("x" * 257, "'257 characters'"), (3, "3")):
        with pytest.raises(InvalidRequestError, match=f"^cache_salt: {shown} is not allowed; it must be a string of 1 to 256"):
            asked(cache_salt=wrong)


def test_the_worker_is_told_the_salt() -> None:
    order = Order.of(asked(cache_salt="half \ud800"), "id")
    assert Order.read(order.message(7)) == order
    assert loop_of()._sequence(7, order, 0, None).cache_salt == "half \ud800"


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    with answering(LlmLimits(max_rows=4, stream_interval_seconds=0.0, prefix_cache_megabytes=4)) as made:
        yield made


def test_callers_are_told_of_cached_tokens_by_their_salt(ask: Ask) -> None:
    """Through the worker's process, as `num_cached_tokens`."""
    prompt = " ".join(f"w{token}" for token in PROMPT)

    def cached(**more: Any) -> int:
        caller = Collected()
        inputs = {
            "text_input": text(prompt),
            "sampling_parameters": text(json.dumps({"max_tokens": 4, "ignore_eos": True, **more})),
            "return_num_input_tokens": np.array([True]),
        }
        ask.service.handle(inputs, caller)  # type: ignore[attr-defined]
        assert caller.wait().error is None
        return int(caller.answers[0]["num_cached_tokens"][0])

    assert [cached(cache_salt=salt) for salt in ("a", "b", "a", "half \ud800", "half \ud800")] == [0, 0, FOUND, 0, FOUND]
    assert [cached(), cached(), cached(cache_salt="c")] == [0, FOUND, 0]

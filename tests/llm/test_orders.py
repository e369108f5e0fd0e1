"""Orders cross to the worker whole, and a sequence there is what its order says."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from test_requests import FACTS, LIMITS, WORDS, parse, text

from nereid.llm.loading import LoadedModel
from nereid.llm.orders import Order
from nereid.llm.prefix_cache import PrefixCache
from nereid.llm.rows import KvRows
from nereid.llm.worker import LlmLoop

from closed_form import ClosedFormEngine


def loop_of() -> LlmLoop:
    """A worker's loop that tells nobody."""
    engine = ClosedFormEngine(2048)
    seat: Any = SimpleNamespace(channel=SimpleNamespace(send=lambda message: None))
    return LlmLoop(
        seat=seat,
        facts=FACTS,
        limits=LIMITS,
        model=LoadedModel(KvRows(engine, PrefixCache(0), 4, FACTS.context_length), engine.vocabulary),
        tokenizer=WORDS,
        structures=None,
    )


def test_the_priority_of_a_request_is_that_of_its_sequences() -> None:
    request = parse(sampling_parameters=text(json.dumps({"priority": 9, "n": 2, "seed": 1})))
    order = Order.of(request, "id")
    assert Order.read(order.message(7)) == order
    assert [loop_of()._sequence(7, order, index, None).priority for index in range(2)] == [9, 9]

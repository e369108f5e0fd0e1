"""Log probabilities of tokens that the caller names, at each place of an answer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from test_orders import loop_of
from test_requests import WORDS, parse, text
from test_scheduler import make_rows, run, sequence

from nereid.flow.errors import InvalidRequestError
from nereid.llm.orders import Order
from nereid.llm.requests import LlmRequest
from nereid.llm.sampling import log_softmax
from nereid.llm.sequences import Delta
from nereid.llm.tasks import LlmTask
from nereid.llm.text import TokenTexts

from closed_form import logits_after


def asked(**sampling: Any) -> LlmRequest:
    return parse(sampling_parameters=text(json.dumps(sampling)))


@pytest.mark.parametrize("top", [0, 3])
def test_the_named_tokens_are_told_in_their_order_in_the_place_of_the_likeliest(top: int) -> None:
    """Untouched by what bounds the draw, with the drawn token's own beside."""
    deltas: list[Delta] = []
    one = sequence([5, 6, 7], 12, temperature=0.5, frequency_penalty=1.0, seed=2)
    one.scored, one.top_logprobs, one.logprob_token_ids, one.emit = True, top, (40, 3, 9), deltas.append
    one.allowed = np.isin(np.arange(50), [3, 9, 27])
    scheduler, _ = make_rows()
    run(scheduler, [(0, one)])
    seen = [5, 6, 7]
    for delta in deltas:
        (told,) = delta.logprobs
        values = log_softmax(logits_after(seen, 50))
        assert (told.token, told.logprob) == (delta.tokens[0], pytest.approx(float(values[told.token])))
        assert told.top == tuple((token, pytest.approx(float(values[token]))) for token in (40, 3, 9))
        seen += delta.tokens
    assert len(deltas) == 12


def test_a_request_names_tokens_of_the_model_once_each() -> None:
    found = asked(logprob_token_ids=[9, 3, 9])
    assert (found.logprob_token_ids, found.logprobs, found.scored) == ((9, 3), True, True)
    for nothing in (asked(), asked(logprob_token_ids=[]), asked(logprob_token_ids=None)):
        assert (nothing.logprob_token_ids, nothing.logprobs, nothing.scored) == ((), False, False)
    assert asked(logprob_token_ids=[], logprobs=2).top_logprobs == 2


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"logprob_token_ids": [50]}, "logprob_token_ids: 50 is not allowed; it must be token ids 0 to 49"),
        ({"logprob_token_ids": [1] * 129}, "logprob_token_ids: .*129 entries.* at most 128"),
        ({"logprob_token_ids": 3}, "logprob_token_ids: 3 is not allowed; it must be a list of at most 128 token ids"),
        ({"logprob_token_ids": [3], "max_tokens": 0}, "logprob_token_ids: '1 tokens' is not allowed; it must be absent where"),
    ],
)
def test_tokens_that_cannot_be_told_are_refused_by_name(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{words}"):
        asked(**wrong)


def test_the_worker_is_told_which_tokens() -> None:
    order = Order.of(asked(logprob_token_ids=[9, 3]), "id")
    assert Order.read(order.message(7)) == order
    assert loop_of()._sequence(7, order, 0, None).logprob_token_ids == (9, 3)


def test_a_token_of_no_weight_at_all_is_told_as_json_can() -> None:
    """A model may give one minus infinity: those that pad its vocabulary."""
    deltas: list[Delta] = []
    one = sequence([5], 3, temperature=0.0)
    one.scored, one.logprob_token_ids, one.emit = True, (40, 3), deltas.append
    one.raw_logits = logits_after([5], 50)
    one.raw_logits[40] = -np.inf
    one.take(3)
    nobody: Any = None
    told = LlmTask(nobody, nobody, nobody, nobody, TokenTexts(WORDS), answers=[])._logprobs(deltas[0].logprobs)
    (entry,) = json.loads(told, parse_constant=pytest.fail)
    assert [(other["token_id"], other["logprob"]) for other in entry["top"]] == [(40, -9999.0), (3, entry["logprob"])]

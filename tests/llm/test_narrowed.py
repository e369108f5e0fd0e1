"""Answers that may have only some tokens, or not some words, whatever the loop does around them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_orders import loop_of
from test_requests import FACTS, LIMITS, WORDS, parse, text
from test_scheduler import EOS, Make, make_blocks, make_rows, run, sequence
from tokenizers import Tokenizer, models, pre_tokenizers

from nereid.flow.errors import InvalidRequestError
from nereid.llm.bad_words import BadWords, tokens_of_bad_words
from nereid.llm.orders import Order
from nereid.llm.requests import LlmRequest, parse_llm_request
from nereid.llm.sampling import sample
from nereid.llm.sequences import GeneratedSequence

from closed_form import logits_after


@pytest.fixture(params=["rows", "blocks"])
def make(request: pytest.FixtureRequest) -> Make:
    """The loop over either kind of memory."""
    return make_rows if request.param == "rows" else make_blocks


def asked(**sampling: Any) -> LlmRequest:
    return parse(sampling_parameters=text(json.dumps(sampling)))


def only(*tokens: int) -> np.ndarray:
    return np.isin(np.arange(50), tokens)


# --- allowed_token_ids ---


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.5}, {"logit_bias": {30: 100.0}}, {"frequency_penalty": 2.0}]
)
def test_only_the_allowed_tokens_are_drawn(make: Make, settings: dict[str, Any]) -> None:
    scheduler, _ = make()
    bound, free = sequence([5, 6, 7], 40, seed=1, **settings), sequence([5, 6, 7], 40, seed=1, **settings)
    bound.allowed = only(3, 9, 27)
    run(scheduler, [(0, bound), (0, free)])
    assert len(bound.written) == 40, "no end of text is among them"
    assert set(bound.written) <= {3, 9, 27}
    assert len(set(bound.written)) > 1
    assert not set(free.written) <= {3, 9, 27}, "a neighbour is bound by nothing"
    if settings == {"temperature": 0.0}:
        seen = [5, 6, 7]
        for token in bound.written:
            assert token == max((3, 9, 27), key=logits_after(seen, 50).__getitem__)
            seen.append(token)


def test_an_answer_of_allowed_tokens_ends_by_one_of_them_after_min_tokens(make: Make) -> None:
    scheduler, _ = make()
    one = sequence([5], 20, logit_bias={EOS: 100.0})
    one.allowed, one.min_tokens = only(3, EOS), 4
    run(scheduler, [(0, one)])
    assert one.written == [3, 3, 3, 3, EOS]
    stuck = sequence([5], 20)
    stuck.allowed, stuck.min_tokens = only(EOS), 4
    run(scheduler, [(0, stuck)])
    assert str(stuck.error).startswith("min_tokens: 4 is not allowed; it must be at most 0: then the answer can only end")


def test_drafts_are_checked_by_what_is_allowed(make: Make) -> None:
    scheduler, ticks = make()
    plain, drafted = (sequence([3, 9, 27] * 8, 60, drafts=drafts, temperature=0.7, seed=2) for drafts in (0, 4))
    for one in (plain, drafted):
        one.allowed = only(3, 9, 27)
        one.bad_words = BadWords.of([(9, 27, 3)])
        run(scheduler, [(0, one)])
    assert drafted.written == plain.written
    assert sum(tick.draft_tokens for tick in ticks) > 0


class _Bound:
    """A grammar in which only these tokens may follow."""

    kind, vocabulary = "choice", 50

    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens

    def allowed(self) -> np.ndarray:
        return only(*self.tokens)

    def take(self, token: int) -> bool:
        return False


def test_a_grammar_and_allowed_tokens_bind_together() -> None:
    def bound(*tokens: int) -> GeneratedSequence:
        made = sequence([5], 8, temperature=0.0)
        structure: Any = _Bound(3, 9, 27)
        made.structure, made.allowed = structure, only(*tokens)
        return made

    one = bound(9, 30)
    assert int(sample(logits_after([5], 50)[None], [one.next_row()])[0]) == 9
    other = bound(30)
    other.take(int(sample(logits_after([5], 50)[None], [other.next_row()])[0]))
    assert str(other.error) == "allowed_token_ids: no token is allowed after 0 tokens of the answer"


def refused(*formed: int, **bounds: Any) -> str:
    """What is said where nothing can be drawn, by a grammar that allows these."""
    one, structure = sequence([5], 8, temperature=0.0), _Bound(*formed)
    one.structure, one.min_tokens = structure, bounds.pop("min_tokens", 0)
    for name, value in bounds.items():
        setattr(one, name, value)
    one.take(int(sample(logits_after([5], 50)[None], [one.next_row()])[0]))
    return str(one.error)


def test_what_leaves_nothing_is_named_and_min_tokens_only_where_the_answer_could_end() -> None:
    nothing = "no token is allowed after 0 tokens of the answer"
    assert refused(3, EOS, allowed=only(30), min_tokens=2) == f"allowed_token_ids: {nothing}"
    assert refused(3, bad_words=BadWords.of([(3,)]), min_tokens=2) == f"bad_words: {nothing}"
    assert refused(allowed=only(30)) == f"structured_outputs.choice: {nothing}"
    ends = "min_tokens: 2 is not allowed; it must be at most 0: then the answer can only end"
    assert refused(EOS, min_tokens=2) == f"{ends} (structured_outputs.choice)"
    assert refused(3, EOS, allowed=only(EOS), min_tokens=2) == f"{ends} (allowed_token_ids)"
    assert refused(3, EOS, bad_words=BadWords.of([(3,)]), min_tokens=2) == f"{ends} (bad_words)"
    assert refused(3, EOS, bad_words=BadWords.of([(3,), (EOS,)]), min_tokens=2) == f"bad_words: {nothing}"


# --- bad_words ---


def test_a_bad_word_is_never_completed(make: Make) -> None:
    """One of a single token is not drawn at all; of a longer one the last token is not, where the others stand before it."""
    scheduler, _ = make()
    free = sequence([5], 30, seed=7)
    free.stop_ids = frozenset()
    run(scheduler, [(0, free)])
    single, pair = free.written[4], tuple(free.written[10:12])
    bound = sequence([5], 400, seed=7)
    bound.stop_ids, bound.bad_words = frozenset(), BadWords.of([(single,), pair, (1, 2, 3)])
    run(scheduler, [(0, bound)])
    assert bound.written[:4] == free.written[:4]
    assert single not in bound.written
    assert pair not in zip(bound.written, bound.written[1:], strict=False)
    assert {pair[0], pair[1]} <= set(bound.written), "its tokens may stand apart"


def test_what_the_prompt_ends_with_is_no_part_of_a_bad_word(make: Make) -> None:
    """As in vLLM: the answer is what may not have it."""
    scheduler, _ = make()
    one = sequence([5, 6], 2, temperature=0.0, logit_bias={7: 50.0})
    one.bad_words = BadWords.of([(6, 7), (7, 7)])
    run(scheduler, [(0, one)])
    assert one.written[0] == 7
    assert one.written[1] != 7


def test_where_bad_words_leave_nothing_they_are_named(make: Make) -> None:
    scheduler, _ = make()
    one = sequence([5], 3)
    one.bad_words = BadWords.of([(token,) for token in range(50)])
    run(scheduler, [(0, one)])
    assert str(one.error) == "bad_words: no token is allowed after 0 tokens of the answer"


def test_a_bad_word_is_cut_into_tokens_as_it_is_and_behind_a_space() -> None:
    made = Tokenizer(models.WordLevel({"<": 0, "bad": 1, " bad": 2, "very": 4, " very": 5, "o": 60}, unk_token="<"))
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    assert tokens_of_bad_words(["bad", "  bad", "very bad"], made, FACTS) == ((1,), (2,), (4, 2), (5, 2))
    assert tokens_of_bad_words(["w7 w8"], WORDS, FACTS) == ((7, 8),), "the space makes no other tokens"
    for word, words in (("  ", "'  ' is not allowed; it must be a text of at least one token"), ("o", "token ids 0 to 49")):
        with pytest.raises(InvalidRequestError, match=rf"^bad_words\.1: .*{words}"):
            tokens_of_bad_words(["bad", word], made, FACTS)


# --- the request ---


def test_a_request_says_what_its_answers_may_have() -> None:
    found = asked(allowed_token_ids=[7, 3, 7.0, "9"], bad_words=["w7 w8", "w9"])
    assert found.allowed_token_ids == (7, 3, 9)
    assert found.bad_words == ((7, 8), (9,))
    for nothing in (asked(), asked(allowed_token_ids=None, bad_words=[]), asked(bad_words=None)):
        assert (nothing.allowed_token_ids, nothing.bad_words) == ((), ())
    assert asked(bad_words="w9").bad_words == ((9,),)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"allowed_token_ids": []}, "allowed_token_ids: .* it must be a list of 1 to 262144 token ids"),
        ({"allowed_token_ids": [3, 50]}, "allowed_token_ids: 50 is not allowed; it must be token ids 0 to 49"),
        ({"allowed_token_ids": [-1]}, r"allowed_token_ids\.0: -1 is not allowed"),
        ({"allowed_token_ids": [True]}, r"allowed_token_ids\.0: True is not allowed"),
        ({"allowed_token_ids": [0.5]}, r"allowed_token_ids\.0: 0.5 is not allowed"),
        ({"allowed_token_ids": [0] * 262_145}, "allowed_token_ids: .*262145 entries"),
        ({"bad_words": [""]}, r"bad_words\.0: '' is not allowed; it must be a string of 1 to 256 characters"),
        ({"bad_words": ["x"] * 129}, "bad_words: .*129 strings"),
        ({"bad_words": ["w1", "\ud800"]}, r"bad_words\.1: .* it must be Unicode, without half of a surrogate pair"),
        ({"bad_words": ["w1", " "]}, r"bad_words\.1: ' ' is not allowed; it must be a text of at least one token"),
    ],
)
def test_what_says_nothing_of_this_models_tokens_is_refused_by_name(wrong: dict[str, Any], words: str) -> None:
    sent = {"text_input": text("w1"), "sampling_parameters": text(json.dumps(wrong))}
    with pytest.raises(InvalidRequestError, match=f"^{words}"):
        parse_llm_request(sent, WORDS, FACTS, replace(LIMITS, max_input_bytes=2**22), FACTS.context_length)


def test_what_an_answer_may_have_crosses_to_the_worker() -> None:
    order = Order.of(asked(allowed_token_ids=[7, 3], bad_words=["w7 w8"], n=2), "id")
    assert Order.read(order.message(7)) == order
    loop = loop_of()
    loop._begin(7, order, None)
    one, other = loop._tasks[7]
    assert one.allowed is other.allowed
    for made in (one, other):
        assert made.allowed is not None
        assert np.flatnonzero(made.allowed).tolist() == [3, 7]
        assert made.bad_words is not None
        assert made.bad_words.after([1, 7]) == (8,)
    loop._begin(8, Order.of(asked()), None)
    (plain,) = loop._tasks[8]
    assert (plain.allowed, plain.bad_words) == (None, None)

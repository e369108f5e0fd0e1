"""Streams go on where they stopped, wherever they broke and however the replay is cut."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from nereid_client import ImageProgress, ImageResult, LostError, ServerError
from nereid_client.images import from_stream
from nereid_client.transport import Answered, Ended

from scripted import World, answers, delta, draw_stream, fails, image, progress, write_stream

TOKENS = list(range(10, 22))
TEXT = "the quick fox"
DEATH = LostError("llm: its process died")


def cut(seed: int, index: int = 0, logprobs: bool = True) -> list[dict[str, np.ndarray]]:
    """The same answer in pieces of chance; its text lags behind its tokens as chance wants it."""
    chance = random.Random(seed)
    made, token, character = [], 0, 0
    while token < len(TOKENS):
        more = min(chance.randint(1, 4), len(TOKENS) - token)
        last = token + more == len(TOKENS)
        letters = len(TEXT) - character if last else chance.randint(0, max(0, token + more - character))
        said = json.dumps([{"id": item, "logprob": -item / 7} for item in TOKENS[token : token + more]]) if logprobs else None
        made.append(
            delta(
                TOKENS[token : token + more],
                TEXT[character : character + letters],
                "stop" if last else "",
                index,
                said,
                cached=seed,
            )
        )
        token, character = token + more, character + letters
    return made


def told(deltas: list[Any], index: int = 0) -> tuple[Any, ...]:
    mine = [item for item in deltas if item.index == index]
    tokens = [token for item in mine for token in item.token_ids]
    logprobs = [entry["id"] for item in mine for entry in item.logprobs or ()]
    return tokens, "".join(item.text for item in mine), logprobs, [item.finish_reason for item in mine if item.finish_reason]


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("second", range(100, 104))
def test_a_text_broken_after_any_piece_goes_on_without_a_seam(first: int, second: int) -> None:
    pieces = cut(first)
    for broken in range(len(pieces) + 1):
        world = World(fails(DEATH, *pieces[:broken]), answers(*cut(second)))
        assert told(list(write_stream(world, logprobs=1))) == (TOKENS, TEXT, TOKENS, ["stop"]), broken


def test_a_text_that_breaks_twice_goes_on() -> None:
    world = World(fails(DEATH, *cut(1)[:3]), fails(DEATH, *cut(2)[:1]), answers(*cut(3)))
    assert told(list(write_stream(world, logprobs=1))) == (TOKENS, TEXT, TOKENS, ["stop"])


def test_answers_of_one_request_are_told_apart() -> None:
    first = [piece for pair in zip(cut(1, 0), cut(1, 1), strict=True) for piece in pair]
    world = World(fails(DEATH, *first[:5]), answers(*cut(2, 1), *cut(3, 0)))
    deltas = list(write_stream(world, logprobs=1, n=2))
    assert told(deltas, 0) == told(deltas, 1) == (TOKENS, TEXT, TOKENS, ["stop"])


def test_what_was_complete_before_the_connection_broke_is_not_asked_again() -> None:
    world = World(fails(DEATH, *cut(1)))
    assert told(list(write_stream(world, logprobs=1)))[0] == TOKENS


def test_a_stream_that_ends_without_its_last_piece_is_a_death() -> None:
    """A cut connection looks like an end where nobody says how long the answer is."""
    world = World(answers(*cut(1)[:2]), answers(*cut(2)))
    assert told(list(write_stream(world, logprobs=1))) == (TOKENS, TEXT, TOKENS, ["stop"])


@pytest.mark.parametrize(
    ("again", "word"),
    [
        ([delta([10, 99], "ab")], "tokens"),
        ([delta([10, 11], "aX")], "text"),
        ([delta([10, 11], "ab", logprobs='[{"id": 10}, {"id": 99}]')], "logprobs"),
        ([delta([10], "a", "stop", logprobs='[{"id": 10}]')], "end"),
    ],
)
def test_a_replay_that_differs_is_an_error_that_says_so(again: list[dict[str, np.ndarray]], word: str) -> None:
    world = World(fails(DEATH, delta([10, 11], "ab", logprobs='[{"id": 10}, {"id": 11}]')), answers(*again))
    with pytest.raises(ServerError, match=f"differs in its {word}"):
        list(write_stream(world, logprobs=1))


@pytest.mark.parametrize("again", [[delta([10, 11], "ab", "length")], [delta([10, 11, 12], "abc")]])
def test_an_answer_that_had_ended_ends_the_same_way(again: list[dict[str, np.ndarray]]) -> None:
    world = World(fails(DEATH, delta([10, 11], "ab", "stop")), answers(*again))
    with pytest.raises(ServerError, match="differs in its end"):
        list(write_stream(world, n=2))


def test_cached_tokens_may_differ() -> None:
    world = World(fails(DEATH, delta([10], "a", cached=0)), answers(delta([10, 11], "ab", "stop", cached=64)))
    assert [item.text for item in write_stream(world)] == ["a", "b"]


@pytest.mark.parametrize("broken", range(4))
def test_progress_is_shown_once(broken: int) -> None:
    steps = [progress(step, 3) for step in (1, 2, 3)]
    world = World(fails(DEATH, *steps[:broken]), answers(*steps, image()))
    shown = list(draw_stream(world))
    assert [item.step for item in shown if isinstance(item, ImageProgress)] == [1, 2, 3]
    assert isinstance(shown[-1], ImageResult)


def test_two_answers_where_one_was_asked_for_are_an_error() -> None:
    from nereid_client.session import Session

    world = World([(0.0, Answered(image())), (0.0, Answered(image())), (0.0, Ended())])
    work, reader = Session(transport=world)._image("a box", {}, None, None)
    with pytest.raises(ServerError, match="second"):
        list(world.drive(work, reader))


def test_a_preview_says_how_many_pixels_of_the_picture_one_of_its_own_is() -> None:
    small, whole = progress(1, 4), {**progress(2, 4), "preview_scale": np.array([1], np.int32)}
    shown = [from_stream(outputs) for outputs in (small, whole)]
    assert [answer.preview_scale for answer in shown if isinstance(answer, ImageProgress)] == [8, 1]

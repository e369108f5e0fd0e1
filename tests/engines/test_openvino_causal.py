"""The engine in blocks, without a model: how calls are put together, padded and split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("openvino")

from nereid.engines.kv_blocks import SCRATCH, Piece
from nereid.engines.openvino_causal import LARGEST_CALL, OpenVinoCausalEngine


class Recorded:
    """Keeps what it is fed; a row's logits are its token and place, one more in calls of over `most` tokens."""

    def __init__(self, most: int = 10_000) -> None:
        self.most = most
        self.calls: list[dict[str, NDArray]] = []

    def infer(self, feeds: dict[str, NDArray], **_: object) -> dict[str, NDArray]:
        self.calls.append(feeds)
        kept = feeds["logits_to_keep"]
        logits = np.stack([feeds["input_ids"][kept], feeds["position_ids"][kept]], axis=1).astype(np.float32)
        return {"logits": logits + np.float32(len(feeds["input_ids"]) > self.most)}


def engine_of(request: Recorded, **options: Any) -> OpenVinoCausalEngine:
    return OpenVinoCausalEngine(request, blocks=40, block_size=32, block_bytes=1, vocabulary=50, **options)


def lists(feeds: dict[str, NDArray], *names: str) -> list[Any]:
    return [feeds[name].tolist() for name in names]


def test_sequences_of_any_length_are_one_call() -> None:
    request = Recorded()
    pieces = [Piece((3, 5), 40, [7], decoded=True), Piece((9, 2, 4), 30, [1, 2, 3, 4], keep=2), Piece((6,), 0, [8, 9])]
    logits = engine_of(request).run(pieces)
    assert logits.tolist() == [[7, 40], [3, 32], [4, 33], [9, 1]]
    (feeds,) = request.calls
    assert lists(feeds, "input_ids", "position_ids") == [[7, 1, 2, 3, 4, 8, 9], [40, 30, 31, 32, 33, 0, 1]]
    assert lists(feeds, "past_lens", "subsequence_begins") == [[40, 30, 0], [0, 1, 5, 7]]
    assert lists(feeds, "block_indices", "block_indices_begins") == [[3, 5, 9, 2, 6], [0, 2, 4, 5]]
    assert feeds["max_context_len"] == 41


def test_a_lone_row_has_a_companion_and_a_lone_token_of_a_prompt_one_behind_it() -> None:
    request = Recorded()
    engine = engine_of(request)
    assert engine.run([Piece((3,), 4, [7], decoded=True)]).tolist() == [[7, 4]]
    assert lists(request.calls[-1], "input_ids", "block_indices", "past_lens") == [[7, 0], [3, SCRATCH], [4, 0]]
    assert engine.run([Piece((3,), 4, [7])]).tolist() == [[7, 4]]
    assert lists(request.calls[-1], "input_ids", "position_ids", "subsequence_begins") == [[7, 0], [4, 5], [0, 2]]
    assert [len(feeds["logits_to_keep"]) for feeds in request.calls] == [2, 2]
    quick = engine_of(request, batch_invariant=False)
    for decoded in (True, False):
        assert quick.run([Piece((3,), 4, [7], decoded=decoded)]).tolist() == [[7, 4]]
        assert lists(request.calls[-1], "input_ids", "logits_to_keep") == [[7], [0]]


def test_fewer_rows_than_threads_have_a_companion_of_two_tokens() -> None:
    """Attention has another kernel for fewer sequences than threads, unless one of them has several tokens."""
    request = Recorded()
    engine = engine_of(request, threads=4)
    rows = [Piece((row,), 4, [row], decoded=True) for row in range(1, 6)]
    for count in (1, 2, 3):
        assert engine.run(rows[:count]).tolist() == [[row, 4] for row in range(1, count + 1)]
        assert lists(request.calls[-1], "subsequence_begins") == [[*range(count + 1), count + 2]]
        assert request.calls[-1]["block_indices"].tolist()[-1] == SCRATCH
    for pieces in (rows[:4], rows, [rows[0], Piece((9,), 0, [1, 2])], [rows[0], Piece((9,), 0, [1])]):
        engine.run(pieces)
        assert SCRATCH not in request.calls[-1]["block_indices"]
    engine_of(request, threads=4, batch_invariant=False).run(rows[:2])
    assert SCRATCH not in request.calls[-1]["block_indices"]


@pytest.mark.parametrize("most", [4, 5, 16, 33])
def test_what_is_more_than_a_call_may_have_is_several_calls(most: int) -> None:
    request = Recorded()
    engine = engine_of(request, call_tokens=most)
    rows = [Piece((row,), 8, [row], decoded=True) for row in range(1, 8)]
    pieces = [*rows, Piece((9, 10), 3, list(range(40)), keep=11), Piece((11,), 0, [5])]
    expected = [[row, 8] for row in range(1, 8)] + [[token, token + 3] for token in range(29, 40)] + [[5, 0]]
    assert engine.run(pieces).tolist() == expected
    assert max(len(feeds["input_ids"]) for feeds in request.calls) <= most
    assert len(request.calls) == -(-49 // most)


@pytest.mark.parametrize(("most", "found"), [(3, 4), (64, 64), (80, 64), (127, 64), (10_000, LARGEST_CALL)])
def test_how_large_a_call_may_be_is_found_by_trying(most: int, found: int) -> None:
    assert engine_of(Recorded(most))._largest_call() == found


def test_a_table_that_is_too_short_is_an_error() -> None:
    with pytest.raises(ValueError, match="a sequence of 33 tokens needs 2 blocks, and its table has 1"):
        engine_of(Recorded()).run([Piece((3,), 31, [1, 2])])


def test_nothing_need_be_kept_of_a_chunk() -> None:
    pieces: Sequence[Piece] = [Piece((3,), 0, [1, 2, 3], keep=0)]
    assert engine_of(Recorded()).run(pieces).shape == (0, 2)

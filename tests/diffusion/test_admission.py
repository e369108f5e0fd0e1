"""Places asked for in bursts: a full queue is asked once for all who had come by then, streams have places of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from nereid.diffusion.admission import Admission
from nereid.diffusion.streaming import StreamPlaces
from nereid.flow.errors import InvalidRequestError, QueueFullError, RequestError


class Denoise:
    """Answers as it is told, and counts who asks; its answers take a second."""

    def __init__(self) -> None:
        self.error: RequestError | None = None
        self.asked = 0
        self.now = 0.0

    def __call__(self, name: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        self.asked += 1
        self.now += 1.0
        if self.error is not None:
            raise self.error
        return {}


def test_who_had_come_before_the_queue_was_full_is_refused_with_it_and_later_ones_ask_again() -> None:
    denoise = Denoise()
    admission = Admission("denoise", denoise, lambda: denoise.now)
    denoise.error = QueueFullError("queue: 64 requests wait already; at most 64 may")
    for arrived in (0.0, 0.5, 1.0):
        with pytest.raises(QueueFullError, match="64 requests wait"):
            admission.take({}, 1, arrived)
    assert denoise.asked == 1
    denoise.error = None
    assert admission.take({}, 2, 1.1).shape == (2, 1)
    assert denoise.asked == 2


def test_a_mistake_of_one_request_says_nothing_of_others() -> None:
    denoise = Denoise()
    admission = Admission("denoise", denoise, lambda: denoise.now)
    denoise.error = InvalidRequestError("seed: -1 is not allowed", "seed")
    for _ in range(2):
        with pytest.raises(InvalidRequestError):
            admission.take({}, 1, 0.0)
    assert denoise.asked == 2


def test_a_stream_beyond_the_last_place_is_refused_until_one_ends() -> None:
    places = StreamPlaces(2)
    places.take()
    places.take()
    with pytest.raises(QueueFullError, match="at most 2 may be"):
        places.take()
    places.give_back()
    places.take()

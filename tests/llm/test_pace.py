"""The time between two answers of a stream: a floor, and a bound on what all streams together may cost."""

from __future__ import annotations

import pytest

from nereid.engines.processors import available_processors
from nereid.llm.pace import ANSWERS_PER_PROCESSOR, StreamPace


def after(pace: StreamPace, streams: int) -> float:
    for _ in range(streams):
        pace.begin(1)
    return pace.seconds


@pytest.mark.parametrize(("streams", "seconds"), [(0, 0.04), (1, 0.04), (4, 0.04), (8, 0.08), (16, 0.16)])
def test_streams_share_the_answers_that_all_may_have(streams: int, seconds: float) -> None:
    assert after(StreamPace(0.04, 100.0), streams) == pytest.approx(seconds)


def test_a_stream_counts_as_often_as_it_has_rows() -> None:
    pace = StreamPace(0.04, 100.0)
    pace.begin(16)
    assert pace.seconds == pytest.approx(0.16)


def test_a_stream_that_has_ended_gives_its_share_back() -> None:
    pace = StreamPace(0.04, 100.0)
    assert after(pace, 20) == pytest.approx(0.2)
    for _ in range(20):
        pace.end(1)
    assert pace.seconds == 0.04


def test_without_a_least_time_every_token_is_answered_by_itself() -> None:
    assert after(StreamPace(0.0, 1.0), 50) == 0.0


def test_the_bound_follows_the_processors_where_none_is_given() -> None:
    assert after(StreamPace(0.001), 1000) == pytest.approx(1000 / (ANSWERS_PER_PROCESSOR * available_processors()))

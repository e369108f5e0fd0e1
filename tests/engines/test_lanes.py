"""Which lane goes next and how many rows it takes, with costs that are known."""

from __future__ import annotations

import math

import pytest

from nereid.engines.lanes import Candidate, FairClock, order, rows_to_take


def served(costs: dict[str, float], calls: int) -> list[str]:
    """Who goes when all lanes always want to."""
    clock: FairClock[str] = FairClock()
    taken = []
    for _ in range(calls):
        lane = clock.next(costs)
        clock.charge(lane, costs[lane])
        taken.append(lane)
    return taken


def test_lanes_share_time_and_not_calls() -> None:
    taken = served({"large": 1.0, "small": 0.1}, 110)
    assert taken.count("small") == pytest.approx(10 * taken.count("large"), rel=0.15)


def test_a_small_lane_that_arrives_in_a_large_step_waits_for_that_step_alone() -> None:
    clock: FairClock[str] = FairClock()
    clock.charge("large", 8.0)  # its step is under way
    taken = []
    for _ in range(40):
        lane = clock.next(["large", "small"])
        clock.charge(lane, 8.0 if lane == "large" else 0.1)
        taken.append(lane)
    assert taken == ["small"] * 40


def test_a_lane_that_was_away_does_not_save_its_time_up() -> None:
    clock: FairClock[str] = FairClock()
    for _ in range(100):
        clock.charge("busy", 1.0)
    clock.forget(["busy"])
    taken = []
    for _ in range(10):
        lane = clock.next(["busy", "back"])
        clock.charge(lane, 1.0)
        taken.append(lane)
    assert taken.count("busy") >= 4


def line(fixed: float, each: float) -> object:
    return lambda rows: fixed + each * rows


def test_all_go_while_nothing_is_known_of_costs() -> None:
    assert rows_to_take([Candidate(5, 1)] * 6, [], 4, lambda rows: math.nan, 0.0) == 4


def test_small_calls_where_they_save_somebodys_due_time_and_large_ones_where_nobody_can_be_saved() -> None:
    """A row costs the same in any company: taken one by one, the first end in time; all at once, none does."""
    seconds = line(0.0, 0.1)
    urgent = [Candidate(10, 1, due=1.5)] * 4
    assert rows_to_take(urgent, [], 16, seconds, 0.0) == 1  # type: ignore[arg-type]
    late = [Candidate(10, 1, due=0.5)] * 4
    assert rows_to_take(late, [], 16, seconds, 0.0) == 4  # type: ignore[arg-type]
    easy = [Candidate(10, 1, due=100.0)] * 4
    assert rows_to_take(easy, [], 16, seconds, 0.0) == 4  # type: ignore[arg-type]


def test_those_who_wait_press_for_large_calls() -> None:
    """With a fixed part, large calls are cheaper a row: small ones would save one here and lose three who wait."""
    seconds = line(0.2, 0.01)
    active = [Candidate(10, 1, due=2.2)] * 2
    waiting = [Candidate(10, 1, due=4.6)] * 2
    assert rows_to_take(active, waiting, 16, seconds, 0.0) == 2  # type: ignore[arg-type]


def test_guided_rows_count_twice_and_one_always_goes() -> None:
    pairs = [Candidate(5, 2)] * 3
    assert rows_to_take(pairs, [], 4, line(0.1, 0.1), 0.0) == 2  # type: ignore[arg-type]
    assert rows_to_take(pairs, [], 1, line(0.1, 0.1), 0.0) == 1  # type: ignore[arg-type]


def test_fewest_steps_left_go_first_and_none_starves() -> None:
    assert order([Candidate(9, 1), Candidate(3, 1), Candidate(5, 1)]) == [1, 2, 0]
    assert order([Candidate(20, 1, passed_over=72), Candidate(3, 1)]) == [0, 1]

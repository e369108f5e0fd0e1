"""Which lane goes next and how many rows it takes, with costs that are known."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest

from nereid.engines.costs import StepCosts
from nereid.engines.lanes import PATIENCE, CallSizes, Candidate, FairClock, is_late, order, rows_for_the_best, rows_to_take


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


@dataclass(eq=False)
class Row:
    """A request of the simulation, with 60 ms a step for a goal."""

    arrival: float
    left: int
    passed_over: int = 0
    ended: float = math.inf

    def __post_init__(self) -> None:
        self.due = self.arrival + 0.06 * self.left

    def candidate(self, now: float, step: float) -> Candidate:
        late = is_late(self.due - now, self.left, step, self.passed_over)
        return Candidate(self.left, 2, self.due, self.passed_over, late=late)

    def step(self, now: float, *, taken: bool) -> None:
        self.left -= taken
        self.passed_over += not taken
        if not self.left:
            self.ended = now


def line(fixed: float, each: float) -> object:
    return lambda rows: fixed + each * rows


def test_all_go_while_nothing_is_known_of_costs() -> None:
    assert rows_to_take([Candidate(5, 1)] * 6, [], 4, lambda rows: math.nan, 0.0) == 4


def test_a_size_that_was_never_called_is_not_guessed_at() -> None:
    """A request alone has made calls of two rows; guessed from these, eight images one by one would look as cheap a row."""
    costs = StepCosts()
    for _ in range(30):
        costs.learn("unet", 2, 0.04)
    images = [Candidate(10, 2, due=0.5)] * 8
    assert rows_to_take(images, [], 16, lambda rows: costs.predict("unet", rows), 0.0) == 1
    assert rows_to_take(images, [], 16, lambda rows: costs.known("unet", rows), 0.0) == 8
    costs.learn("unet", 16, 0.1)
    assert rows_to_take(images, [], 16, lambda rows: costs.known("unet", rows), 0.0) == 8


def test_a_large_call_that_was_delayed_by_chance_is_tried_again() -> None:
    """Costs learned from what is called, where rows are really cheaper together: the truth is found, and kept to."""
    costs, sizes, taken = StepCosts(), CallSizes[str](), []
    for rows, seconds in ((2, 0.02), (16, 0.4)):
        costs.learn("unet", rows, seconds)
    for _ in range(200):
        images = [Candidate(10, 2, due=0.6)] * 8
        taken.append(sizes.take("unet", images, [], 16, lambda rows: costs.known("unet", rows), 0.0))
        costs.learn("unet", 2 * taken[-1], 0.02 + 0.005 * 2 * taken[-1])
    assert taken[0] == 1
    assert taken[-100:] == [8] * 100


def test_calls_whose_cost_nobody_knows_begin_with_one_image_and_grow_to_twice_as_many_until_it_is_known() -> None:
    """Everybody else waits for a call, and one of sixteen large pictures may take minutes."""
    costs, sizes, taken = StepCosts(), CallSizes[str](), []
    images = [Candidate(10, 2)] * 8
    for _ in range(4):
        taken.append(sizes.take("large", images, [], 16, lambda rows: costs.known("large", rows), 0.0))
        costs.learn("large", 2 * taken[-1], 0.1 * taken[-1])
    assert taken == [1, 2, 8, 8]
    assert sizes.take("other", images, [], 16, lambda rows: costs.known("other", rows), 0.0) == 1
    deaf = [sizes.take("lost", images, [], 16, lambda rows: math.nan, 0.0) for _ in range(4)]
    assert deaf == [1, 2, 4, 8]


def test_small_calls_where_they_save_somebodys_due_time_and_large_ones_where_nobody_can_be_saved() -> None:
    """A row costs the same in any company: taken one by one, the first end in time; all at once, none does."""
    seconds = line(0.0, 0.1)
    urgent = [Candidate(10, 1, due=1.5)] * 4
    assert rows_to_take(urgent, [], 16, seconds, 0.0) == 1  # type: ignore[arg-type]
    late = [Candidate(10, 1, due=0.5)] * 4
    assert rows_to_take(late, [], 16, seconds, 0.0) == 4  # type: ignore[arg-type]
    easy = [Candidate(10, 1, due=100.0)] * 4
    assert rows_to_take(easy, [], 16, seconds, 0.0) == 4  # type: ignore[arg-type]


def test_rows_that_are_cheaper_together_go_together_even_where_one_alone_would_be_in_time() -> None:
    """0.07 s for one and 0.16 s for four: saving the first so would cost everybody else a third of the engine."""
    urgent = [Candidate(10, 1, due=0.8)] * 4
    assert rows_to_take(urgent, [], 16, line(0.04, 0.03), 0.0) == 4  # type: ignore[arg-type]
    assert rows_to_take(urgent, [], 16, line(0.001, 0.03), 0.0) == 2  # type: ignore[arg-type]


def test_those_who_wait_press_for_large_calls() -> None:
    """One at a time saves the first; calls of two, which end a little sooner, save two of those who wait instead."""
    seconds = line(0.01, 0.3)
    active = [Candidate(10, 1, due=3.5)] * 2
    assert rows_to_take(active, [], 16, seconds, 0.0) == 1  # type: ignore[arg-type]
    waiting = [Candidate(10, 1, due=due) for due in (math.inf, 12.3, math.inf, 18.4)]
    assert rows_to_take(active, waiting, 16, seconds, 0.0) == 2  # type: ignore[arg-type]


def test_guided_rows_count_twice_and_one_always_goes() -> None:
    pairs = [Candidate(5, 2)] * 3
    assert rows_to_take(pairs, [], 4, line(0.1, 0.1), 0.0) == 2  # type: ignore[arg-type]
    assert rows_to_take(pairs, [], 1, line(0.1, 0.1), 0.0) == 1  # type: ignore[arg-type]


def test_fewest_steps_left_go_first_and_none_starves() -> None:
    assert order([Candidate(9, 1), Candidate(3, 1), Candidate(5, 1)]) == [1, 2, 0]
    assert order([Candidate(20, 1, passed_over=72), Candidate(3, 1)]) == [0, 1]


def test_priority_goes_before_urgency_and_a_goal_at_stake_before_equal_ones() -> None:
    candidates = [
        Candidate(1, 1, priority=5),
        Candidate(9, 1, priority=5, pressing=True),
        Candidate(8, 1, priority=2),
        Candidate(3, 1, priority=5),
    ]
    assert order(candidates) == [2, 1, 0, 3]


def test_those_who_cannot_end_in_time_go_behind_those_who_can_until_they_were_passed_over_for_long() -> None:
    assert not is_late(1.0, 10, 0.1, 0)
    assert is_late(0.9, 10, 0.1, PATIENCE - 1)
    assert not is_late(0.9, 10, 0.1, PATIENCE)
    assert not is_late(0.9, 10, math.nan, 0)
    candidates = [Candidate(1, 1, late=True), Candidate(9, 1), Candidate(8, 1, pressing=True), Candidate(1, 1, priority=6)]
    assert order(candidates) == [2, 1, 0, 3]


def test_under_more_load_than_can_be_served_most_goals_are_met() -> None:
    """An eighth more work than the engine does in calls of eight images: those whose goal is lost make room for the others."""
    met = {patience: sum(goals_met(seed, patience) for seed in range(5)) / 5 for patience in (PATIENCE, 0)}
    assert met[PATIENCE] > met[0] + 0.1
    assert met[PATIENCE] > 0.75


def goals_met(seed: int, patience: int) -> float:
    """The share of 64 requests of 10 to 30 steps that end in time; with `patience` 0 none counts as late."""
    rng, seconds, now = random.Random(seed), line(0.006, 0.0037), 0.0
    jobs = []
    for _ in range(64):
        now += rng.expovariate(6.7)
        jobs.append(Row(now, rng.choice((10, 20, 30)), PATIENCE - patience))
    now, sizes, inside = 0.0, CallSizes[str](), []
    while going := [job for job in jobs if job.left]:
        now = max(now, min(job.arrival for job in going))
        waiting = [job for job in going if job.arrival <= now and job not in inside]
        waiting.sort(key=lambda job: job.candidate(now, seconds(2)).late)  # type: ignore[operator]
        going = inside = ([job for job in inside if job.left] + waiting)[:16]
        candidates = [job.candidate(now, seconds(2)) for job in going]  # type: ignore[operator]
        ranked = order(candidates)
        count = sizes.take("unet", [candidates[place] for place in ranked], [], 16, seconds, now)  # type: ignore[arg-type]
        now += seconds(2 * count)  # type: ignore[operator]
        for turn, place in enumerate(ranked):
            going[place].step(now, taken=turn < count)
    return sum(job.ended <= job.due for job in jobs) / len(jobs)


def test_others_share_a_call_of_the_best_only_while_they_hardly_lengthen_it() -> None:
    ranked = [Candidate(5, 2, priority=2), *[Candidate(5, 2, priority=5)] * 3]
    assert rows_for_the_best(ranked, 16, lambda rows: 1.0 + 0.02 * rows) == 7  # a tenth more than 1.04 s
    assert rows_for_the_best(ranked, 16, lambda rows: 0.1 * rows) == 2
    assert rows_for_the_best(ranked, 16, lambda rows: math.nan) == 16
    assert rows_for_the_best(ranked[1:], 16, lambda rows: 0.1 * rows) == 16

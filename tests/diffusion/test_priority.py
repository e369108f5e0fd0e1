"""Priorities and soft goals in the loop: whose step comes first, and that nobody starves."""

from __future__ import annotations

import time

import numpy as np
import pytest

from nereid.diffusion.feature_cache import Variant
from nereid.diffusion.loop import DenoisingLoop
from nereid.diffusion.run_lanes import cost_key
from nereid.diffusion.state import ImageTask
from nereid.engines.costs import StepCosts
from nereid.flow.errors import InvalidRequestError
from nereid.flow.tickets import AGING_SECONDS

from image_forms import Array, Unet, begun, request, whole


def seeded(seed: int, **inputs: Array) -> ImageTask:
    return begun(request(seed=np.array([[seed]]), **inputs))


def seconds(value: float) -> Array:
    return np.array([[value]], np.float32)


def finished(loop: DenoisingLoop, *tasks: ImageTask) -> list[int]:
    """The places of tasks in the order in which they end."""
    ended: list[int] = []
    for _ in range(1000):
        waiting = [task for task in tasks if not task.done]
        if not waiting:
            return ended
        loop.advance(waiting)
        ended += [place for place, task in enumerate(tasks) if task.done and place not in ended]
    raise AssertionError("the loop does not come to an end")


def test_the_best_priority_has_its_steps_first() -> None:
    tasks = [seeded(1), seeded(2, priority=whole(7)), seeded(3, priority=whole(1))]
    assert finished(DenoisingLoop(Unet(), 2), *tasks) == [2, 0, 1]


def test_a_lane_of_worse_priority_waits_for_one_of_better() -> None:
    wide = np.ones((1, 3, 4), np.float32)
    other = seeded(2, priority=whole(1), prompt_embeds=wide, negative_prompt_embeds=wide)
    assert finished(DenoisingLoop(Unet(), 16), seeded(1), other) == [1, 0]


def test_who_has_waited_long_has_its_turn_among_better_ones() -> None:
    patient, others = seeded(1, priority=whole(9)), [seeded(seed, priority=whole(5)) for seed in (2, 3)]
    patient.runs[0].waits_since = time.monotonic() - 5 * AGING_SECONDS
    loop = DenoisingLoop(Unet(), 2)
    loop.advance([patient, *others])
    assert patient.runs[0].step == 1
    assert [task.runs[0].step for task in others] == [0, 0]
    loop.advance([patient, *others])
    assert patient.runs[0].step == 1, "a step is what it has waited for"


def test_of_equal_priority_one_that_would_miss_its_goal_goes_first() -> None:
    costs = StepCosts()
    plain, goal, hopeless = seeded(1), seeded(2, deadline_seconds=seconds(1000)), seeded(3, deadline_seconds=seconds(1000))
    for _ in range(3):
        costs.learn(cost_key(Variant.FULL, plain.runs[0].shape), 2, 100.0)
    plain.runs[0].step = 3  # fewest steps left: without a goal it would go first
    goal.due, hopeless.due = time.monotonic() + 600, time.monotonic() + 10
    loop = DenoisingLoop(Unet(), 2, costs)
    loop.advance([plain, goal, hopeless])
    assert [task.runs[0].step for task in (plain, goal, hopeless)] == [3, 1, 0]


def test_one_whose_goal_is_lost_goes_behind_its_equals() -> None:
    costs = StepCosts()
    lost, plain = seeded(1, deadline_seconds=seconds(1000)), seeded(2)
    for _ in range(3):
        costs.learn(cost_key(Variant.FULL, plain.runs[0].shape), 2, 100.0)
    lost.runs[0].step = 3  # fewest steps left: before its goal was lost it would have gone first
    lost.due, plain.due = time.monotonic() + 10, time.monotonic() + 10
    loop = DenoisingLoop(Unet(), 2, costs)
    loop.advance([lost, plain])
    assert [task.runs[0].step for task in (lost, plain)] == [3, 1]


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"priority": whole(10)}, "priority: 10 is not allowed"), ({"deadline_seconds": seconds(0)}, "deadline_seconds: 0")],
)
def test_odd_priorities_and_goals_are_refused_by_name(asked: dict[str, Array], said: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        seeded(1, **asked)
    assert said in str(refused.value)

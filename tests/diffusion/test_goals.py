"""When requests should be done, by what their steps cost alone and among others."""

from __future__ import annotations

import math

import pytest

from nereid.diffusion.goals import Goal, goal_of
from nereid.diffusion.run_lanes import cost_key
from nereid.diffusion.state import ImageRun
from nereid.engines.costs import StepCosts

from image_forms import begun, request

FIXED, ROW = 0.010, 0.005
"""Seconds of a call, and of each of its rows."""
NOW = 100.0


@pytest.fixture
def run() -> ImageRun:
    """Two rows a call, five steps."""
    return begun(request()).runs[0]


def known(run: ImageRun) -> StepCosts:
    costs = StepCosts()
    for _ in range(20):
        for rows in (1, 2, 8):
            for variant in run.steps_left:
                costs.learn(cost_key(variant, run.shape), rows, FIXED + ROW * rows)
    return costs


def test_a_goal_is_at_stake_while_it_can_still_be_met_among_others_and_lost_when_it_cannot(run: ImageRun) -> None:
    lone, company = 5 * (FIXED + 2 * ROW), 5 * min(FIXED + 8 * ROW, 2.5 * (FIXED + 2 * ROW))
    found = goal_of([(run, 2)], 8, known(run), NOW, 2.0, 3.0)
    assert found.due == NOW + 2.0
    assert found.late_from == pytest.approx(found.due - company)
    assert found.start_by == pytest.approx(found.due - company - lone)


def test_without_a_goal_it_is_due_after_a_multiple_of_its_time_alone(run: ImageRun) -> None:
    assert goal_of([(run, 2)], 8, known(run), NOW, None, 3.0) == Goal(pytest.approx(NOW + 3 * 5 * (FIXED + 2 * ROW)))


def test_rows_beyond_a_call_are_calls_of_their_own(run: ImageRun) -> None:
    one, two = (goal_of([(run, rows)], 1, known(run), NOW, None, 1.0).due - NOW for rows in (1, 2))
    assert two == pytest.approx(2 * one)


def test_where_nothing_is_known_nothing_is_said_but_the_goal(run: ImageRun) -> None:
    assert goal_of([(run, 2)], 8, StepCosts(), NOW, None, 3.0).due == math.inf
    assert goal_of([(run, 2)], 8, StepCosts(), NOW, 2.0, 3.0) == Goal(NOW + 2.0, NOW + 2.0, NOW + 2.0)

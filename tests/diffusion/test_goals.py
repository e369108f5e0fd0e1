"""When requests should be done, by what their steps cost alone and among others."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nereid.diffusion.goals import Goal, goal_of
from nereid.diffusion.loop import DenoisingLoop
from nereid.diffusion.state import ImageRun
from nereid.engines.costs import StepCosts

from image_forms import FIXED, ROW, Array, Unet, begun, known, request, whole

NOW = 100.0


@pytest.fixture
def run() -> ImageRun:
    """Two rows a call, five steps."""
    return begun(request()).runs[0]


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


LATE = np.array([[0.4, 1]], np.float32)
"""Steps 2, 3 and 4 of 5 are guided."""


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        ({}, [2, 2, 2, 2, 2]),
        ({"guidance_scale": np.ones((1, 1), np.float32)}, [1, 1, 1, 1, 1]),
        ({"guidance_interval": LATE}, [8 / 5, 7 / 4, 2, 2, 2]),
        ({"guidance_interval": np.array([[0, 0.4]], np.float32)}, [7 / 5, 5 / 4, 1, 1, 1]),
        ({"guidance_cache_interval": whole(2)}, [8 / 5, 6 / 4, 5 / 3, 3 / 2, 2]),
        ({"guidance_cache_interval": whole(9), "guidance_interval": LATE}, [6 / 5, 5 / 4, 4 / 3, 1, 1]),
    ],
)
def test_rows_of_the_steps_left_are_those_that_will_be_called(asked: dict[str, Array], rows: list[float]) -> None:
    task = begun(request(**asked))
    loop, found = DenoisingLoop(Unet(), 8), []
    while not task.done:
        found.append(task.runs[0].rows_left)
        loop.advance([task])
    assert found == pytest.approx(rows)


def test_steps_that_will_be_guided_count_by_what_they_will_cost() -> None:
    task = begun(request(guidance_interval=LATE))
    run = task.runs[0]
    loop = DenoisingLoop(Unet(), 8, known(run))
    left = loop._chooser._candidate(task, run, math.nan).steps_left
    assert left * (FIXED + ROW) == pytest.approx(2 * (FIXED + ROW) + 3 * (FIXED + 2 * ROW))

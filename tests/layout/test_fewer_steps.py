"""How many steps fit before a goal: costs and clocks alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from drawing import FACTS, FLOW

from nereid.diffusion.solvers import SchedulerConfig, SchedulerName, build_table, default_scheduler
from nereid.diffusion.solvers.terms import Term
from nereid.diffusion.state import ImageRun
from nereid.layout.fewer_steps import ANSWER_SECONDS, round_seconds, steps_that_fit
from nereid.layout.rows import boxes_drawn, end_sooner, layout_runs

from sections import two_cards

SECTION, BOXES = two_cards()


def run_of(steps: int = 10, done: int = 0) -> ImageRun:
    (run,) = layout_runs(SECTION, None, [3], build_table(SchedulerName.EULER, FACTS.schedule, steps))
    run.step = done
    return run


def test_a_round_is_one_call_for_each_shape_or_as_many_as_rows_need() -> None:
    small, done = run_of(), run_of(done=10)
    assert round_seconds([small] * 20 + [done], 8, lambda run, rows: rows / 100) == pytest.approx(3 * 0.08)
    assert math.isnan(round_seconds([small], 8, lambda run, rows: math.nan))


@pytest.mark.parametrize(
    ("done", "started", "due", "expected"),
    [
        (0, None, 10.0, 10),  # there is time for all
        (0, None, 0.55 + ANSWER_SECONDS, 5),
        (0, None, -1.0, 1),  # it is late already: one step is the least
        (0, None, math.inf, 10),
        (4, -0.8, 0.41 + ANSWER_SECONDS, 2),  # its own pace, 0.2 s a step, tells more than a guess
        (1, -5.0, 0.41 + ANSWER_SECONDS, 4),  # one step tells nothing yet
    ],
)
def test_steps_that_fit_until_a_goal(done: int, started: float | None, due: float, expected: int) -> None:
    assert steps_that_fit(run_of(done=done), 0.1, started, due, 0.0) == expected


def test_where_no_cost_is_known_all_steps_fit() -> None:
    assert steps_that_fit(run_of(), math.nan, None, 0.01, 0.0) == 10


def test_a_run_that_ends_sooner_goes_on_from_its_own_noise_level_to_none() -> None:
    run = run_of(10, done=4)
    end_sooner(run, 3, FACTS.scheduler, FACTS.schedule)
    assert (run.step, run.row.end, run.local_step, run.done) == (4, 7, 0, False)
    np.testing.assert_allclose(run.row.table.timesteps, [600, 400, 200], rtol=1e-5)
    end_sooner(run, 1, FACTS.scheduler, FACTS.schedule)
    assert run.row.table.timesteps.tolist() == pytest.approx([600])
    assert len(boxes_drawn(SECTION, run)) == len(BOXES)


def test_it_goes_on_as_the_checkpoints_own_scheduler_does() -> None:
    file = {**FLOW, "shift": 0.08, "stochastic_sampling": True}
    schedule, scheduler = SchedulerConfig.from_diffusers(file), default_scheduler(file)
    whole = build_table(scheduler, schedule, 8)
    (run,) = layout_runs(SECTION, None, [3], whole)
    end_sooner(run, 8, scheduler, schedule)  # from its first step on
    np.testing.assert_array_equal(run.row.table.timesteps, whole.timesteps)
    run.step = 4
    end_sooner(run, 2, scheduler, schedule)
    rest = run.row.table
    # Every other one of the levels that were left, and fresh noise where the checkpoint takes it.
    np.testing.assert_allclose(rest.timesteps, whole.timesteps[[4, 6]], rtol=1e-5)
    assert rest.next_sample[:, Term.NOISE].tolist() == pytest.approx([whole.timesteps[6] / 1000, 0], rel=1e-5)
    assert not rest.next_sample[:, Term.SAMPLE].any()

"""Ranges of timesteps that a quantised layout transformer rounds by: they go by the steps of the checkpoint's own runs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nereid.diffusion.solvers import SchedulerConfig, SchedulerName, build_table, noise_levels
from nereid_zoo.layout.draw import Flow
from nereid_zoo.layout.timestep_ranges import bounds_of, places_of

pytestmark = pytest.mark.torch
NUMBERS = (16, 7, 11, 13, 9, 19, 5, 23)


@pytest.mark.parametrize("shift", [0.03, 0.08, 1.0, 3.0])
@pytest.mark.parametrize("steps", [8, 16, 40])
def test_a_run_spends_as_many_of_its_steps_in_each_range(shift: float, steps: int) -> None:
    """Also with other numbers of steps than those that the ranges were made by, and as the server takes them."""
    bounds = bounds_of(Flow(shift), NUMBERS, 8)
    config = SchedulerConfig.from_diffusers({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": shift})
    timesteps = build_table(SchedulerName.EULER, config, steps).timesteps
    found = Counter(places_of(torch.from_numpy(timesteps), torch.tensor(bounds)).tolist())
    assert set(found) == set(range(8))
    assert max(found.values()) - min(found.values()) <= 1 + steps // 16


def test_unshifted_levels_have_about_even_ranges() -> None:
    assert np.abs(np.array(bounds_of(Flow(1.0), NUMBERS, 8)) - 125 * np.arange(1, 8)).max() < 60


def test_bounds_are_between_visited_timesteps_however_these_are_rounded() -> None:
    bounds = np.array(bounds_of(Flow(0.08), NUMBERS, 8))
    assert (np.diff(bounds) > 0).all()
    assert np.array_equal(bounds, bounds.astype(np.float32))
    visited = np.concatenate([1000 * noise_levels(steps, 0.08)[:-1] for steps in NUMBERS])
    assert np.abs(bounds[:, None] / visited - 1).min() > 1e-5


def test_runs_that_visit_few_timesteps_have_fewer_ranges() -> None:
    assert bounds_of(Flow(1.0), (4,), 8) == (375.0, 625.0, 875.0)
    assert bounds_of(Flow(1.0), (4, 2), 8) == (375.0, 625.0, 875.0)
    assert bounds_of(Flow(1.0), (1,), 8) == ()
    assert bounds_of(Flow(1.0), (16,), 1) == ()


def test_a_timestep_is_in_the_range_between_its_bounds() -> None:
    timesteps = torch.tensor([0.0, 17.0, 17.1, 99.0, 1000.0])
    assert places_of(timesteps, torch.tensor([17.0, 98.5])).tolist() == [0, 0, 1, 2, 2]
    assert places_of(timesteps, torch.tensor(())).tolist() == [0] * 5

"""What calls cost is learned from calls, survives a restart, and no interruption upsets it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from nereid.engines.costs import StepCosts


def test_fixed_part_and_part_of_a_row_are_told_apart() -> None:
    costs = StepCosts()
    for rows in (1, 2, 4, 8, 3, 5) * 3:
        costs.learn("unet", rows, 0.2 + 0.05 * rows)
    assert costs.predict("unet", 16) == pytest.approx(1.0, rel=1e-6)
    assert costs.coefficients()["unet"] == pytest.approx((0.2, 0.05))


def test_one_size_alone_is_taken_to_cost_by_the_row() -> None:
    costs = StepCosts()
    costs.learn("unet", 2, 0.3)
    assert costs.predict("unet", 4) == pytest.approx(0.6)
    assert math.isnan(costs.predict("another", 4))


def test_what_another_size_costs_is_not_known_from_one_size_alone() -> None:
    costs = StepCosts()
    for _ in range(3):
        costs.learn("unet", 2, 0.3)
    assert costs.known("unet", 2) == pytest.approx(0.3)
    assert math.isnan(costs.known("unet", 4))
    assert math.isnan(costs.known("another", 2))
    costs.learn("unet", 4, 0.5)
    assert costs.known("unet", 3) == pytest.approx(0.4)


def test_an_interruption_counts_for_little() -> None:
    costs = StepCosts()
    for rows in (1, 2, 4) * 5:
        costs.learn("unet", rows, 0.1 * rows)
    costs.learn("unet", 2, 60.0)
    assert costs.predict("unet", 4) < 1.0


def test_costs_are_kept_over_a_restart_and_a_broken_file_is_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    costs = StepCosts(file)
    costs.learn("unet", 2, 0.3)
    costs.save()
    assert StepCosts(file).predict("unet", 2) == pytest.approx(0.3)
    for broken in ("", "[]", '{"unet": 3}', '{"unet": {"weights": 1}}'):
        file.write_text(broken)
        assert math.isnan(StepCosts(file).predict("unet", 2))

"""Noise: a function of seed, purpose and step alone."""

from __future__ import annotations

import numpy as np
import pytest

from nereid.flow.noise import Purpose, normal


@pytest.mark.parametrize("purpose", Purpose)
def test_what_is_padded_has_the_same_noise_before_its_padding(purpose: Purpose) -> None:
    whole = normal(7, purpose, (32, 4), step=3)
    for rows in (1, 8, 16, 24):
        assert np.array_equal(normal(7, purpose, (rows, 4), step=3), whole[:rows])


def test_seeds_purposes_and_steps_have_noise_of_their_own() -> None:
    drawn = [normal(seed, purpose, (8, 4), step=step) for seed in (0, 7) for purpose in Purpose for step in (0, 1)]
    assert len({its.tobytes() for its in drawn}) == len(drawn)

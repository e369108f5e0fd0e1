"""What a request chooses of its schedule: timesteps, sigmas, spacing, eta; in force for its run, or refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nereid.diffusion.requests import parse_image_request
from nereid.diffusion.settings import Limits
from nereid.flow.errors import InvalidRequestError

from image_forms import pipeline, request, text, whole

Array = np.ndarray[Any, Any]


def ints(*values: int) -> Array:
    return np.array([values], np.int32)


def floats(*values: float) -> Array:
    return np.array([values], np.float32)


def timesteps_of(**inputs: Array) -> list[float]:
    (row,) = parse_image_request(request(**inputs), pipeline(), Limits()).rows
    assert row.end == len(row.table)
    return [float(value) for value in row.table.timesteps]


def test_a_run_visits_the_timesteps_that_are_given() -> None:
    assert timesteps_of(scheduler=text("euler"), timesteps=ints(999, 600, 20)) == [999, 600, 20]
    assert timesteps_of(scheduler=text("tcd"), timesteps=ints(999), num_inference_steps=whole(1)) == [999]


def test_sigmas_are_levels_and_the_last_is_where_the_run_ends() -> None:
    found = timesteps_of(scheduler=text("euler"), sigmas=floats(14.0, 3.0, 0.5, 0.0))
    assert len(found) == 3
    assert found == sorted(found, reverse=True)


def test_as_many_steps_as_any_run_may_have_may_be_given_by_sigmas_too() -> None:
    assert len(timesteps_of(scheduler=text("euler"), sigmas=floats(*np.geomspace(14, 0.03, 200), 0))) == 200


def test_spacing_is_the_requests_where_it_gives_one() -> None:
    few = {"scheduler": text("ddim"), "num_inference_steps": whole(4)}
    assert timesteps_of(**few, timestep_spacing=text("trailing")) == [999, 749, 499, 249]
    assert timesteps_of(**few, timestep_spacing=text("linspace")) == [999, 666, 333, 0]


def test_eta_adds_noise_to_a_run_without_any() -> None:
    def noise(**inputs: Array) -> float:
        (row,) = parse_image_request(request(scheduler=text("ddim"), **inputs), pipeline(), Limits()).rows
        return float(np.abs(row.table.next_sample[:, -1]).max())

    assert noise() == noise(eta=floats(0)) == 0
    assert noise(eta=floats(1)) > noise(eta=floats(0.5)) > 0


def test_eta_takes_noise_from_a_run_with_all_of_it() -> None:
    def noise(**inputs: Array) -> float:
        (row,) = parse_image_request(request(scheduler=text("dpmpp_sde_karras"), **inputs), pipeline(), Limits()).rows
        return float(np.abs(row.table.next_sample[:, -1]).max())

    assert noise() == noise(eta=floats(1)) > noise(eta=floats(0.5)) > noise(eta=floats(0)) == 0


@pytest.mark.parametrize(
    ("inputs", "field", "words"),
    [
        ({"timesteps": ints(999, 5), "scheduler": text("ddim")}, "timesteps", "no meaning for scheduler ddim"),
        ({"timesteps": ints(5, 999), "scheduler": text("euler")}, "timesteps", "they must fall"),
        ({"timesteps": ints(-1)}, "timesteps", "-1 is not allowed; it must be 0 to"),
        ({"timesteps": np.zeros((1, 0), np.int32)}, "timesteps", "shape of timesteps"),
        ({"timesteps": np.zeros((2, 2), np.int32)}, "timesteps", "shape of timesteps"),
        ({"timesteps": np.arange(300, 0, -1, dtype=np.int32)[None]}, "timesteps", "length of timesteps: 300 .* at most 200"),
        (
            {"timesteps": ints(9, 5), "num_inference_steps": whole(3), "scheduler": text("euler")},
            "num_inference_steps",
            "3 is not",
        ),
        ({"sigmas": floats(5, 1), "scheduler": text("lcm")}, "sigmas", "these take it: euler"),
        ({"sigmas": floats(np.nan, 1), "scheduler": text("euler")}, "sigmas", "nan is not allowed"),
        ({"sigmas": floats(5), "scheduler": text("euler")}, "sigmas", "two at least"),
        ({"timestep_spacing": text("sideways")}, "timestep_spacing", "'sideways' is not allowed; .* linspace, leading, trailing"),
        ({"timestep_spacing": text("trailing"), "scheduler": text("lcm")}, "timestep_spacing", "no meaning for scheduler lcm"),
        (
            {"timestep_spacing": text("trailing"), "scheduler": text("euler"), "timesteps": ints(999, 5)},
            "timestep_spacing",
            "no meaning with timesteps",
        ),
        (
            {"timestep_spacing": text("leading"), "scheduler": text("euler"), "sigmas": floats(5, 0)},
            "timestep_spacing",
            "no meaning with sigmas",
        ),
        ({"sigmas": floats(*range(201, -1, -1)), "scheduler": text("euler")}, "sigmas", "202 .* at most 201 .max_steps and 1.$"),
        ({"eta": floats(0.5), "scheduler": text("euler")}, "eta", "these take it: ddim, dpmpp_sde, "),
        ({"eta": floats(1.5), "scheduler": text("ddim")}, "eta", "0 to 1"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(inputs: dict[str, Array], field: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as raised:
        parse_image_request(request(**inputs), pipeline(), Limits())
    assert raised.value.field == field

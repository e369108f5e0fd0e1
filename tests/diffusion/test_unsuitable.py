"""What has no effect or no meaning is said: without an unconditional half, or where the UNet is told the guidance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nereid.diffusion.prompts import PromptService
from nereid.diffusion.requests import parse_image_request
from nereid.diffusion.settings import Limits
from nereid.flow.errors import InvalidRequestError

from image_forms import Array, pipeline, request, text, whole


def guidance(*values: float) -> Array:
    return np.array([values], np.float32).T


def interval(first: float, last: float) -> Array:
    return np.array([[first, last]], np.float32)


IDLE = "negative_prompt: it has no effect without guidance"
TOLD: dict[str, Any] = {"time_cond_proj_dim": 8, "default_guidance": 8.5, "few_step": True}


def warnings(facts: dict[str, Any], **inputs: Array) -> tuple[str, ...]:
    return parse_image_request(request(**inputs), pipeline(**facts), Limits()).warnings


@pytest.mark.parametrize(
    "asked",
    [{"guidance_cache": text("off")}, {"guidance_cache": text(" off ")}, {"guidance_interval": interval(0, 1)}],
)
@pytest.mark.parametrize("facts", [TOLD, {"default_guidance": 1.0}])
def test_what_switches_off_is_taken_where_there_is_nothing_to_switch_off(facts: dict[str, Any], asked: dict[str, Array]) -> None:
    assert warnings(facts, **asked) == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("guidance_cache", text("light")),
        ("guidance_cache_interval", whole(1)),
        ("guidance_interval", interval(0.1, 1)),
    ],
)
@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (TOLD, "for this model, whose UNet is told the guidance"),
        ({"default_guidance": 1.0}, r"without guidance \(guidance_scale 1\)"),
    ],
)
def test_what_needs_an_unconditional_half_is_refused_where_there_is_none(
    facts: dict[str, Any], why: str, name: str, value: Array
) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{name}: it has no meaning {why}$"):
        warnings(facts, **{name: value})


@pytest.mark.parametrize(("scale", "said"), [(8.5, False), (15, False), (1, False), (15.5, True), (30, True)])
def test_a_unet_that_is_told_more_guidance_than_such_were_trained_on_warns(scale: float, said: bool) -> None:
    found = warnings(TOLD, guidance_scale=guidance(scale))
    expected = f"guidance_scale: {scale:g} is unsuitable for this model, whose UNet is told the guidance: such were trained on 15"
    assert [one.startswith(expected) for one in found] == [True] * said


@pytest.mark.parametrize(
    ("facts", "asked", "said"),
    [
        ({}, {}, ["", "", ""]),
        ({"default_guidance": 1.0}, {}, [f"{IDLE} (guidance_scale 1)", "", ""]),
        ({"default_guidance": 1.0}, {"guidance_scale": guidance(5, 1, 1)}, ["", "", ""]),
        (
            {},
            {"guidance_scale": guidance(0.5, 7, 7)},
            ["negative_prompt: it has no effect without guidance (guidance_scale 0.5)", "", ""],
        ),
        (TOLD, {}, ["negative_prompt: it has no effect for this model, whose UNet is told the guidance", "", ""]),
    ],
)
def test_a_negative_prompt_that_changes_nothing_warns(facts: dict[str, Any], asked: dict[str, Array], said: list[str]) -> None:
    service = PromptService((), pipeline(**facts))
    made = service.encode(["a box", "a box", "a box"], ["rain", "", " "], asked)
    assert [row[0].decode() for row in made["tokenizer_warnings"]] == said

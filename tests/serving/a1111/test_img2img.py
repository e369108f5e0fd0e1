"""AUTOMATIC1111's img2img: how a picture is brought to the drawn size, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from drawing_models import Drawers
from webui_forms import MASKS, OF_A_PACKAGE, OF_A_PAINTER, OF_AN_ADD_ON, REDRAW, refused, shown, text


@pytest.mark.parametrize("sent", [OF_AN_ADD_ON, OF_A_PAINTER], ids=["add-on", "painter"])
def test_programs_that_draw_over_pictures_are_served(api: httpx.Client, drawers: Drawers, sent: dict[str, Any]) -> None:
    answer = api.post(REDRAW, json={**sent, "init_images": [text(Image.new("RGB", (64, 64)))]})
    assert answer.status_code == 200, answer.text
    assert drawers.asked[-1]["strength"] == np.float32(sent.get("denoising_strength", 0.75))


@pytest.mark.parametrize("lead", ["", "data:image/png;base64,"])
def test_a_picture_is_redrawn(api: httpx.Client, drawers: Drawers, lead: str) -> None:
    body = {**OF_A_PACKAGE, **MASKS, "init_images": [lead + text(Image.new("RGB", (64, 64), (0, 0, 255)))]}
    answer = api.post(REDRAW, json=body)
    assert answer.status_code == 200, answer.text
    assert np.asarray(shown(answer.json()["images"][0]))[0, 0].tolist() == [255, 255, 0]
    assert drawers.asked[-1]["strength"] == np.float32(0.7)
    assert answer.json()["parameters"]["init_images"] is None
    kept = api.post(REDRAW, json={**body, "include_init_images": True}).json()
    assert kept["parameters"]["init_images"] == body["init_images"]


def test_a_picture_of_other_proportions_is_stretched_cut_or_filled_up(api: httpx.Client, drawers: Drawers) -> None:
    wide = Image.new("RGB", (128, 64), (255, 0, 0))
    wide.paste((0, 0, 255), (0, 0, 32, 64))
    body = {"init_images": [text(wide)], "width": 64, "height": 64}
    for mode, left in ((0, [0, 0, 255]), (1, [255, 0, 0])):
        answer = api.post(REDRAW, json={**body, "resize_mode": mode})
        assert answer.status_code == 200, answer.text
        assert drawers.asked[-1]["init_image"][32, 0].tolist() == left
    filled = api.post(REDRAW, json={**body, "resize_mode": 2})
    assert filled.status_code == 200, filled.text
    assert drawers.asked[-1]["init_image"][[0, 32, 63], 2].tolist() == [[0, 0, 255]] * 3
    assert drawers.asked[-1]["init_image"][[0, 32, 63], 40].tolist() == [[255, 0, 0]] * 3
    warnings = json.loads(filled.json()["info"])["warnings"]
    assert "image: 128 x 64 pixels were scaled to 64 x 64, and padded to these proportions" in warnings
    refused(api.post(REDRAW, json={**body, "resize_mode": 4}), "resize_mode")
    own = api.post(REDRAW, json={"init_images": [text(wide.resize((61, 50)))]})
    assert shown(own.json()["images"][0]).size == (64, 48)


@pytest.mark.parametrize(
    "more",
    [{}, {"mask": text(Image.new("L", (64, 48), 255))}, {"resize_mode": 2}, {"resize_mode": 3}],
    ids=lambda more: "".join(more),
)
@pytest.mark.parametrize(("width", "height"), [(2048, 520), (10**30, 48), (8, 2**20)])
def test_a_picture_is_not_made_larger_than_the_model_draws(
    api: httpx.Client, drawers: Drawers, more: dict[str, Any], width: int, height: int
) -> None:
    """Before it is scaled: a small request would take all of the gateway's memory."""
    body = {"init_images": [text(Image.new("RGB", (64, 48)))], **more}
    message = refused(api.post(REDRAW, json={**body, "width": width, "height": height}), "width")
    assert message == f"width: {width} x {height} is not allowed; it must be 1 to 1048576 pixels"
    assert drawers.asked == []
    assert api.post(REDRAW, json={**body, "width": 1024, "height": 1024}).status_code == 200


@pytest.mark.parametrize(
    ("sent", "encoded"), [((32, 48), (32, 48)), ((61, 50), (64, 48)), ((3, 3), (8, 8)), ((64, 64), (64, 64))]
)
def test_a_picture_whose_latents_are_stretched_is_sent_as_large_as_it_is(
    api: httpx.Client, drawers: Drawers, sent: tuple[int, int], encoded: tuple[int, int]
) -> None:
    """But for what it takes to be encoded at all: sides of whole latents."""
    picture = Image.new("RGB", sent, (0, 0, 255))
    answer = api.post(REDRAW, json={"init_images": [text(picture)], "width": 64, "height": 64, "resize_mode": 3})
    assert answer.status_code == 200, answer.text
    asked = drawers.asked[-1]
    assert (asked["latent_upscale"], asked["width"], asked["height"]) == (b"bilinear", 64, 64)
    assert asked["init_image"].shape == (encoded[1], encoded[0], 3)
    assert shown(answer.json()["images"][0]).size == (64, 64)
    scaled = [f"image: {sent[0]} x {sent[1]} pixels were scaled to {encoded[0]} x {encoded[1]}"] if sent != encoded else []
    told = json.loads(answer.json()["info"])["warnings"]
    assert [warning.partition(", and")[0] for warning in told] == [*scaled, "one"]
    api.post(REDRAW, json={"init_images": [text(picture)], "width": 64, "height": 64})
    assert "latent_upscale" not in drawers.asked[-1]


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"mask": "aGk="}, "mask", "no picture that can be read"),
        ({"init_images": []}, "init_images", "at least 1 item"),
        ({"init_images": ["aGk=", "aGk="]}, "init_images", "at most 1 item"),
        ({"init_images": ["aGk="]}, "init_images.0", "no picture that can be read"),
        ({"init_images": ["http://example.org/a.png"]}, "init_images.0", "its bytes in base64"),
        ({"init_images": None}, "init_images", "it is missing"),
    ],
    ids=str,
)
def test_a_picture_that_cannot_be_redrawn_is_refused_by_name(
    api: httpx.Client, change: dict[str, Any], param: str, words: str
) -> None:
    body = {"init_images": [text(Image.new("RGB", (64, 64)))], **change}
    assert words in refused(api.post(REDRAW, json=body), param)

"""Masks of AUTOMATIC1111's img2img through the gateway: what is drawn anew, what stays, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from drawing_models import Drawers
from webui_forms import REDRAW, shown, text


def masked(**fields: Any) -> dict[str, Any]:
    """A request that draws the left half of a blue picture anew."""
    mask = Image.new("RGB", (64, 64))
    mask.paste((255, 255, 255), (0, 0, 32, 64))
    blue = text(Image.new("RGB", (64, 64), (0, 0, 255)))
    whole = {"mask_blur": 0, "inpainting_fill": 1, "inpaint_full_res": False}
    return {"prompt": "a box", "init_images": [blue], "mask": text(mask), **whole, **fields}


LEFT = np.repeat(np.arange(64)[None] < 32, 64, axis=0)


def test_what_is_white_in_a_mask_is_drawn_anew_and_the_rest_is_as_it_was(api: httpx.Client, drawers: Drawers) -> None:
    answer = api.post(REDRAW, json=masked())
    assert answer.status_code == 200, answer.text
    assert np.array_equal(drawers.asked[-1]["mask_image"], LEFT * 255)
    made = np.asarray(shown(answer.json()["images"][0]))
    assert (made[LEFT] == [255, 255, 0]).all()
    assert (made[~LEFT] == [0, 0, 255]).all()
    assert answer.json()["parameters"]["mask"] is None
    inverted = api.post(REDRAW, json=masked(inpainting_mask_invert=1)).json()
    assert np.array_equal(drawers.asked[-1]["mask_image"], ~LEFT * 255)
    assert np.array_equal(np.asarray(shown(inverted["images"][0])), made[:, ::-1])


@pytest.mark.parametrize("blur", [{"mask_blur": 4}, {"mask_blur": None}, {"mask_blur": None, "mask_blur_x": 4, "mask_blur_y": 0}])
def test_the_edge_of_a_mask_is_soft(api: httpx.Client, drawers: Drawers, blur: dict[str, Any]) -> None:
    """Where it is drawn at all, the new picture is seen alone; it fades into the old one outside."""
    made = np.asarray(shown(api.post(REDRAW, json=masked(**blur)).json()["images"][0]))[32].astype(int)
    assert np.array_equal(drawers.asked[-1]["mask_image"], LEFT * 255)
    assert (made[:32] == [255, 255, 0]).all()
    assert (np.diff(made[32:, 0]) <= 0).all()
    assert 0 < made[34, 0] < 255
    assert made[-1].tolist() == [0, 0, 255]


def test_a_blur_across_leaves_edges_that_lie_across_sharp(api: httpx.Client) -> None:
    top = Image.new("L", (64, 64))
    top.paste(255, (0, 0, 64, 32))
    body = masked(mask=text(top), mask_blur=None, mask_blur_x=8, mask_blur_y=0)
    made = np.asarray(shown(api.post(REDRAW, json=body).json()["images"][0]))
    assert np.array_equal(made[:, 5, 0], np.where(np.arange(64) < 32, 255, 0))


def test_the_opaque_part_of_a_painters_layer_is_its_mask(api: httpx.Client, drawers: Drawers) -> None:
    layer = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    layer.paste((0, 0, 0, 255), (0, 0, 32, 64))
    assert api.post(REDRAW, json=masked(mask=text(layer))).status_code == 200
    assert np.array_equal(drawers.asked[-1]["mask_image"], LEFT * 255)


def test_a_mask_is_scaled_with_its_picture(api: httpx.Client, drawers: Drawers) -> None:
    assert api.post(REDRAW, json=masked(width=128, height=64)).status_code == 200
    asked = drawers.asked[-1]
    assert np.array_equal(asked["mask_image"], np.repeat(LEFT, 2, axis=1) * 255)
    assert asked["init_image"].shape == (64, 128, 3)


def test_what_is_drawn_anew_begins_as_the_colours_around_it(api: httpx.Client, drawers: Drawers) -> None:
    """They are what the run starts from; what is put over the drawn picture is what was sent."""
    sent = Image.new("RGB", (64, 64), (0, 0, 255))
    sent.paste((255, 0, 0), (0, 0, 32, 64))
    for fill in ({}, {"inpainting_fill": 0}):
        body = {name: value for name, value in masked().items() if name != "inpainting_fill"}
        answer = api.post(REDRAW, json={**body, "init_images": [text(sent)], **fill})
        assert answer.status_code == 200, answer.text
        assert (drawers.asked[-1]["init_image"] == [0, 0, 255]).all()
        assert (np.asarray(shown(answer.json()["images"][0]))[~LEFT] == [0, 0, 255]).all()
    everything = masked(init_images=[text(sent)], inpainting_fill=0, mask=text(Image.new("L", (64, 64), 255)))
    assert api.post(REDRAW, json=everything).status_code == 200
    assert np.array_equal(drawers.asked[-1]["init_image"], np.asarray(sent))


@pytest.mark.parametrize(("fill", "asked"), [(0, None), (1, None), (2, b"latent_noise"), (3, b"latent_nothing")])
@pytest.mark.parametrize("whole", [False, True], ids=["in its picture", "by itself"])
def test_what_is_drawn_anew_begins_as_noise_or_nothing_in_its_latents_place(
    api: httpx.Client, drawers: Drawers, fill: int, asked: bytes | None, whole: bool
) -> None:
    """Its latents are made, as they are there, of the colours around it, but for 1."""
    sent = Image.new("RGB", (64, 64), (0, 0, 255))
    sent.paste((255, 0, 0), (0, 0, 32, 64))
    extra = {"inpaint_full_res": True, "inpaint_full_res_padding": 32} if whole else {}
    answer = api.post(REDRAW, json=masked(init_images=[text(sent)], inpainting_fill=fill, **extra))
    assert answer.status_code == 200, answer.text
    given = drawers.asked[-1]
    assert given.get("inpainting_fill") == asked
    assert (given["init_image"][:, :31] == ([255, 0, 0] if fill == 1 else [0, 0, 255])).all()
    without = api.post(REDRAW, json={**masked(inpainting_fill=fill), "mask": None})
    assert without.status_code == 200, without.text
    assert "inpainting_fill" not in drawers.asked[-1]


def test_a_part_of_a_picture_whose_latents_are_stretched_is_drawn_at_the_size_that_is_asked_for(
    api: httpx.Client, drawers: Drawers
) -> None:
    """The mask and what is put over the drawn picture are stretched; a part by itself is as large as what is drawn before."""
    corner = Image.new("L", (64, 64))
    corner.paste(255, (0, 0, 32, 16))
    asked = {"width": 128, "height": 64, "resize_mode": 3, "inpainting_fill": 3, "mask": text(corner)}
    answer = api.post(REDRAW, json=masked(**asked))
    assert answer.status_code == 200, answer.text
    given, wide = drawers.asked[-1], np.repeat(np.asarray(corner) > 0, 2, axis=1)
    assert (given["init_image"].shape, given["latent_upscale"]) == ((64, 64, 3), b"bilinear")
    assert np.array_equal(given["mask_image"], wide * 255)
    made = np.asarray(shown(answer.json()["images"][0]))
    assert made.shape == (64, 128, 3)
    assert (made[:16, :64] == [255, 255, 0]).all()
    assert (made[:, 72:] == [0, 0, 255]).all()  # the stretched mask has a soft edge
    assert (made[20:] == [0, 0, 255]).all()
    alone = api.post(REDRAW, json=small_part(resize_mode=3))
    assert alone.status_code == 200, alone.text
    assert "latent_upscale" not in drawers.asked[-1]
    assert drawers.asked[-1]["init_image"].shape == (64, 64, 3)


def test_only_what_is_drawn_anew_is_filled_whatever_the_size(api: httpx.Client, drawers: Drawers) -> None:
    """80 is halved to 5, which has no half."""
    sent = np.random.default_rng(1).integers(0, 256, (64, 80, 3), np.uint8)
    mask = Image.new("L", (80, 64))
    mask.paste(255, (0, 0, 40, 64))
    body = masked(init_images=[text(Image.fromarray(sent))], mask=text(mask), inpainting_fill=0)
    assert api.post(REDRAW, json=body).status_code == 200
    asked = drawers.asked[-1]["init_image"]
    assert np.array_equal(asked[:, 40:], sent[:, 40:])
    assert np.abs(np.diff(asked[:, :36].astype(int), axis=0)).max() < 64 < np.abs(np.diff(sent[:, :36].astype(int), axis=0)).max()


def small_part(**fields: Any) -> dict[str, Any]:
    """A square of 16 pixels of a picture that is red in the middle of blue; nothing is said of how it is drawn."""
    sent, mask = Image.new("RGB", (96, 64), (0, 0, 255)), Image.new("L", (96, 64))
    sent.paste((255, 0, 0), (32, 24, 48, 40))
    mask.paste(255, (32, 24, 48, 40))
    return {
        "prompt": "a box",
        "init_images": [text(sent)],
        "mask": text(mask),
        "mask_blur": 0,
        "width": 64,
        "height": 64,
        **fields,
    }


def test_a_part_is_drawn_by_itself_at_the_size_that_is_asked_for(api: httpx.Client, drawers: Drawers) -> None:
    answer = api.post(REDRAW, json=small_part(inpainting_fill=1))
    assert answer.status_code == 200, answer.text
    asked = drawers.asked[-1]
    assert asked["init_image"].shape == (64, 64, 3)
    assert (asked["init_image"] == [255, 0, 0]).all()
    assert (asked["mask_image"] == 255).all()
    made = np.asarray(shown(answer.json()["images"][0]))
    assert made.shape == (64, 96, 3)
    inside = np.zeros((64, 96), bool)
    inside[24:40, 32:48] = True
    assert (made[inside] == [0, 255, 255]).all()
    assert (made[~inside] == [0, 0, 255]).all()
    assert json.loads(answer.json()["info"])["warnings"] == ["one"]


@pytest.mark.parametrize(
    ("change", "left", "top"),
    [
        ({"inpaint_full_res_padding": 8}, 1 / 4, 1 / 4),
        ({"width": 128}, 1 / 4, 0),
        ({"height": 128}, 0, 1 / 4),
        ({"inpaint_full_res_padding": 1000}, 1 / 3, 3 / 8),
    ],
    ids=["padding", "wide", "high", "picture"],
)
def test_what_is_around_a_part_is_drawn_with_it(
    api: httpx.Client, drawers: Drawers, change: dict[str, Any], left: float, top: float
) -> None:
    """How much of the drawn picture lies before the part, across and down."""
    assert api.post(REDRAW, json=small_part(**change)).status_code == 200
    mask = drawers.asked[-1]["mask_image"] > 0
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    assert columns[0] / mask.shape[1] == pytest.approx(left, abs=0.03)
    assert rows[0] / mask.shape[0] == pytest.approx(top, abs=0.03)


def test_a_mask_of_another_size_is_scaled_before_its_part_is_found(api: httpx.Client, drawers: Drawers) -> None:
    mask = Image.new("L", (48, 32))
    mask.paste(255, (16, 12, 24, 20))
    answer = api.post(REDRAW, json=small_part(mask=text(mask), inpainting_fill=1))
    assert answer.status_code == 200, answer.text
    assert (drawers.asked[-1]["init_image"][24:40, 24:40] == [255, 0, 0]).all()
    made = np.asarray(shown(answer.json()["images"][0]))
    assert made.shape == (64, 96, 3)
    assert (np.abs(made[28:36, 36:44].astype(int) - [0, 255, 255]) <= 2).all()


def test_a_part_at_the_edge_and_a_mask_without_one_are_drawn(api: httpx.Client, drawers: Drawers) -> None:
    edge = Image.new("L", (96, 64))
    edge.paste(255, (90, 0, 96, 20))
    made = api.post(REDRAW, json=small_part(mask=text(edge), inpaint_full_res_padding=4))
    assert made.status_code == 200, made.text
    corner = Image.new("L", (96, 64))
    corner.paste(255, (80, 0, 96, 16))  # with 8 pixels around it, where there are any, a square of 24
    assert api.post(REDRAW, json=small_part(mask=text(corner), inpaint_full_res_padding=8)).status_code == 200
    rows, columns = (np.nonzero((drawers.asked[-1]["mask_image"] > 0).any(axis))[0] for axis in (1, 0))
    assert (rows[0], columns[-1]) == (0, 63)
    assert rows[-1] / 64 == pytest.approx(2 / 3, abs=0.03)
    assert columns[0] / 64 == pytest.approx(1 / 3, abs=0.03)
    high = Image.new("L", (96, 64))
    high.paste(255, (80, 24, 96, 56))  # grown to a square on the one side where there is more
    assert api.post(REDRAW, json=small_part(mask=text(high))).status_code == 200
    columns = np.nonzero((drawers.asked[-1]["mask_image"] > 0).any(0))[0]
    assert (columns[0] / 64, columns[-1]) == (pytest.approx(1 / 2, abs=0.03), 63)
    nothing = api.post(REDRAW, json=small_part(mask=text(Image.new("L", (96, 64)))))
    assert nothing.status_code == 200, nothing.text
    assert not drawers.asked[-1]["mask_image"].any()
    assert shown(nothing.json()["images"][0]).size == (64, 64)


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"inpainting_fill": 4}, "inpainting_fill", "it must be at most 3"),
        ({"mask_round": False}, "mask_round", "False is not allowed; it must be true or absent"),
        ({"mask_blur": -1}, "mask_blur", "it must be at least 0"),
        ({"inpainting_mask_invert": 2}, "inpainting_mask_invert", "it must be at most 1"),
    ],
    ids=str,
)
def test_what_a_mask_cannot_have_is_refused_by_name(api: httpx.Client, change: dict[str, Any], param: str, words: str) -> None:
    answer = api.post(REDRAW, json=masked(**change))
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert words in error["message"]
    without = api.post(REDRAW, json={**masked(**change), "mask": None})
    assert without.status_code == (200 if "mask_round" in change else 400)

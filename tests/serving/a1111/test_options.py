"""AUTOMATIC1111's settings, lists and probes, and how errors are told."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest
from PIL import Image

from drawing_models import Drawers
from webui_forms import DRAW, OF_A_CHAT, OPTIONS, PNG_INFO, REDRAW, refused, shown, text


def test_a_front_end_chooses_the_model(api: httpx.Client) -> None:
    assert [item["title"] for item in api.get("/sdapi/v1/sd-models").json()] == ["text_to_image", "a_text_to_image"]
    assert api.get(OPTIONS).json()["sd_model_checkpoint"] == "text_to_image"
    assert api.post(OPTIONS, json={"sd_model_checkpoint": "a_text_to_image", "sd_vae": "Automatic"}).json() is None
    assert api.get(OPTIONS).json()["sd_model_checkpoint"] == "a_text_to_image"
    once = {"override_settings": {"sd_model_checkpoint": "text_to_image"}}
    assert json.loads(api.post(DRAW, json=once).json()["info"])["sd_model_name"] == "text_to_image"
    assert api.get(OPTIONS).json()["sd_model_checkpoint"] == "a_text_to_image"
    api.post(DRAW, json={**once, "override_settings_restore_afterwards": False})
    assert api.get(OPTIONS).json()["sd_model_checkpoint"] == "text_to_image"
    assert "'sd15' is not one of those served here" in refused(
        api.post(OPTIONS, json={"sd_model_checkpoint": "sd15"}), "sd_model_checkpoint", 404
    )
    refused(
        api.post(DRAW, json={"override_settings": {"sd_model_checkpoint": "sd15"}}), "override_settings.sd_model_checkpoint", 404
    )
    assert "it must be 1 or absent" in refused(
        api.post(OPTIONS, json={"CLIP_stop_at_last_layers": 2}), "CLIP_stop_at_last_layers"
    )


def test_all_settings_that_are_told_can_be_sent_back(api: httpx.Client) -> None:
    """As a front end does that changes one of them."""
    settings = api.get(OPTIONS).json()
    answer = api.post(OPTIONS, json={**settings, "sd_model_checkpoint": "a_text_to_image"})
    assert (answer.status_code, answer.json()) == (200, None), answer.text
    assert api.get(OPTIONS).json() == {**settings, "sd_model_checkpoint": "a_text_to_image"}


def test_whether_anybody_answers_is_asked_in_several_ways(api: httpx.Client) -> None:
    assert api.get("/sdapi/v1/cmd-flags").json()["api"] is True
    assert api.get("/sdapi/v1/memory").json().keys() == {"ram", "cuda"}
    assert api.get("/queue/status").json()["queue_size"] == 0
    for name in ("checkpoints", "vae", "loras", "embeddings"):
        answer = api.post(f"/sdapi/v1/refresh-{name}")
        assert (answer.status_code, answer.json()) == (200, None)


def test_an_error_is_told_where_front_ends_look_for_it(api: httpx.Client) -> None:
    answers = [api.post(DRAW, json={"steps": 0}), api.get("/sdapi/v1/nothing"), api.post(DRAW, content=b"x" * (5 * 2**20))]
    assert [answer.status_code for answer in answers] == [400, 404, 413]
    for answer in answers:
        assert answer.json()["detail"] == answer.json()["error"]["message"]
        assert int(answer.headers["content-length"]) == len(answer.content)
    assert "detail" not in api.post("/v1/images/generations", json={}).json()


def test_what_front_ends_ask_for_at_their_start_is_answered(api: httpx.Client) -> None:
    assert [item["name"] for item in api.get("/sdapi/v1/upscalers").json()] == ["None"]
    nothing = ("latent-upscale-modes", "sd-vae", "sd-modules", "loras", "hypernetworks", "prompt-styles", "face-restorers")
    for name in (*nothing, "realesrgan-models", "extensions", "script-info"):
        assert api.get(f"/sdapi/v1/{name}").json() == []
    assert api.get("/sdapi/v1/scripts").json() == {"txt2img": [], "img2img": []}


@pytest.mark.parametrize(("sent", "form"), [("jpg", "JPEG"), ("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
@pytest.mark.parametrize("once", [True, False], ids=["of a request", "for good"])
def test_pictures_are_written_as_it_was_set(api: httpx.Client, sent: str, form: str, once: bool) -> None:
    """PNG came whatever had been set (https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/7051), or set for a request
    (https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/11762).
    """
    body = {**OF_A_CHAT, "prompt": "a café \U0001f431"}
    if once:
        body["override_settings"] = {"samples_format": sent}
    else:
        assert api.post(OPTIONS, json={"samples_format": sent}).json() is None
        assert api.get(OPTIONS).json()["samples_format"] == sent
    answer = api.post(DRAW, json=body).json()
    assert shown(answer["images"][0]).format == form
    told = api.post(PNG_INFO, json={"image": answer["images"][0]}).json()
    assert told["info"] == json.loads(answer["info"])["infotexts"][0]
    assert told["parameters"]["Prompt"] == "a café \U0001f431"
    assert api.get(OPTIONS).json()["samples_format"] == ("png" if once else sent)


def test_a_pictures_quality_is_set_too(api: httpx.Client) -> None:
    def size(**settings: object) -> int:
        return len(api.post(REDRAW, json={**body, "override_settings": settings}).json()["images"][0])

    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    body = {"prompt": "a box", "seed": 1, "init_images": [text(noise)]}
    assert (
        size(samples_format="jpg", jpeg_quality=10) < size(samples_format="jpg") < size(samples_format="jpg", jpeg_quality="100")
    )
    assert size(samples_format="webp") < size(samples_format="webp", webp_lossless=True)
    api.post(DRAW, json={"override_settings": {"jpeg_quality": 7}, "override_settings_restore_afterwards": False})
    settings = api.get(OPTIONS).json()
    assert (settings["jpeg_quality"], settings["samples_format"]) == (7, "png")
    assert "it must be 'png', 'jpg'" in refused(api.post(OPTIONS, json={"samples_format": "avif"}), "samples_format")
    refused(api.post(OPTIONS, json={"jpeg_quality": 0}), "jpeg_quality")


def test_a_text_that_exif_cannot_hold_is_left_out(api: httpx.Client) -> None:
    answer = api.post(DRAW, json={"prompt": "x" * 40_000, "override_settings": {"samples_format": "jpg"}})
    assert answer.status_code == 200, answer.text
    assert api.post(PNG_INFO, json={"image": answer.json()["images"][0]}).json()["info"] == ""
    assert json.loads(answer.json()["info"])["infotexts"][0].startswith("x" * 40_000)


def test_a_picture_that_its_format_cannot_hold_is_refused_before_it_is_drawn(api: httpx.Client, drawers: Drawers) -> None:
    """https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/11439"""
    body = {"width": 8, "height": 16_384, "override_settings": {"samples_format": "webp"}}
    assert "no side may have more than 16383" in refused(api.post(DRAW, json=body), "height")
    assert drawers.asked == []

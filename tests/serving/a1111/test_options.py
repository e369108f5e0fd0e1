"""AUTOMATIC1111's settings, lists and probes, and how errors are told."""

from __future__ import annotations

import json

import httpx

from webui_forms import DRAW, OPTIONS, refused


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

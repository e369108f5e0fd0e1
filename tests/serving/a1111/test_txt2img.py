"""AUTOMATIC1111's txt2img before the same models, as its front ends call it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from nereid.serving.gateway.launch import Rules

from drawing_models import STEPS, Drawers, drawing_repository
from gateway_before import gateway
from webui_forms import DRAW, OF_A_CHAT, OF_A_PACKAGE, OF_A_STORY, OF_A_TOOL, OPTIONS, PROGRESS, REDRAW, refused, shown, text


def test_it_is_there_only_where_it_was_asked_for(repository: Path, triton: int) -> None:
    with gateway(repository, triton) as running:
        assert httpx.post(f"{running.url}{DRAW}", json=OF_A_CHAT).status_code == 404
        assert httpx.get(f"{running.url}{PROGRESS}").status_code == 404


def test_what_front_ends_send_is_drawn(api: httpx.Client, drawers: Drawers) -> None:
    made = api.post(DRAW, json=OF_A_CHAT)
    assert made.status_code == 200, made.text
    asked, answer = drawers.asked[-1], made.json()
    assert (asked["prompt"], asked["negative_prompt"], asked["num_inference_steps"]) == (b"a box", b"rain", 6)
    assert (asked["scheduler"], asked["guidance_scale"], asked["width"], asked["height"]) == (b"dpmpp_2m_karras", 7, 64, 48)
    picture, info = shown(answer["images"][0]), json.loads(answer["info"])
    assert (picture.format, picture.size) == ("PNG", (64, 48))
    assert np.asarray(picture)[0, 0, 0] == info["seed"] % 256
    words = (
        f"Steps: 6, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: {info['seed']}, Size: 64x48, Model: text_to_image, Version: "
    )
    assert picture.info["parameters"].startswith(f"a box\nNegative prompt: rain\n{words}")
    assert info["infotexts"] == [picture.info["parameters"]]
    assert (info["warnings"], info["interrupted"], info["sampler_name"]) == (["one"], False, "DPM++ 2M Karras")
    assert answer["parameters"]["cfg_scale"] == 7
    package = api.post(DRAW, json=OF_A_PACKAGE)
    assert package.status_code == 200, package.text
    assert drawers.asked[-1]["scheduler"] == b"euler_a"
    assert "eta" not in drawers.asked[-1]
    forge = api.post(DRAW, json={**OF_A_PACKAGE, "distilled_cfg_scale": 3.5, "sampler_name": "DPM++ SDE", "scheduler": "Karras"})
    assert forge.status_code == 200, forge.text
    assert (drawers.asked[-1]["scheduler"], drawers.asked[-1]["guidance_scale"]) == (b"dpmpp_sde_karras", 7)


def test_an_empty_request_is_the_checkpoints_own(api: httpx.Client, drawers: Drawers) -> None:
    answer = api.post(DRAW, json={})
    assert answer.status_code == 200, answer.text
    assert drawers.asked[-1].keys() == {"prompt", "seed", "run_id"}
    assert json.loads(answer.json()["info"])["steps"] == STEPS


def test_each_picture_of_a_request_has_a_seed_of_its_own(api: httpx.Client, drawers: Drawers) -> None:
    answer = api.post(DRAW, json={**OF_A_CHAT, "seed": 40, "batch_size": 2, "n_iter": 2}).json()
    info = json.loads(answer["info"])
    assert info["all_seeds"] == [40, 41, 42, 43]
    assert [np.asarray(shown(item))[0, 0, 0] for item in answer["images"]] == [40, 41, 42, 43]
    assert sorted(asked["seed"] for asked in drawers.asked) == [40, 41, 42, 43]
    assert api.post(DRAW, json={**OF_A_CHAT, "send_images": False}).json()["images"] == []
    assert "n_iter: 9 x batch_size 8 is not allowed" in refused(api.post(DRAW, json={"batch_size": 8, "n_iter": 9}), "n_iter")


def test_a_chat_that_asks_for_no_fresh_noise_and_names_settings_as_they_are_is_drawn(api: httpx.Client, drawers: Drawers) -> None:
    made = api.post(DRAW, json=OF_A_STORY)
    assert made.status_code == 200, made.text
    assert drawers.asked[-1]["scheduler"] == b"euler"
    info = json.loads(made.json()["info"])
    assert (info["sd_model_name"], info["sampler_name"]) == ("text_to_image", "Euler a")
    assert ", Eta: 0, Version: " in info["infotexts"][0]


def test_a_tool_that_does_not_say_that_it_sends_json_is_read(api: httpx.Client, drawers: Drawers) -> None:
    with httpx.Client(base_url=api.base_url, timeout=60) as tool:
        for path, body in ((OPTIONS, {"sd_model_checkpoint": "text_to_image"}), (DRAW, OF_A_TOOL)):
            answer = tool.post(path, content=json.dumps(body))
            assert "content-type" not in answer.request.headers
            assert answer.status_code == 200, answer.text
        assert drawers.asked[-1]["scheduler"] == b"dpmpp_2m_karras"
        of_a_page = tool.post(DRAW, content=json.dumps(OF_A_TOOL), headers={"Origin": "https://elsewhere.example"})
        assert of_a_page.status_code == 415
        other = tool.post(DRAW, content=json.dumps(OF_A_TOOL), headers={"Content-Type": "text/plain"})
        assert other.status_code == 415
        assert tool.post("/v1/images/generations", content=json.dumps({"prompt": "a box"})).status_code == 415


def test_a_tool_whose_own_sampler_is_dpmpp_sde_is_drawn(api: httpx.Client, drawers: Drawers) -> None:
    """It sends 0 for the share of fresh noise and for what multiplies it."""
    answer = api.post(DRAW, json={**OF_A_TOOL, "sampler_index": "DPM++ SDE"})
    assert answer.status_code == 200, answer.text
    assert (drawers.asked[-1]["scheduler"], drawers.asked[-1]["eta"]) == (b"dpmpp_sde_karras", 0)
    assert ", Sampler: DPM++ SDE Karras, " in json.loads(answer.json()["info"])["infotexts"][0]


def test_a_sampler_is_honoured_by_its_shortest_name(api: httpx.Client, drawers: Drawers) -> None:
    assert api.post(DRAW, json={"sampler": "DDIM"}).status_code == 200
    assert drawers.asked[-1]["scheduler"] == b"ddim"
    refused(api.post(DRAW, json={"sampler": "Heun"}), "sampler_name")


def test_the_account_of_a_picture_is_whole(api: httpx.Client) -> None:
    """Programs with types read all that AUTOMATIC1111 tells, or nothing."""
    info = json.loads(api.post(DRAW, json={"prompt": "a box", "batch_size": 2}).json()["info"])
    assert info["all_subseeds"] == [0, 0]
    words = {"sampler_name", "sd_model_name", "sd_model_hash", "job_timestamp", "version"}
    numbers = {"subseed", "subseed_strength", "denoising_strength", "seed_resize_from_w", "seed_resize_from_h", "clip_skip"}
    assert all(isinstance(info[name], str) for name in words)
    assert all(isinstance(info[name], int) for name in numbers)
    rest = {"restore_faces": False, "extra_generation_params": {}, "styles": [], "is_using_inpainting_conditioning": False}
    assert {name: info[name] for name in rest} == rest
    assert {"face_restoration_model", "sd_vae_name", "sd_vae_hash"} <= info.keys()


@pytest.mark.parametrize(
    ("config", "sent", "asked", "label", "cfg"),
    [
        ({"_class_name": "DDIMScheduler"}, {}, {}, "DDIM", 5.5),
        ({"_class_name": "DDIMScheduler"}, {"eta": 0.5, "cfg_scale": 3}, {"eta": 0.5}, "DDIM", 3),
        ({"_class_name": "EulerDiscreteScheduler"}, {"eta": 0.5}, {}, "Euler", 5.5),
        ({"_class_name": "EulerAncestralDiscreteScheduler"}, {"eta": 0}, {"scheduler": b"euler"}, "Euler a", 5.5),
        ({"_class_name": "EulerDiscreteScheduler"}, {"scheduler": "Karras"}, {"scheduler": b"euler_karras"}, "Euler Karras", 5.5),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}, {}, {}, "DPM++ 2M Karras", 5.5),
    ],
    ids=str,
)
def test_what_a_request_leaves_out_is_told_as_the_checkpoint_has_it(
    tmp_path: Path,
    triton: int,
    drawers: Drawers,
    config: dict[str, Any],
    sent: dict[str, Any],
    asked: dict[str, Any],
    label: str,
    cfg: float,
) -> None:
    facts = {"default_steps": STEPS, "default_guidance": 5.5, "size_multiple": 8, "scheduler": config}
    repository = drawing_repository(tmp_path / "repository", facts)
    with gateway(repository, triton, rules=Rules(a1111=True)) as running:
        answer = httpx.post(f"{running.url}{DRAW}", json=sent, timeout=60)
    assert answer.status_code == 200, answer.text
    told = {name: drawers.asked[-1][name] for name in ("scheduler", "eta") if name in drawers.asked[-1]}
    assert told == {name: pytest.approx(value) if name == "eta" else value for name, value in asked.items()}
    info = json.loads(answer.json()["info"])
    assert (info["sampler_name"], info["cfg_scale"], info["steps"]) == (label, cfg, STEPS)
    assert f"Steps: {STEPS}, Sampler: {label}, CFG scale: {cfg:g}, Seed: " in info["infotexts"][0]


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"enable_hr": True}, "enable_hr", "true is not allowed; it must be false or absent"),
        ({"sampler_name": "DPM adaptive"}, "sampler_name", "it must be one of Euler, Euler a, DPM++ 2M"),
        ({"scheduler": "Exponential"}, "scheduler", "'Exponential' is not allowed; it must be one of Automatic, Uniform, Karras"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, "override_settings.CLIP_stop_at_last_layers", "it must be 1"),
        ({"override_settings": {"face": 2}}, "override_settings.face", "this field is not supported"),
        ({"alwayson_scripts": {"ADetailer": {}}}, "alwayson_scripts", "it must be {} or absent"),
        ({"prompt": "a <lora:fox:0.8>"}, "prompt", "'<lora:fox:0.8>' is not supported"),
        ({"styles": ["x"]}, "styles", "a list of 1 is not allowed; it must be [] or"),
        ({"steps": 0}, "steps", "it must be at least 1"),
        ({"seed": 2**63 - 1, "batch_size": 2}, "seed", "is not allowed for 2 pictures"),
        ({"wind": 1}, "wind", "this field is not supported"),
        ({"prompt": "WRONG"}, "width", "500 is not allowed"),
    ],
    ids=str,
)
def test_what_would_change_the_picture_and_cannot_be_had_is_refused_by_name(
    api: httpx.Client, change: dict[str, Any], param: str, words: str
) -> None:
    message = refused(api.post(DRAW, json={**OF_A_CHAT, **change}), param).replace("True is", "true is")
    assert words in message


def test_weights_in_a_prompt_are_told_to_be_plain_text(api: httpx.Client) -> None:
    info = json.loads(api.post(DRAW, json={"prompt": "a (red:1.2) box (big)"}).json()["info"])
    assert info["warnings"] == ["prompt: weights such as '(red:1.2)' are read as plain text", "one"]


TEXTS = {"restore_faces": "False", "tiling": "false", "do_not_save_grid": "True", "s_noise": "1", "subseed_strength": "0.0"}
READ = {"steps": "5", "cfg_scale": "7.5", "width": "64", "seed": "3", "override_settings_restore_afterwards": "True"}


def test_texts_stand_for_numbers_and_truth_values(api: httpx.Client, drawers: Drawers) -> None:
    """As AUTOMATIC1111 reads them; scripts send such, and numbers for truth values."""
    settings = {"CLIP_stop_at_last_layers": "1", "img2img_color_correction": 0}
    answer = api.post(DRAW, json={**TEXTS, **READ, "enable_hr": 0, "override_settings": settings})
    assert answer.status_code == 200, answer.text
    asked = drawers.asked[-1]
    assert (asked["num_inference_steps"], asked["guidance_scale"], asked["width"], asked["seed"]) == (5, 7.5, 64, 3)
    for name, value in (("restore_faces", "True"), ("enable_hr", 1), ("subseed_strength", "0.5"), ("tiling", "maybe")):
        assert "is not allowed; it must be" in refused(api.post(DRAW, json={name: value}), name)


def test_styles_without_a_name_and_forges_settings_change_nothing(api: httpx.Client) -> None:
    forge = {"forge_preset": "xl", "forge_additional_modules": [], "forge_inference_memory": 1024}
    answer = api.post(DRAW, json={"prompt": "a box", "styles": [""], "override_settings": forge})
    assert answer.status_code == 200, answer.text
    refused(api.post(DRAW, json={"styles": ["", "noir"]}), "styles")
    modules = {"override_settings": {"forge_additional_modules": ["/models/ae.safetensors"]}}
    refused(api.post(DRAW, json=modules), "override_settings.forge_additional_modules")


def test_a_picture_has_as_many_whole_latents_as_its_size_has(api: httpx.Client, drawers: Drawers) -> None:
    """As it is there; front ends offer any size."""
    picture = text(Image.new("RGB", (64, 64)))
    for path, body in ((DRAW, {}), (REDRAW, {"init_images": [picture]}), (REDRAW, {"init_images": [picture], "mask": picture})):
        answer = api.post(path, json={**body, "width": 71, "height": 85})
        assert answer.status_code == 200, answer.text
        assert (drawers.asked[-1]["width"], drawers.asked[-1]["height"]) == (64, 80)
        warnings = json.loads(answer.json()["info"])["warnings"]
        assert warnings[:2] == ["width: 71 is read as 64, a multiple of 8", "height: 85 is read as 80, a multiple of 8"]
    assert api.post(DRAW, json={"width": 7}).status_code == 200  # left to the model to refuse
    assert drawers.asked[-1]["width"] == 7


@pytest.mark.parametrize("value", ["nan", "Infinity", "-inf"])
@pytest.mark.parametrize("field", ["cfg_scale", "eta", "s_noise"])
def test_a_text_that_stands_for_no_finite_number_is_refused(api: httpx.Client, drawers: Drawers, field: str, value: str) -> None:
    """It was drawn, and then the answer could not be written (https://github.com/pydantic/pydantic/pull/3994)."""
    answer = api.post(DRAW, json={"prompt": "a box", field: value})
    assert answer.status_code == 400, answer.text
    assert answer.json()["detail"] == f"{field}: {value!r} is not allowed; it must be a finite number"
    assert drawers.asked == []

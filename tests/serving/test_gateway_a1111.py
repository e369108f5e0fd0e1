"""AUTOMATIC1111's API before the same models, as its front ends call it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nereid.diffusion.solvers import SCHEDULERS, SchedulerName
from nereid.serving.gateway.a1111.answers import picture_info
from nereid.serving.gateway.a1111.jobs import Job
from nereid.serving.gateway.a1111.samplers import SAMPLERS, Chosen, chosen
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.images import Drawing
from nereid.serving.gateway.launch import Rules

from drawing_models import STEPS, Drawers, drawing_repository
from gateway_before import gateway
from small_servers import grpc_server

DRAW, REDRAW, OPTIONS = "/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/sdapi/v1/options"
PROGRESS, INTERRUPT, SKIP = "/sdapi/v1/progress", "/sdapi/v1/interrupt", "/sdapi/v1/skip"
PNG_INFO = "/sdapi/v1/png-info"

# What front ends send: a chat's (its settings' own defaults), a Python package's (every argument that it has), a writer of
# stories' in a browser, a tool's of a platform for agents, an add-on's of a program for scenes, a plugin's of one for painting.
OF_A_CHAT: dict[str, Any] = {
    "url": "http://localhost:7860",
    "auth": "",
    "prompt": "a box",
    "negative_prompt": "rain",
    "sampler_name": "DPM++ 2M",
    "scheduler": "karras",
    "steps": 6,
    "cfg_scale": 7,
    "width": 64,
    "height": 48,
    "restore_faces": False,
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 1,
    "hr_additional_modules": [],
    "denoising_strength": 0.7,
    "hr_second_pass_steps": 0,
    "override_settings": {"CLIP_stop_at_last_layers": 1},
    "override_settings_restore_afterwards": True,
    "clip_skip": 1,
    "save_images": True,
    "send_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
}
OF_A_PACKAGE: dict[str, Any] = {
    "enable_hr": False,
    "hr_scale": 2,
    "hr_upscaler": "Latent",
    "hr_second_pass_steps": 0,
    "hr_resize_x": 0,
    "hr_resize_y": 0,
    "denoising_strength": 0.7,
    "firstphase_width": 0,
    "firstphase_height": 0,
    "prompt": "a box",
    "styles": [],
    "seed": -1,
    "subseed": -1,
    "subseed_strength": 0.0,
    "seed_resize_from_h": 0,
    "seed_resize_from_w": 0,
    "batch_size": 1,
    "n_iter": 1,
    "steps": 20,
    "cfg_scale": 7.0,
    "width": 64,
    "height": 64,
    "restore_faces": False,
    "tiling": False,
    "do_not_save_samples": False,
    "do_not_save_grid": False,
    "negative_prompt": "",
    "eta": 1.0,
    "s_churn": 0,
    "s_tmax": 0,
    "s_tmin": 0,
    "s_noise": 1,
    "override_settings": {},
    "override_settings_restore_afterwards": True,
    "sampler_name": "Euler a",
    "sampler_index": "Euler a",
    "script_name": None,
    "script_args": [],
    "send_images": True,
    "save_images": False,
    "alwayson_scripts": {},
}
OF_A_STORY: dict[str, Any] = {
    "prompt": "a box",
    "seed": 7,
    "sampler_name": "Euler a",
    "batch_size": 1,
    "n_iter": 1,
    "steps": 6,
    "cfg_scale": 7,
    "width": 64,
    "height": 64,
    "negative_prompt": "",
    "do_not_save_samples": True,
    "do_not_save_grid": True,
    "enable_hr": False,
    "eta": 0,
    "s_churn": 0,
    "s_tmax": 0,
    "s_tmin": 0,
    "s_noise": 1,
    "override_settings": {
        "sd_model_checkpoint": "text_to_image",
        "eta_noise_seed_delta": 0.0,
        "CLIP_stop_at_last_layers": 1.0,
        "ddim_discretize": "uniform",
        "img2img_fix_steps": False,
        "sd_hypernetwork": "None",
        "inpainting_mask_weight": 1.0,
        "initial_noise_multiplier": 1.0,
        "comma_padding_backtrack": 20.0,
    },
}
OF_A_TOOL: dict[str, Any] = {
    "prompt": "a box",
    "negative_prompt": "",
    "seed": -1,
    "subseed": -1,
    "subseed_strength": 0,
    "seed_resize_from_h": -1,
    "sampler_index": "DPM++ 2M Karras",
    "seed_resize_from_w": -1,
    "batch_size": 1,
    "n_iter": 1,
    "steps": 6,
    "cfg_scale": 7,
    "width": 64,
    "height": 64,
    "restore_faces": False,
    "eta": 0,
    "denoising_strength": 0,
    "s_min_uncond": 0,
    "s_churn": 0,
    "s_tmax": 0,
    "s_tmin": 0,
    "s_noise": 0,
    "override_settings": {"sd_model_checkpoint": "text_to_image"},
    "refiner_switch_at": 0,
    "disable_extra_networks": False,
    "comments": {},
    "script_args": ["outpainting mk2"],
    "alwayson_scripts": {},
}
OF_AN_ADD_ON: dict[str, Any] = {
    "prompt": "a box",
    "width": 64,
    "height": 64,
    "image_similarity": 0.4,
    "denoising_strength": 0.6,
    "seed": 1234567890,
    "cfg_scale": 7.0,
    "steps": 20,
    "sampler": "DPM++ 2M",
    "sampler_index": "DPM++ 2M",
}
OF_A_PAINTER: dict[str, Any] = {
    "prompt": "a box",
    "negative_prompt": "",
    "steps": 20,
    "cfg_scale": 7,
    "width": 64,
    "height": 64,
    "sampler_name": "Euler",
    "batch_size": 1,
    "n_iter": 1,
    "seed": -1,
    "save_images": True,
    "override_settings": {"sd_model_checkpoint": "text_to_image", "sd_vae": "Automatic", "img2img_color_correction": False},
    "override_settings_restore_afterwards": False,
}
MASKS = {
    "mask_blur": 4,
    "inpainting_fill": 0,
    "inpaint_full_res": True,
    "inpaint_full_res_padding": 0,
    "inpainting_mask_invert": 0,
    "initial_noise_multiplier": 1,
    "image_cfg_scale": 1.5,
}


@pytest.fixture
def drawers() -> Iterator[Drawers]:
    made = Drawers()
    yield made
    made.release.set()


@pytest.fixture
def triton(drawers: Drawers) -> Iterator[int]:
    with grpc_server(drawers.all()) as (port, _):
        yield port


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    made = drawing_repository(tmp_path / "repository")
    (made / "a_text_to_image_stream" / "1").mkdir(parents=True)
    (made / "a_text_to_image_stream" / "1" / "pipeline.json").write_text("{}")
    return made


@pytest.fixture
def api(repository: Path, triton: int) -> Iterator[httpx.Client]:
    with (
        gateway(repository, triton, rules=Rules(a1111=True)) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield client


@pytest.fixture
def later() -> Iterator[Callable[[Callable[[], httpx.Response]], Future[httpx.Response]]]:
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


def text(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def shown(picture: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture)))


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def refused(answer: httpx.Response, param: str, status: int = 400) -> str:
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    return str(error["message"])


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


@pytest.mark.parametrize("sent", [OF_AN_ADD_ON, OF_A_PAINTER], ids=["add-on", "painter"])
def test_programs_that_draw_over_pictures_are_served(api: httpx.Client, drawers: Drawers, sent: dict[str, Any]) -> None:
    answer = api.post(REDRAW, json={**sent, "init_images": [text(Image.new("RGB", (64, 64)))]})
    assert answer.status_code == 200, answer.text
    assert drawers.asked[-1]["strength"] == np.float32(sent.get("denoising_strength", 0.75))


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


@pytest.mark.parametrize("lead", ["", "data:image/png;base64,", "data:image/png;base64, "])
def test_a_pictures_parameters_are_read_from_it(api: httpx.Client, lead: str) -> None:
    drawn = api.post(DRAW, json=OF_A_CHAT).json()
    told = api.post(PNG_INFO, json={"image": lead + drawn["images"][0]}).json()
    assert told["info"] == json.loads(drawn["info"])["infotexts"][0]
    parameters = told["parameters"]
    assert (parameters["Prompt"], parameters["Negative prompt"], parameters["Steps"]) == ("a box", "rain", "6")
    assert (parameters["Sampler"], parameters["Size-1"], parameters["Size-2"]) == ("DPM++ 2M Karras", "64", "48")
    assert told["items"] == {}


def test_a_picture_without_parameters_has_none(api: httpx.Client) -> None:
    plain = api.post(PNG_INFO, json={"image": text(Image.new("RGB", (8, 8)))})
    assert (plain.status_code, plain.json()) == (200, {"info": "", "items": {}, "parameters": {}})
    assert "no picture that can be read" in refused(api.post(PNG_INFO, json={"image": "aGk="}), "image")
    refused(api.post(PNG_INFO, json={}), "image")


def test_texts_that_are_long_when_unpacked_are_refused(api: httpx.Client) -> None:
    packed = PngInfo()
    for number in range(3):
        packed.add_text(f"text{number}", "a" * 500_000, zip=True)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=packed)
    assert len(buffer.getvalue()) < 10_000
    message = refused(api.post(PNG_INFO, json={"image": base64.b64encode(buffer.getvalue()).decode()}), "image")
    assert "more than 1048576 characters" in message


def test_values_in_quotation_marks_stay_whole() -> None:
    told = picture_info({"parameters": 'a, b: c\nSteps: 4, Hashes: "x: 1, y: 2", Size: 8x16, Model: m', "Comment": "hi"})
    assert told["items"] == {"Comment": "hi"}
    wanted = {"Prompt": "a, b: c", "Negative prompt": "", "Steps": "4", "Hashes": '"x: 1, y: 2"', "Size-1": "8", "Size-2": "16"}
    assert told["parameters"] == {**wanted, "Model": "m"}
    assert picture_info({"parameters": "only words"})["parameters"] == {"Prompt": "only words", "Negative prompt": ""}


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
    assert "'init_images'" not in refused(api.post(REDRAW, json={**body, "resize_mode": 3}), "resize_mode")
    own = api.post(REDRAW, json={"init_images": [text(wide.resize((61, 50)))]})
    assert shown(own.json()["images"][0]).size == (64, 48)


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
        ({"styles": ["x"]}, "styles", "it must be [] or absent"),
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


def test_weights_in_a_prompt_are_told_to_be_plain_text(api: httpx.Client) -> None:
    info = json.loads(api.post(DRAW, json={"prompt": "a (red:1.2) box (big)"}).json()["info"])
    assert info["warnings"] == ["prompt: weights such as '(red:1.2)' are read as plain text", "one"]


# --- samplers ---


@pytest.mark.parametrize(
    ("name", "schedule", "eta", "expected"),
    [
        ("Euler", None, None, Chosen("euler", label="Euler")),
        ("Euler a", "Automatic", 1.0, Chosen("euler_a", label="Euler a")),
        ("Euler a", None, 0.0, Chosen("euler", label="Euler a")),
        ("DPM++ 2M SDE", "Automatic", 0.0, Chosen("dpmpp_2m_karras", label="DPM++ 2M SDE Karras")),
        ("k_euler_ancestral", None, None, Chosen("euler_a", label="Euler a")),
        ("DPM++ 2M", None, None, Chosen("dpmpp_2m_karras", label="DPM++ 2M Karras")),
        ("DPM++ 2M", "Automatic", None, Chosen("dpmpp_2m_karras", label="DPM++ 2M Karras")),
        ("DPM++ 2M", "Uniform", 0.5, Chosen("dpmpp_2m", "linspace", label="DPM++ 2M Uniform")),
        ("dpm++ 2m sde karras", "automatic", None, Chosen("dpmpp_2m_sde_karras", label="DPM++ 2M SDE Karras")),
        ("DPM++ SDE", None, None, Chosen("dpmpp_sde_karras", label="DPM++ SDE Karras")),
        ("DPM++ SDE Karras", "Automatic", 1.0, Chosen("dpmpp_sde_karras", eta=1.0, label="DPM++ SDE Karras")),
        ("k_dpmpp_sde_ka", None, None, Chosen("dpmpp_sde_karras", label="DPM++ SDE Karras")),
        ("DPM++ SDE", "Uniform", 0.0, Chosen("dpmpp_sde", "linspace", 0.0, label="DPM++ SDE Uniform")),
        ("Euler Karras", "Automatic", None, Chosen("euler_karras", label="Euler Karras")),
        ("k_dpmpp_2m_ka", None, None, Chosen("dpmpp_2m_karras", label="DPM++ 2M Karras")),
        ("Euler", "karras", None, Chosen("euler_karras", label="Euler Karras")),
        ("Euler", "SGM Uniform", None, Chosen("euler", "trailing", label="Euler SGM Uniform")),
        ("DDIM", "DDIM", 0.5, Chosen("ddim", "leading", 0.5, label="DDIM DDIM")),
        ("unipc_karras", None, None, Chosen("unipc_karras", label="UniPC Karras")),
        ("LCM", None, None, Chosen("lcm", label="LCM")),
        (None, None, None, Chosen()),
        (None, "Automatic", None, Chosen()),
    ],
)
def test_a_sampler_and_a_schedule_are_a_scheduler_here(
    name: str | None, schedule: str | None, eta: float | None, expected: Chosen
) -> None:
    assert chosen(name, schedule, eta, flow=False) == expected


@pytest.mark.parametrize(
    ("name", "schedule", "eta", "field"),
    [
        ("Heun", None, None, "sampler_name"),
        ("DPM++ 2S a", None, None, "sampler_name"),
        ("Euler", "Beta", None, "scheduler"),
        ("DDIM", "Karras", None, "scheduler"),
        ("DDIM Karras", None, None, "scheduler"),
        ("LCM", "Uniform", None, "scheduler"),
        ("Euler a", None, 0.5, "eta"),
        (None, "Karras", None, "scheduler"),
    ],
)
def test_what_is_not_the_same_here_is_refused(name: str | None, schedule: str | None, eta: float | None, field: str) -> None:
    with pytest.raises(ApiError, match=f"^400|{field}") as caught:
        chosen(name, schedule, eta, flow=False)
    assert caught.value.param == field
    assert caught.value.message.startswith(f"{field}: ")


def test_less_fresh_noise_is_refused_only_where_there_is_some() -> None:
    for name in ("Euler", "Euler a", "DPM++ 2M", "DDIM"):
        assert chosen(name, None, None, 0.0, flow=False) == chosen(name, None, None, flow=False)
    assert chosen("DPM++ 2M SDE", None, 0.0, 0.5, flow=False).scheduler == "dpmpp_2m_karras"
    assert chosen("DPM++ SDE", None, 0.0, 0.5, flow=False).eta == 0
    for name in ("DPM++ 2M SDE", "DPM++ SDE"):
        with pytest.raises(ApiError, match=r"s_noise: 0\.5 is not allowed with DPM"):
            chosen(name, None, None, 0.5, flow=False)


@pytest.mark.parametrize("own", SCHEDULERS)
def test_every_checkpoints_own_solver_has_a_name(own: SchedulerName) -> None:
    found = chosen(None, None, None, flow=False, own=own)
    assert (found.scheduler, found.timestep_spacing) == (None, None)
    assert found.label.endswith(" Karras") == own.karras


def test_a_rectified_flow_has_no_karras_by_itself() -> None:
    assert chosen("DPM++ 2M", None, None, flow=True).scheduler == "dpmpp_2m"


def test_every_solver_stands_among_the_samplers(api: httpx.Client) -> None:
    told = api.get("/sdapi/v1/samplers").json()
    assert {"name": "Euler a", "aliases": ["k_euler_a", "k_euler_ancestral", "euler_a"], "options": {}} in told
    assert {name.family for name in SCHEDULERS} == {item.scheduler for item in SAMPLERS}
    schedules = api.get("/sdapi/v1/schedulers").json()
    for item in told:
        for schedule in schedules:
            answer = api.post(DRAW, json={"sampler_name": item["name"], "scheduler": schedule["name"]})
            assert answer.status_code in (200, 400), answer.text
            if schedule["name"] == "automatic":
                assert answer.status_code == 200, answer.text


# --- options ---


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


# --- progress and interruption ---

IDLE = {"progress": 0.0, "eta_relative": 0.0, "current_image": None}


def test_progress_is_that_of_the_run(api: httpx.Client, drawers: Drawers, later: Any) -> None:
    idle = api.get(PROGRESS).json()
    assert {name: idle[name] for name in IDLE} == IDLE
    assert idle["state"]["job_count"] == 0
    drawers.held = 5
    answer = later(lambda: api.post(DRAW, json={"steps": 10, "n_iter": 2, "width": 64, "height": 48}))
    until(lambda: api.get(PROGRESS).json()["state"]["sampling_step"] == 4)
    told = api.get(PROGRESS).json()
    assert told["progress"] == pytest.approx(0.2)
    assert (told["state"]["sampling_steps"], told["state"]["job_no"], told["state"]["job_count"]) == (10, 0, 2)
    assert told["eta_relative"] > 0
    assert shown(told["current_image"]).size == (64, 48)
    assert np.asarray(shown(told["current_image"]))[0, 0, 0] == 4
    assert api.get(PROGRESS, params={"skip_current_image": "true"}).json()["current_image"] is None
    drawers.release.set()
    assert len(answer.result().json()["images"]) == 2
    assert api.get(PROGRESS).json()["state"] == idle["state"]


def test_progress_of_a_redrawn_picture_counts_the_steps_that_it_takes(api: httpx.Client, drawers: Drawers, later: Any) -> None:
    drawers.held = 18
    body = {"init_images": [text(Image.new("RGB", (64, 64)))], "steps": 20, "denoising_strength": 0.5}
    answer = later(lambda: api.post(REDRAW, json=body))
    until(lambda: api.get(PROGRESS).json()["state"]["sampling_step"] == 7)
    assert api.get(PROGRESS).json()["state"]["sampling_steps"] == 10
    drawers.release.set()
    assert answer.result().status_code == 200


def test_an_interrupted_request_is_answered_with_what_was_done_and_its_run_cancelled(
    api: httpx.Client, drawers: Drawers, later: Any
) -> None:
    assert api.post(INTERRUPT).json() == {}
    done = api.post(DRAW, json={"steps": 3})
    assert len(done.json()["images"]) == 1
    assert not drawers.cancelled.is_set()
    drawers.held = 4
    answer = later(lambda: api.post(DRAW, json={"steps": 10, "n_iter": 3}))
    assert drawers.reached.wait(60)
    assert api.post(INTERRUPT).status_code == 200
    made = answer.result()
    assert made.status_code == 200, made.text
    assert (made.json()["images"], json.loads(made.json()["info"])["interrupted"]) == ([], True)
    assert drawers.cancelled.wait(60)
    assert len(drawers.asked) == 2
    assert api.get(PROGRESS).json()["state"]["job_count"] == 0


class SecondHeld:
    """Whose second picture never comes."""

    def __init__(self) -> None:
        self.count = 0
        self.waiting = asyncio.Event()

    async def stream_image(self, prompt: str, **options: Any) -> Any:
        from nereid_client import ImageResult

        self.count += 1
        if self.count == 2:
            self.waiting.set()
            await asyncio.Event().wait()
        yield ImageResult(
            pixels=np.zeros((1, 8, 8, 3), np.uint8), seeds=(1,), warnings=(), queue_seconds=0.0, denoise_seconds=0.0
        )


@pytest.mark.parametrize(("end", "left"), [(Job.interrupt, 1), (Job.skip, 2)], ids=["interrupted", "skipped"])
def test_the_job_keeps_the_pictures_that_were_done(end: Callable[[Job], None], left: int) -> None:
    async def draw() -> list[Any]:
        client, job = SecondHeld(), Job(3)
        task = asyncio.ensure_future(job.draw(client, [[Drawing(prompt="", options={})]] * 3, "id"))  # type: ignore[arg-type]
        await client.waiting.wait()
        assert job.share == pytest.approx(1 / 3)
        end(job)
        return list(await task)

    assert len(asyncio.run(draw())) == left


def test_a_skip_keeps_nothing_running_for_a_caller_that_has_hung_up() -> None:
    async def draw() -> int:
        client, job = SecondHeld(), Job(3)
        task = asyncio.ensure_future(job.draw(client, [[Drawing(prompt="", options={})]] * 3, "id"))  # type: ignore[arg-type]
        await client.waiting.wait()
        job.skip()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return client.count

    assert asyncio.run(draw()) == 2


def test_a_skipped_picture_is_left_out_and_the_next_one_drawn(api: httpx.Client, drawers: Drawers, later: Any) -> None:
    assert api.post(SKIP).json() == {}
    drawers.held = 4
    answer = later(lambda: api.post(DRAW, json={"steps": 10, "n_iter": 2, "seed": 40}))
    assert drawers.reached.wait(60)
    drawers.held = 0
    assert api.post(SKIP).status_code == 200
    info = json.loads(answer.result().json()["info"])
    assert (info["all_seeds"], info["interrupted"]) == ([41], False)
    assert drawers.cancelled.wait(60)
    drawers.release.set()


def test_a_caller_that_hangs_up_ends_all_of_its_runs(api: httpx.Client, drawers: Drawers) -> None:
    drawers.held = 2
    with pytest.raises(httpx.TimeoutException):
        api.post(DRAW, json={"steps": 10}, timeout=1.0)
    assert drawers.cancelled.wait(20)
    until(lambda: api.get(PROGRESS).json()["state"]["job_count"] == 0)


def test_keys_are_passwords_here_and_keep_callers_apart(
    repository: Path, triton: int, drawers: Drawers, tmp_path: Path, later: Any
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text('[alice]\nkey = "of-alice"\nrequests_at_once = 1\n[bob]\nkey = "of-bob"\n')
    alice, bob = ("anybody", "of-alice"), ("bob", "of-bob")
    drawers.held = 2
    with (
        gateway(repository, triton, rules=Rules(a1111=True, keys=str(file))) as running,
        httpx.Client(base_url=running.url) as api,
    ):
        unknown = api.get(PROGRESS)
        assert (unknown.status_code, unknown.json()["detail"]) == (401, "the API key is missing or wrong")
        assert unknown.headers["www-authenticate"].startswith("Basic realm=")
        assert api.get("/v1/models").headers["www-authenticate"] == 'Bearer realm="nereid"'
        assert api.get("/queue/status", auth=alice).status_code == 200
        assert api.get(PROGRESS, auth=("anybody", "guessed")).status_code == 401
        assert api.get(PROGRESS, headers={"Authorization": "Basic !"}).status_code == 401
        assert api.get("/v1/models", auth=alice).status_code == 401
        assert api.get(PROGRESS, headers={"Authorization": "Bearer of-alice"}).status_code == 200
        answer = later(lambda: api.post(DRAW, json={"steps": 10}, auth=alice, timeout=60))
        assert drawers.reached.wait(60)
        assert api.post(DRAW, json={}, auth=alice).status_code == 429
        assert api.get(PROGRESS, auth=bob).json()["state"]["job_count"] == 0
        assert api.post(INTERRUPT, auth=bob).status_code == 200
        assert api.get(PROGRESS, auth=alice).json()["state"]["job_count"] == 1
        assert api.post(INTERRUPT, auth=alice).status_code == 200  # though a request of hers runs
        assert json.loads(answer.result().json()["info"])["interrupted"]

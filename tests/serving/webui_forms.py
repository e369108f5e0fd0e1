"""AUTOMATIC1111's API as its front ends call it: its paths, what they send, and how answers are read."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx
from PIL import Image

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


def text(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def shown(picture: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture)))


def refused(answer: httpx.Response, param: str, status: int = 400) -> str:
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    return str(error["message"])

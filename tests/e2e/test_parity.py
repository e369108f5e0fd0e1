"""The served pipelines against diffusers' own, on the same weights, starting latents and scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nereid_client import Client

from conftest import Served

torch = pytest.importorskip("torch")
import diffusers

from nereid_export.drawing import psnr

pytestmark = [pytest.mark.triton, pytest.mark.torch]

SCHEDULERS = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}),
    "dpmpp_2m_karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
}


def pixels(images: Any) -> np.ndarray:
    return np.rint(np.asarray(images) * 255).astype(np.uint8)


@contextmanager
def client_of(served: Served, name: str = "") -> Iterator[Client]:
    with Client(served.grpc_url, name=name, timeout=120) as client:
        yield client


def load(kind: Any, folder: Path) -> Any:
    pipeline = kind.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def start(size: int = 8, channels: int = 4) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((channels, size, size)).astype(np.float32)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(("name", "family"), [("", "sd"), ("v", "v")])
def test_stable_diffusion_equals_diffusers(served: Served, name: str, family: str, scheduler: str) -> None:
    pipeline = load(diffusers.StableDiffusionPipeline, served.checkpoints[family])
    kind, extra = SCHEDULERS[scheduler]
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **extra)
    latents = start()
    theirs = pipeline(
        "a red circle above a blue square",
        negative_prompt="green",
        num_inference_steps=12,
        guidance_scale=5.0,
        latents=torch.from_numpy(latents[None]),
        output_type="np",
    ).images
    with client_of(served, name) as client:
        ours = client.generate_image(
            "a red circle above a blue square",
            negative_prompt="green",
            num_inference_steps=12,
            guidance_scale=5.0,
            scheduler=scheduler,
            latents=latents,
        )
    assert psnr(ours.pixels, pixels(theirs)) >= 45


@pytest.mark.parametrize("negative_prompt", [None, "", "green"])
def test_stable_diffusion_xl_equals_diffusers(served: Served, negative_prompt: str | None) -> None:
    pipeline = load(diffusers.StableDiffusionXLPipeline, served.checkpoints["sdxl"])
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    latents = start(size=12)
    theirs = pipeline(
        "a cross",
        negative_prompt=negative_prompt,
        num_inference_steps=8,
        guidance_scale=6.0,
        width=48,
        height=48,
        latents=torch.from_numpy(latents[None]),
        output_type="np",
    ).images
    with client_of(served, "xl") as client:
        ours = client.generate_image(
            "a cross",
            negative_prompt=negative_prompt,
            num_inference_steps=8,
            guidance_scale=6.0,
            scheduler="euler",
            width=48,
            height=48,
            latents=latents,
        )
    assert psnr(ours.pixels, pixels(theirs)) >= 45


def test_guidance_distilled_model_equals_diffusers(served: Served) -> None:
    pipeline = load(diffusers.StableDiffusionPipeline, served.checkpoints["lcm"])
    latents = start()
    theirs = pipeline(
        "a diamond",
        num_inference_steps=1,
        guidance_scale=8.5,
        latents=torch.from_numpy(latents[None]),
        output_type="np",
    ).images
    with client_of(served, "lcm") as client:
        ours = client.generate_image("a diamond", num_inference_steps=1, guidance_scale=8.5, latents=latents)
    assert psnr(ours.pixels, pixels(theirs)) >= 45


def test_image_to_image_equals_diffusers(served: Served) -> None:
    """The posterior's noise and the starting noise are the server's, handed to diffusers."""
    from nereid.flow.noise import Purpose, normal

    picture = np.random.default_rng(5).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pipeline = load(diffusers.StableDiffusionImg2ImgPipeline, served.checkpoints["sd"])
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    scaled = torch.from_numpy(picture.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1)
    with torch.no_grad():
        posterior = pipeline.vae.encode(scaled).latent_dist
    shape = (4, 8, 8)
    clean = (posterior.mean + posterior.std * torch.from_numpy(normal(9, Purpose.IMAGE_POSTERIOR, shape))) * (
        pipeline.vae.config.scaling_factor
    )
    noise = torch.from_numpy(normal(9, Purpose.INITIAL_LATENTS, shape))[None]
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(10)
    begin = 10 - int(10 * 0.6)
    scheduler.set_begin_index(begin)
    mixed = scheduler.add_noise(clean, noise, scheduler.timesteps[begin : begin + 1])
    embeds, negative = pipeline.encode_prompt("a box", "cpu", 1, True)
    with torch.no_grad():
        for timestep in scheduler.timesteps[begin:]:
            states = torch.cat([negative, embeds])
            output = pipeline.unet(torch.cat([mixed] * 2), timestep, encoder_hidden_states=states).sample
            half = output.chunk(2)
            mixed = scheduler.step(half[0] + 4.0 * (half[1] - half[0]), timestep, mixed, return_dict=False)[0]
        decoded = pipeline.vae.decode(mixed / pipeline.vae.config.scaling_factor).sample
    theirs = pixels((decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy())
    with client_of(served) as client:
        ours = client.generate_image(
            "a box",
            init_image=picture,
            strength=0.6,
            num_inference_steps=10,
            guidance_scale=4.0,
            seed=9,
            scheduler="dpmpp_2m",
        )
    assert psnr(ours.pixels, theirs) >= 45

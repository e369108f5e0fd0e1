"""A part of a picture drawn anew, against diffusers' inpaint pipelines on the same weights, noise and scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nereid.diffusion.plan import commit, pack
from nereid.diffusion.requests import parse_image_request
from nereid.diffusion.settings import Limits
from nereid.diffusion.start import start_runs
from nereid.flow.noise import Purpose, normal

torch = pytest.importorskip("torch")
import diffusers

from nereid_export.checkpoint import Checkpoint
from nereid_export.drawing import Drawer, psnr

pytestmark = pytest.mark.torch

SIDE, SEED, STEPS, GUIDANCE = 48, 9, 8, 4.0
PIPELINES = {"sd": diffusers.StableDiffusionInpaintPipeline, "sdxl": diffusers.StableDiffusionXLInpaintPipeline}
SCHEDULERS: dict[str, Any] = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "dpmpp_2m_karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
}
PICTURE = np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREYS = np.add.outer(np.arange(SIDE) * 3, np.arange(SIDE) * 2).astype(np.uint8)


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def noise(purpose: Purpose, shape: tuple[int, ...]) -> Any:
    return torch.from_numpy(normal(SEED, purpose, shape))[None]


def ours(drawer: Drawer, **asked: np.ndarray) -> np.ndarray:
    """As the server draws it: float32 latents C x H x W."""
    inputs = {
        **drawer.request(["a box"], [SEED], steps=STEPS),
        "guidance_scale": np.array([[GUIDANCE]], np.float32),
        "init_image": PICTURE[None],
        "mask_image": GREYS[None],
        **asked,
    }

    def encode(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        made = drawer.runs["vae_encoder"]({"image": images}, ("latents_mean", "latents_std"))
        return made["latents_mean"], made["latents_std"]

    request = parse_image_request(inputs, drawer.pipeline, Limits())
    (run,) = start_runs(request, encode, lambda: False)
    while not run.done:
        call = pack([run])
        assert commit([run], call, drawer.runs[str(call.variant)](call.inputs, call.outputs)) == [None]
    return run.state.sample


def theirs(folder: Path, family: str, scheduler: str, strength: float, patch: Callable[..., None]) -> np.ndarray:
    """What diffusers' own pipeline makes of it; the posterior's noise and the starting noise are the server's."""
    pipeline = PIPELINES[family].from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    kind, extra = SCHEDULERS[scheduler]
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **extra)

    def encode(image: Any, generator: Any) -> Any:
        posterior = pipeline.vae.encode(image).latent_dist
        drawn = posterior.mean + posterior.std * noise(Purpose.IMAGE_POSTERIOR, tuple(posterior.mean.shape[1:]))
        return drawn * pipeline.vae.config.scaling_factor

    patch(pipeline, "_encode_vae_image", encode)
    patch(f"{PIPELINES[family].__module__}.randn_tensor", lambda shape, **_: noise(Purpose.INITIAL_LATENTS, tuple(shape[1:])))
    made = pipeline(
        "a box",
        image=Image.fromarray(PICTURE),
        mask_image=Image.fromarray(GREYS),
        negative_prompt="",
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        width=SIDE,
        height=SIDE,
        output_type="latent",
    )
    return np.asarray(made.images)[0]


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize(("family", "scheduler"), [*(("sd", name) for name in SCHEDULERS), ("sdxl", "euler")])
def test_a_part_drawn_anew_equals_diffusers(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, family: str, scheduler: str, strength: float
) -> None:
    drawer = Drawer.by_torch(Checkpoint.open(checkpoints[family]))
    asked = {
        "scheduler": np.array([[scheduler.encode()]], np.object_),
        "strength": np.array([[strength]], np.float32),
        "negative_prompt": np.array([[b""]], np.object_),
    }
    made = ours(drawer, **asked)
    expected = theirs(checkpoints[family], family, scheduler, strength, monkeypatch.setattr)
    assert np.abs(made - expected).max() < 2e-3 * np.abs(expected).max()
    assert psnr(drawer.decode(made[None]), drawer.decode(expected[None])) >= 45

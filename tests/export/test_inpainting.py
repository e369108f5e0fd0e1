"""A part of a picture drawn anew, against diffusers' inpaint pipelines on the same weights, noise and scheduler."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nereid.diffusion.plan import commit, pack
from nereid.diffusion.requests import parse_image_request
from nereid.diffusion.settings import Limits
from nereid.diffusion.start import start_runs

torch = pytest.importorskip("torch")
import diffusers

from nereid_export.checkpoint import Checkpoint
from nereid_export.components import components_of
from nereid_export.configs import read_config
from nereid_export.drawing import Drawer, psnr
from nereid_export.engines.check import random_inputs
from nereid_export.split_unet import require_equal

from checkpoints import make_inpainting
from conftest import export
from diffusers_inpainting import drawn_by_diffusers

pytestmark = pytest.mark.torch

SIDE, SEED, STEPS, GUIDANCE = 48, 9, 8, 4.0
PIPELINES = {
    "sd": diffusers.StableDiffusionInpaintPipeline,
    "sdxl": diffusers.StableDiffusionXLInpaintPipeline,
    "sd made for it": diffusers.StableDiffusionInpaintPipeline,
    "sdxl made for it": diffusers.StableDiffusionXLInpaintPipeline,
}
SCHEDULERS: dict[str, Any] = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "dpmpp_2m_karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
}
TOLD = ["mask", "masked_image_latents"]
PICTURE = np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREYS = np.add.outer(np.arange(SIDE) * 3, np.arange(SIDE) * 2).astype(np.uint8)


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {
        f"{family} made for it": make_inpainting(tmp_path_factory.mktemp(family), xl=family == "sdxl")
        for family in ("sd", "sdxl")
    }
    return {**checkpoints, **made}


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


def theirs(
    folder: Path, family: str, scheduler: str, strength: float, patch: Callable[..., None], fill: str = "original"
) -> np.ndarray:
    """What diffusers' own pipeline makes of it; the posterior's noise and the starting noise are the server's."""
    pipeline = PIPELINES[family].from_pretrained(folder, torch_dtype=torch.float32)
    kind, extra = SCHEDULERS[scheduler]
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **extra)
    asked = {"negative_prompt": "", "strength": strength, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    return drawn_by_diffusers(pipeline, PICTURE, GREYS, SEED, patch, fill=fill, output_type="latent", **asked)[0]


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize(
    ("family", "scheduler"),
    [
        *(("sd", name) for name in SCHEDULERS),
        ("sdxl", "euler"),
        ("sd made for it", "dpmpp_2m_karras"),
        ("sdxl made for it", "euler"),
    ],
)
def test_a_part_drawn_anew_equals_diffusers(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, family: str, scheduler: str, strength: float
) -> None:
    drawer = Drawer.by_torch(Checkpoint.open(folders[family]))
    asked = {
        "scheduler": np.array([[scheduler.encode()]], np.object_),
        "strength": np.array([[strength]], np.float32),
        "negative_prompt": np.array([[b""]], np.object_),
    }
    made = ours(drawer, **asked)
    expected = theirs(folders[family], family, scheduler, strength, monkeypatch.setattr)
    assert np.abs(made - expected).max() < 2e-3 * np.abs(expected).max()
    assert psnr(drawer.decode(made[None]), drawer.decode(expected[None])) >= 45


@pytest.mark.parametrize("fill", ["latent_noise", "latent_nothing"])
@pytest.mark.parametrize(("family", "scheduler"), [("sd", "euler"), ("sd made for it", "dpmpp_2m_karras")])
def test_a_part_that_begins_as_noise_or_nothing_equals_diffusers_with_such_latents(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, family: str, scheduler: str, fill: str
) -> None:
    drawer, strength = Drawer.by_torch(Checkpoint.open(folders[family])), 0.6
    asked = {
        "scheduler": np.array([[scheduler.encode()]], np.object_),
        "strength": np.array([[strength]], np.float32),
        "negative_prompt": np.array([[b""]], np.object_),
    }
    made = ours(drawer, inpainting_fill=np.array([[fill.encode()]], np.object_), **asked)
    expected = theirs(folders[family], family, scheduler, strength, monkeypatch.setattr, fill)
    assert np.abs(made - expected).max() < 2e-3 * np.abs(expected).max()
    assert np.abs(made - ours(drawer, **asked)).max() > 0.1


def test_a_unet_made_for_it_is_exported_with_what_it_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(folders["sd made for it"], out)
    unet = read_config(out / "unet" / "config.pbtxt")
    assert {tensor.name: list(tensor.dims) for tensor in unet.input if tensor.name in ("sample", *TOLD)} == {
        "sample": [4, -1, -1],
        "mask": [1, -1, -1],
        "masked_image_latents": [4, -1, -1],
    }
    assert [list(tensor.dims) for tensor in unet.output] == [[4, -1, -1]]
    facts = json.loads((out / "denoise" / "1" / "pipeline.json").read_text())
    assert (facts["inpainting"], facts["latent_channels"]) == (True, 4)
    made = json.loads((out / "text_to_image" / "manifest.json").read_text())
    assert made["source"]["architecture"] == "StableDiffusionInpaintPipeline"
    assert all(check["relative_error"] < 1e-4 for check in made["engines"]["unet"]["checks"])


def test_its_outer_part_is_told_the_same(folders: dict[str, Path]) -> None:
    """Cut in two for feature caching."""
    parts = {part.name: part for part in components_of(Checkpoint.open(folders["sd made for it"], cache_branch=0))}
    whole, outer = parts["unet"], parts["unet_shallow"]
    assert [spec.name for spec in outer.inputs if spec.name in TOLD] == TOLD
    inputs = random_inputs(whole, 2, dict(whole.checks[-1][1]), 3)
    require_equal(
        whole.load(), outer.load(), list(inputs.values()), [list(inputs).index(spec.name) for spec in outer.inputs[:-1]]
    )


def test_pictures_that_export_draws_with_one_are_of_a_part(folders: dict[str, Path]) -> None:
    drawer = Drawer.by_torch(Checkpoint.open(folders["sd made for it"]))
    request = drawer.request(["a box", "a box"], [1, 2], steps=2)
    assert request["init_image"].shape == (2, 32, 32, 3)
    assert [mask.mean() for mask in request["mask_image"]] == [127.5, 127.5]
    assert not np.array_equal(*request["mask_image"])
    assert np.isfinite(drawer.denoise(request)).all()


def test_a_checkpoint_of_such_a_pipeline_with_a_plain_unet_is_one_like_any(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = Path(shutil.copytree(folders["sd"], tmp_path / "plain"))
    index = json.loads((plain / "model_index.json").read_text())
    (plain / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionInpaintPipeline"}))
    assert not Checkpoint.open(plain).inpainting

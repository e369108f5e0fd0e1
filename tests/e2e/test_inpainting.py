"""A part of a picture drawn anew on a server, by any checkpoint and by ones made for it, against diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nereid_client import Client, ImageResult, InvalidRequestError

from conftest import Served, export, serving

torch = pytest.importorskip("torch")
import diffusers

from nereid_export.drawing import psnr

from checkpoints import make_inpainting
from diffusers_inpainting import drawn_by_diffusers

pytestmark = [pytest.mark.triton, pytest.mark.torch]

SIDE, SEED, STEPS, GUIDANCE = 32, 9, 8, 4.0
REQUEST: dict[str, Any] = {"seed": SEED, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "scheduler": "euler"}
PICTURE = np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
MASK = np.zeros((SIDE, SIDE), bool)
MASK[4:20, 8:] = True


@pytest.fixture(scope="module")
def made_for_it(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make_inpainting(tmp_path_factory.mktemp("made"), xl=name == "xl") for name in ("", "xl")}


@pytest.fixture(scope="module")
def own(made_for_it: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of two pipelines whose UNets are told the mask."""
    folder = tmp_path_factory.mktemp("inpainting")
    for name, checkpoint in made_for_it.items():
        export(checkpoint, folder / "repository", name=name)
    yield from serving(folder / "repository", folder, made_for_it)


def theirs(kind: Any, folder: Path, strength: float, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The posteriors' noise and the starting noise are the server's, handed to diffusers."""
    pipeline = kind.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    asked = {"negative_prompt": "green", "strength": strength, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    made = drawn_by_diffusers(pipeline, PICTURE, MASK, SEED, monkeypatch.setattr, output_type="np", **asked)
    return np.rint(made * 255).astype(np.uint8)


def ours(served: Served, name: str, **options: Any) -> np.ndarray:
    request = {**REQUEST, "init_image": PICTURE, "mask_image": MASK, "negative_prompt": "green", **options}
    with Client(served.grpc_url, name=name, timeout=120) as client:
        whole = client.generate_image("a box", **request).pixels
        *_, last = client.stream_image("a box", **request)
    assert isinstance(last, ImageResult)
    assert np.array_equal(last.pixels, whole)
    return whole


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize(("name", "family"), [("", "sd"), ("xl", "sdxl")])
def test_with_any_checkpoint_it_equals_diffusers(
    served: Served, monkeypatch: pytest.MonkeyPatch, name: str, family: str, strength: float
) -> None:
    kind = diffusers.StableDiffusionXLInpaintPipeline if name else diffusers.StableDiffusionInpaintPipeline
    expected = theirs(kind, served.checkpoints[family], strength, monkeypatch)
    assert psnr(ours(served, name, strength=strength), expected) >= 45


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("name", ["", "xl"])
def test_with_one_made_for_it_it_equals_diffusers(
    own: Served, monkeypatch: pytest.MonkeyPatch, name: str, strength: float
) -> None:
    kind = diffusers.StableDiffusionXLInpaintPipeline if name else diffusers.StableDiffusionInpaintPipeline
    expected = theirs(kind, own.checkpoints[name], strength, monkeypatch)
    assert psnr(ours(own, name, strength=strength), expected) >= 45


def test_one_made_for_it_needs_a_mask(own: Served) -> None:
    with Client(own.grpc_url, timeout=60) as client:
        for options in ({}, {"init_image": PICTURE}):
            with pytest.raises(InvalidRequestError, match="mask_image: nothing is not allowed; this model draws parts") as caught:
                client.generate_image("a box", **REQUEST, **options)
            assert caught.value.field == "mask_image"

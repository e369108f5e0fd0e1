"""A part of a picture to be drawn anew, as the SDK and the command send it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from typer.testing import CliRunner

from nereid_client import Client
from nereid_client.main import _open_picture, app

from colour_profiles import COLOUR, WIDER, profile
from scripted import Instant, answers, image
from small_servers import Tensors, grpc_server

PICTURE = Image.new("RGB", (48, 32), (0, 0, 255))
WHITE = np.zeros((32, 48), np.uint8)
WHITE[:16] = 255


@pytest.mark.parametrize(
    "mask",
    [WHITE, WHITE > 0, Image.fromarray(WHITE), Image.fromarray(WHITE).convert("RGB"), Image.fromarray(WHITE).convert("1")],
    ids=["greys", "truth values", "PIL", "colours", "bits"],
)
def test_a_mask_is_sent_in_greys_whatever_it_comes_as(mask: Any) -> None:
    transport = Instant(answers(image()))
    Client(transport=transport).generate_image("a box", init_image=PICTURE, mask_image=mask)
    _, call = transport.calls[0]
    sent = call.tensors["mask_image"]
    assert (sent.dtype, sent.shape) == (np.uint8, (1, 32, 48))
    assert np.array_equal(sent[0], WHITE)
    assert call.tensors["init_image"].shape == (1, 32, 48, 3)


def test_the_command_sends_picture_and_mask_from_files(tmp_path: Path) -> None:
    asked: list[Tensors] = []

    def draws(tensors: Tensors) -> Iterator[Tensors]:
        asked.append(tensors)
        yield {name: value[0] for name, value in image().items()}

    PICTURE.save(tmp_path / "picture.png")
    Image.fromarray(WHITE).save(tmp_path / "mask.png")
    files = ["--init-image", str(tmp_path / "picture.png"), "--mask-image", str(tmp_path / "mask.png")]
    files += ["--inpainting-fill", "latent_noise", "--latent-upscale", "bilinear"]
    with grpc_server({"text_to_image_stream": draws}) as (port, _):
        target = ["--url", f"127.0.0.1:{port}", "-o", str(tmp_path / "out.png")]
        run = CliRunner().invoke(app, ["generate", "a box", *files, *target])
    assert run.exit_code == 0, run.output
    assert np.array_equal(asked[0]["mask_image"], WHITE)
    assert asked[0]["init_image"][0, 0].tolist() == [0, 0, 255]
    assert (asked[0]["inpainting_fill"].item(), asked[0]["latent_upscale"].item()) == (b"latent_noise", b"bilinear")


def test_the_command_sends_a_photograph_as_a_viewer_shows_it(tmp_path: Path) -> None:
    """It was sent as its camera's chip saw it, as others have done (https://github.com/Comfy-Org/ComfyUI/pull/11241)."""
    held = Image.Exif()
    held[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (48, 32), COLOUR).save(tmp_path / "photo.png", exif=held, icc_profile=profile())
    mask = Image.new("L", (48, 32), 128)
    mask.save(tmp_path / "mask.png", exif=held, icc_profile=profile(b"GRAY", 1.0))
    made, kept = (_open_picture(tmp_path / name, is_mask=name == "mask.png") for name in ("photo.png", "mask.png"))
    assert (made.size, kept.size, kept.getpixel((0, 0))) == ((32, 48), (32, 48), (128, 128, 128))
    assert np.abs(np.asarray(made).astype(int) - WIDER).max() <= 1

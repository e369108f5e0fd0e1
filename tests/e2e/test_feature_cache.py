"""Feature caching and the reuse of guidance's half through a real server: bytes, steps saved, likeness to PyTorch, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nereid_client import Client, ImageResult, InvalidRequestError

from conftest import Served, in_company
from raw import metric, settled
from waiting import until

pytestmark = pytest.mark.triton

ASKED = {"seed": 6, "num_inference_steps": 9, "scheduler": "ddim"}
CACHED: list[dict[str, Any]] = [{"cache_interval": 3}, {"cache": "0.5"}, {"guidance_cache_interval": 2, "cache_interval": 3}]


@pytest.fixture
def cut(served: Served) -> Client:
    """Of the pipeline whose UNet is cut."""
    return Client(served.grpc_url, name="v", timeout=120)


@pytest.mark.parametrize("asked", CACHED)
def test_a_cached_picture_is_the_same_alone_and_in_any_company(cut: Client, asked: dict[str, Any]) -> None:
    alone = cut.generate_image("a box", **ASKED, **asked)
    assert np.array_equal(in_company(cut, "a box", **ASKED, **asked).pixels, alone.pixels)
    plain = cut.generate_image("a box", **ASKED)
    assert not np.array_equal(alone.pixels, plain.pixels)
    assert np.array_equal(cut.generate_image("a box", **ASKED, cache="off", guidance_cache="off").pixels, plain.pixels)
    assert np.array_equal(cut.generate_image("a box", **ASKED, cache_interval=1).pixels, plain.pixels)


def test_a_stream_with_previews_ends_with_the_same_picture(cut: Client) -> None:
    alone = cut.generate_image("a box", **ASKED, cache_interval=3)
    *_, last = cut.stream_image("a box", **ASKED, cache_interval=3, preview_interval=2)
    assert isinstance(last, ImageResult)
    assert np.array_equal(last.pixels, alone.pixels)


def test_steps_are_counted_by_engine(served: Served, cut: Client) -> None:
    def steps(engine: str) -> float:
        return metric(served.metrics, "nereid_image_steps_total", model="v_denoise", engine=engine)

    whole, shallow = settled(lambda: (steps("unet"), steps("unet_shallow")))
    cut.generate_image("a box", **ASKED, cache_interval=3)
    until(lambda: (steps("unet") - whole, steps("unet_shallow") - shallow) == (3, 6))


def test_a_cached_picture_is_what_pytorch_makes_of_the_same_plan(cut: Client, checkpoints: dict[str, Path]) -> None:
    pytest.importorskip("torch")
    from nereid_export.checkpoint import Checkpoint
    from nereid_export.drawing import Drawer, psnr

    drawer = Drawer.by_torch(Checkpoint.open(checkpoints["v"], cache_branch=0))
    for asked in ({"cache_interval": 3}, {"guidance_cache_interval": 2}):
        ours = cut.generate_image("a box", **ASKED, **asked).pixels[0]
        asking = {"scheduler": "ddim", "cache_interval": 1, **asked}
        (theirs,) = type(drawer)(drawer.pipeline, drawer.tokenizers, drawer.runs, asked=asking).draw(["a box"], [6], steps=9)
        assert psnr(ours, theirs) > 45


def test_a_pipeline_that_is_not_cut_refuses_by_name(served: Served) -> None:
    with Client(served.grpc_url) as client:
        with pytest.raises(InvalidRequestError, match=r"cache_interval: 3 is not allowed; .* --cache-branch"):
            client.generate_image("a box", **ASKED, cache_interval=3)
        assert client.generate_image("a box", **ASKED, guidance_cache_interval=2).pixels.any()


def test_a_name_that_was_not_calibrated_is_refused(cut: Client) -> None:
    with pytest.raises(InvalidRequestError, match="cache: 'light' is not calibrated for ddim with 9 steps; nothing is"):
        cut.generate_image("a box", **ASKED, cache="light")

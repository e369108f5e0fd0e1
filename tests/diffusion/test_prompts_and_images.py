"""Token ids against transformers', pixels against diffusers', previews, PNG."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nereid.diffusion.images import from_pixels, png_base64, preview, to_pixels
from nereid.diffusion.prompts import PromptService
from nereid.flow.errors import EngineError, InvalidRequestError

TEXTS = [
    "a red circle",
    "",
    "  two   spaces ",
    "Grüße, 圆 🐙!",
    "it's a cross-stitch",
    "x" * 300,
    "a small circle " * 20,
]


@pytest.mark.torch
def test_token_ids_equal_those_of_transformers(repository: Path, checkpoints: dict[str, Path]) -> None:
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(checkpoints["sd"] / "tokenizer")
    expected = theirs(TEXTS, padding="max_length", truncation=True, max_length=16, return_tensors="np").input_ids
    made = PromptService.read(repository / "tokenizer" / "1").encode(TEXTS, [""] * len(TEXTS))
    assert np.array_equal(made["input_ids"], expected)


@pytest.mark.torch
def test_cut_prompts_say_what_was_ignored(repository: Path) -> None:
    service = PromptService.read(repository / "tokenizer" / "1")
    made = service.encode(["a circle", "a circle " * 20], ["", "a square " * 20])
    first, second = (row[0].decode() for row in made["tokenizer_warnings"])
    assert first == ""
    assert "prompt:" in second
    assert "negative_prompt:" in second
    assert "circle" in second


@pytest.mark.torch
def test_absurd_prompt_is_refused(repository: Path) -> None:
    with pytest.raises(InvalidRequestError, match="20000"):
        PromptService.read(repository / "tokenizer" / "1").encode(["a" * 20_001], [""])


def test_pixels_are_clipped_and_rounded() -> None:
    floats = np.array([-5.0, -1.0, 0.0, 0.5, 1.0, 9.0], np.float32).reshape(1, 1, 1, 6).repeat(3, axis=1)
    assert to_pixels(floats)[0, 0, :, 0].tolist() == [0, 0, 128, 191, 255, 255]


def test_nan_is_the_engines_fault_and_says_so() -> None:
    image = np.zeros((1, 3, 150, 2), np.float32)
    image[0, 2, -1, -1] = np.nan
    with pytest.raises(EngineError, match="NaN"):
        to_pixels(image)


def test_pixels_survive_the_way_there_and_back() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (150, 7, 3), dtype=np.uint8)
    assert np.array_equal(to_pixels(from_pixels(picture)[None])[0], picture)


def test_png_holds_the_pixels() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    opened = Image.open(io.BytesIO(base64.b64decode(png_base64(picture))))
    assert np.array_equal(np.asarray(opened), picture)


def test_preview_is_linear_in_the_latents() -> None:
    latents = np.zeros((2, 3, 4), np.float32)
    latents[0] = 1.0
    made = preview(latents, [[1.0, 0.0, -1.0], [9.0, 9.0, 9.0], [0.0, 0.0, 0.0]])
    assert made.shape == (3, 4, 3)
    assert made[0, 0].tolist() == [255, 128, 0]

"""A tiny decoder behind a real Triton: pictures and previews by it, the full one's as ever, and refusals where there is none."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from nereid.diffusion.decoding import DECODING
from nereid.diffusion.images import to_pixels
from nereid_client import Client, ImageProgress, ImageResult, InvalidRequestError

from conftest import Served, copy_pipeline, export, gateway, serving, stub_of, wait_until_whole
from raw import column, embeddings, infer

pytest.importorskip("torch")
from nereid_export.tiny_vae import TinyVae

pytestmark = [pytest.mark.triton, pytest.mark.torch]

REQUEST: dict[str, Any] = {"seed": 7, "num_inference_steps": 4, "height": 32, "width": 48}
LARGE: dict[str, Any] = {**REQUEST, "height": 96, "width": 136, "tile_sample_min_size": 64}


@pytest.fixture(scope="module")
def tiny(
    checkpoints: dict[str, Path], repository: Path, tiny_vae: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Pipelines 'p' with a tiny decoder, and '' without."""
    folder = tmp_path_factory.mktemp("tiny")
    export(checkpoints["sd"], folder / "repository", name="p", tiny_vae=TinyVae.open(tiny_vae))
    copy_pipeline(repository, folder / "repository")
    yield from serving(folder / "repository", folder, checkpoints)


@pytest.fixture
def client(tiny: Served) -> Client:
    return Client(tiny.grpc_url, name="p", timeout=120)


def test_a_picture_by_the_tiny_decoder_is_what_its_engine_makes_of_the_same_latents(tiny: Served, client: Client) -> None:
    made = client.generate_image("a box", **REQUEST, decoder="tiny").pixels[0]
    given = {"seed": column(np.int64, 7), "num_inference_steps": column(np.int32, 4)}
    given |= {"height": column(np.int32, 32), "width": column(np.int32, 48)}
    conditions = embeddings(tiny.grpc_url, "a box", "p_")
    latents = infer(tiny.grpc_url, "p_denoise", {**conditions, **given}, ["latents", *DECODING])
    assert latents["decoder"].item() == b"full"
    images = {
        decoder: infer(tiny.grpc_url, f"p_{model}", {"latents": latents["latents"]}, ["image"])["image"]
        for decoder, model in (("full", "vae_decoder"), ("tiny", "vae_decoder_tiny"))
    }
    assert np.array_equal(made, to_pixels(images["tiny"])[0])
    full = client.generate_image("a box", **REQUEST).pixels[0]
    assert np.array_equal(full, to_pixels(images["full"])[0])
    assert np.array_equal(full, client.generate_image("a box", **REQUEST, decoder="full").pixels[0])
    assert not np.array_equal(full, made)


def test_a_large_one_is_decoded_by_its_tiles(client: Client) -> None:
    tiled = client.generate_image("a box", **LARGE, decoder="tiny").pixels[0]
    whole = client.generate_image("a box", **{**LARGE, "tile_sample_min_size": 1024}, decoder="tiny").pixels[0]
    assert tiled.shape == whole.shape == (96, 136, 3)
    # It has neither normalisation nor attention: tiles differ from the whole by nothing but their edges.
    assert np.abs(tiled.astype(int) - whole).mean() < 2
    assert not np.array_equal(tiled, client.generate_image("a box", **LARGE).pixels[0])


def test_every_way_in_takes_the_field(tiny: Served, client: Client) -> None:
    expected = client.generate_image("a box", **REQUEST, decoder="tiny").pixels[0]
    last = list(client.stream_image("a box", **REQUEST, decoder="tiny"))[-1]
    assert isinstance(last, ImageResult)
    assert np.array_equal(last.pixels[0], expected)
    body = {"prompt": "a box", "decoder": "tiny", **REQUEST}
    answer = httpx.post(f"http://{tiny.http_url}/v2/models/p_text_to_image_json/generate", json=body, timeout=60).json()
    assert np.array_equal(opened(answer["generated_image"]), expected)
    request = {"model": "p_text_to_image", "prompt": "a box", "size": "48x32", "seed": 7, "num_inference_steps": 4}
    with gateway(tiny) as url:
        answer = httpx.post(f"{url}/v1/images/generations", json={**request, "decoder": "tiny"}, timeout=60).json()
        assert np.array_equal(opened(answer["data"][0]["b64_json"]), expected)
        shown = {**request, "stream": True, "partial_images": 2}
        with httpx.stream("POST", f"{url}/v1/images/generations", json=shown, timeout=60) as streamed:
            events = [json.loads(line[6:]) for line in streamed.iter_lines() if line.startswith("data: {")]
        assert [opened(event["b64_json"]).shape for event in events] == [(32, 48, 3)] * 3


def opened(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_previews_are_whole_pictures_and_those_of_a_pipeline_without_one_small(tiny: Served, client: Client) -> None:
    *shown, last = client.stream_image("a box", **REQUEST)
    assert np.array_equal(last.pixels, client.generate_image("a box", **REQUEST).pixels)  # type: ignore[union-attr]
    for answer in shown:
        assert isinstance(answer, ImageProgress)
        assert (answer.preview.shape, answer.preview_scale) == ((32, 48, 3), 1)
    with Client(tiny.grpc_url, timeout=120) as without:
        for answer in list(without.stream_image("a box", **REQUEST))[:-1]:
            assert isinstance(answer, ImageProgress)
            assert (answer.preview.shape, answer.preview_scale) == ((8, 12, 3), 4)


def test_where_there_is_none_it_is_refused_by_name(tiny: Served) -> None:
    said = r"decoder: 'tiny' is not allowed; it must be full: the pipeline was exported without a tiny one"
    with Client(tiny.grpc_url, timeout=120) as without:
        with pytest.raises(InvalidRequestError, match=said):
            without.generate_image("a box", **REQUEST, decoder="tiny")
        with pytest.raises(InvalidRequestError, match=said):
            list(without.stream_image("a box", **REQUEST, decoder="tiny"))


def test_a_stream_goes_on_and_a_picture_comes_though_the_tiny_decoder_dies(tiny: Served, client: Client) -> None:
    expected = client.generate_image("a box", **REQUEST, decoder="tiny").pixels
    answers = client.stream_image("a box", **{**REQUEST, "num_inference_steps": 100})
    next(answers)
    kill_decoder(tiny)
    *_, last = answers
    assert isinstance(last, ImageResult)
    kill_decoder(tiny)
    assert np.array_equal(client.generate_image("a box", **REQUEST, decoder="tiny").pixels, expected)
    wait_until_whole(tiny, seconds=60)


def kill_decoder(served: Served) -> None:
    """Where it has a process: an engine that Triton's own backend serves has none."""
    wait_until_whole(served, seconds=60)
    try:
        stub_of(served, "p_vae_decoder_tiny").kill()
    except (AssertionError, psutil.NoSuchProcess):
        pytest.skip("vae_decoder_tiny has no process of its own here")

"""Large pictures in a real Triton: decoded by tiles to the bytes that the models give one by one, alone and in company."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from nereid.diffusion.decoding import TILING, DecodingService, DecodingSettings
from nereid.diffusion.images import to_pixels
from nereid_client import Client, ImageResult

from conftest import TILE, Served
from raw import column, embeddings, infer

pytestmark = pytest.mark.triton

HEIGHT, WIDTH, SCALE = 96, 136, 4
"""Six tiles of the pipeline `v`, whose tiles are of 64 pixels."""
REQUEST = {"seed": 7, "num_inference_steps": 3, "height": HEIGHT, "width": WIDTH}


def denoised(served: Served) -> dict[str, np.ndarray]:
    """The latents of REQUEST, and how they are to be cut."""
    options = {
        "seed": column(np.int64, 7),
        "num_inference_steps": column(np.int32, 3),
        "height": column(np.int32, HEIGHT),
        "width": column(np.int32, WIDTH),
    }
    conditions = embeddings(served.grpc_url, "a box", "v_")
    return infer(served.grpc_url, "v_denoise", {**conditions, **options}, ["latents", *TILING])


@pytest.fixture
def client(served: Served) -> Client:
    return Client(served.grpc_url, name="v", timeout=120)


def test_a_large_picture_is_the_one_that_its_tiles_make_and_is_the_same_in_company(served: Served, client: Client) -> None:
    alone = client.generate_image("a box", **REQUEST).pixels[0]
    assert alone.shape == (HEIGHT, WIDTH, 3)

    def call(name: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        return infer(served.grpc_url, f"v_{name}", dict(inputs), list(outputs))

    latents = denoised(served)
    assert latents["tile_sample_min_size"].item() == TILE
    service = DecodingService(settings=DecodingSettings(), vae_scale_factor=SCALE, call=call, ask=call)
    assert np.array_equal(service.decode(latents, lambda: False)["generated_image"][0], alone)
    assert np.array_equal(infer(served.grpc_url, "v_image_output", latents, ["generated_image"])["generated_image"][0], alone)
    with ThreadPoolExecutor(4) as pool:
        company = [pool.submit(client.generate_image, f"a box {i}", **{**REQUEST, "seed": i}) for i in range(3)]
        together = pool.submit(client.generate_image, "a box", **REQUEST).result().pixels[0]
        assert len({job.result().pixels[0].tobytes() for job in company}) == 3
    assert np.array_equal(together, alone)


def test_a_request_may_have_the_whole_picture_at_once(served: Served, client: Client) -> None:
    whole = client.generate_image("a box", **REQUEST, tile_sample_min_size=128).pixels[0]
    latents = {"latents": denoised(served)["latents"]}
    image = infer(served.grpc_url, "v_vae_decoder", latents, ["image"])["image"]
    assert np.array_equal(whole, to_pixels(image)[0])
    assert np.array_equal(whole, infer(served.grpc_url, "v_image_output", latents, ["generated_image"])["generated_image"][0])
    assert not np.array_equal(whole, client.generate_image("a box", **REQUEST).pixels[0])


def test_a_stream_ends_with_the_same_large_picture(client: Client) -> None:
    alone = client.generate_image("a box", **REQUEST).pixels[0]
    last = list(client.stream_image("a box", **REQUEST))[-1]
    assert isinstance(last, ImageResult)
    assert np.array_equal(last.pixels[0], alone)


def test_a_large_picture_s_time_is_looked_at_between_its_tiles(served: Served) -> None:
    latents = np.zeros((1, 4, HEIGHT // SCALE, WIDTH // SCALE), np.float32)
    with pytest.raises(InferenceServerException, match=r"timeout_seconds: the time is up .* \[nereid: UNAVAILABLE deadline"):
        infer(
            served.grpc_url,
            "v_image_output",
            {"latents": latents, "seconds_left": column(np.float32, -1.0)},
            ["generated_image"],
        )

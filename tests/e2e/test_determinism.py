"""Same request, same image: alone, in any company, in segments, as one of several."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from nereid_client import AsyncClient, Client, ImageProgress, ImageResult

from conftest import Served

pytestmark = pytest.mark.triton

REQUEST = {"seed": 41, "num_inference_steps": 12, "guidance_scale": 6.0, "scheduler": "euler_a"}
OTHERS = [
    {"seed": i, "num_inference_steps": 5 + 2 * i, "guidance_scale": [1.0, 3.0, 7.5][i % 3], "scheduler": name}
    for i, name in enumerate(
        [
            "ddpm",
            "ddim",
            "euler",
            "euler_karras",
            "euler_a",
            "dpmpp_2s",
            "dpmpp_2m",
            "dpmpp_3m",
            "unipc",
            "dpmpp_2m_sde",
            "lcm",
            "dpmpp_2m_karras",
            "unipc_karras",
            "dpmpp_3m_karras",
            "dpmpp_sde_karras",
        ]
    )
]


@pytest.fixture
def client(served: Served) -> Client:
    return Client(served.grpc_url, timeout=120)


def test_image_is_bit_identical_alone_and_among_fifteen_others(client: Client) -> None:
    alone = client.generate_image("a red circle", **REQUEST)
    with ThreadPoolExecutor(16) as pool:
        company = [pool.submit(client.generate_image, f"a box {i}", **other) for i, other in enumerate(OTHERS)]
        together = pool.submit(client.generate_image, "a red circle", **REQUEST).result()
        others = [future.result() for future in company]
    assert np.array_equal(alone.pixels, together.pixels)
    assert len({other.pixels.tobytes() for other in others}) == len(others)
    for i, other in enumerate(others):
        again = client.generate_image(f"a box {i}", **OTHERS[i])
        assert np.array_equal(again.pixels, other.pixels), OTHERS[i]


def test_each_of_several_images_can_be_drawn_alone_from_its_own_seed(client: Client) -> None:
    several = client.generate_image("a cross", **REQUEST, num_images_per_prompt=3)
    assert several.pixels.shape[0] == 3
    assert len(set(several.seeds)) == 3
    for pixels, seed in zip(several.pixels, several.seeds, strict=True):
        alone = client.generate_image("a cross", **{**REQUEST, "seed": seed})
        assert np.array_equal(alone.pixels[0], pixels)


@pytest.mark.parametrize("scheduler", ["unipc", "dpmpp_3m", "dpmpp_2s", "dpmpp_sde", "ddpm"])
@pytest.mark.parametrize("interval", [1, 5])
def test_stream_in_segments_gives_the_same_image_as_one_run(client: Client, scheduler: str, interval: int) -> None:
    request = {**REQUEST, "scheduler": scheduler}
    whole = client.generate_image("a triangle", **request)
    *progress, last = client.stream_image("a triangle", **request, preview_interval=interval)
    assert isinstance(last, ImageResult)
    assert np.array_equal(last.pixels, whole.pixels)
    assert [answer.step for answer in progress if isinstance(answer, ImageProgress)] == list(range(interval, 12, interval))
    assert all(answer.preview.shape == (8, 8, 3) for answer in progress if isinstance(answer, ImageProgress))


def test_image_to_image_streams_the_same_image(client: Client) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    request = {**REQUEST, "init_image": picture, "strength": 0.7}
    whole = client.generate_image("a box", **request)
    *_, last = client.stream_image("a box", **request)
    assert isinstance(last, ImageResult)
    assert np.array_equal(last.pixels, whole.pixels)


def test_a_picture_that_its_latents_bring_to_another_size_streams_the_same_image(client: Client) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    request = {**REQUEST, "init_image": picture, "strength": 0.7, "latent_upscale": "bilinear", "width": 32, "height": 32}
    whole = client.generate_image("a box", **request)
    assert whole.pixels.shape[1:3] == (32, 32)
    *_, last = client.stream_image("a box", **request)
    assert isinstance(last, ImageResult)
    assert np.array_equal(last.pixels, whole.pixels)
    other = client.generate_image("a box", **{**request, "latent_upscale": "nearest-exact"})
    assert not np.array_equal(other.pixels, whole.pixels)


@pytest.mark.parametrize("fill", ["original", "latent_noise", "latent_nothing"])
def test_a_part_drawn_anew_is_the_same_streamed_in_company_and_as_one_of_several(client: Client, fill: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mask = np.zeros((32, 32), bool)
    mask[8:24, 4:] = True
    request = {**REQUEST, "init_image": picture, "mask_image": mask, "inpainting_fill": fill, "strength": 0.9}
    alone = client.generate_image("a box", **request)
    assert not np.array_equal(client.generate_image("a box", **{**request, "mask_image": ~mask}).pixels, alone.pixels)
    assert not np.array_equal(client.generate_image("a box", **REQUEST).pixels, alone.pixels)
    *_, last = client.stream_image("a box", **request)
    assert isinstance(last, ImageResult)
    assert np.array_equal(last.pixels, alone.pixels)
    several = client.generate_image("a box", **request, num_images_per_prompt=2)
    assert np.array_equal(several.pixels[0], alone.pixels[0])
    with ThreadPoolExecutor(9) as pool:
        company = [pool.submit(client.generate_image, f"a box {i}", **other) for i, other in enumerate(OTHERS[:8])]
        together = pool.submit(client.generate_image, "a box", **request).result()
        assert all(future.result().pixels.size for future in company)
    assert np.array_equal(together.pixels, alone.pixels)


def test_request_without_seed_tells_the_seed_that_reproduces_it(client: Client) -> None:
    options = {key: value for key, value in REQUEST.items() if key != "seed"}
    first = client.generate_image("a disc", **options)
    second = client.generate_image("a disc", **options)
    assert first.seed != second.seed
    again = client.generate_image("a disc", **options, seed=first.seed)
    assert np.array_equal(first.pixels, again.pixels)


def test_every_protocol_and_client_gives_the_same_image(served: Served, client: Client) -> None:
    import asyncio

    expected = client.generate_image("a circle", **REQUEST).pixels
    with Client(served.http_url, protocol="http") as http:
        assert np.array_equal(http.generate_image("a circle", **REQUEST).pixels, expected)
        *progress, last = http.stream_image("a circle", **REQUEST, preview_interval=4)
        assert isinstance(last, ImageResult)
        assert np.array_equal(last.pixels, expected)
        assert len(progress) == 2

    async def draw() -> None:
        for url, protocol in ((served.grpc_url, "grpc"), (served.http_url, "http")):
            async with AsyncClient(url, protocol=protocol) as aio:
                results = await asyncio.gather(*(aio.generate_image("a circle", **REQUEST) for _ in range(3)))
                assert all(np.array_equal(result.pixels, expected) for result in results)
        async with AsyncClient(served.grpc_url) as aio:
            answers = [answer async for answer in aio.stream_image("a circle", **REQUEST, preview_interval=4)]
            assert isinstance(answers[-1], ImageResult)
            assert np.array_equal(answers[-1].pixels, expected)

    asyncio.run(draw())


def test_low_guidance_skips_the_unconditional_half(client: Client, served: Served) -> None:
    from raw import metric

    def rows() -> float:
        return metric(served.metrics, "nv_inference_count", model="unet")

    before = rows()
    client.generate_image("a circle", seed=1, num_inference_steps=7, guidance_scale=1.0)
    single = rows() - before
    before = rows()
    client.generate_image("a circle", seed=1, num_inference_steps=7, guidance_scale=1.5)
    assert (single, rows() - before) == (7, 14)

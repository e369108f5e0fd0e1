"""Pictures of another size than is drawn, which their latents are brought to."""

from __future__ import annotations

import numpy as np
import pytest

from nereid.diffusion.init_pictures import LatentUpscale, resized
from nereid.diffusion.loop import DenoisingLoop
from nereid.diffusion.options import memory_of, size_of, tiling_of
from nereid.diffusion.requests import parse_image_request
from nereid.diffusion.settings import Limits
from nereid.engines.memory import RunMemory
from nereid.flow.errors import InvalidRequestError
from nereid.flow.fields import FieldReader
from nereid.flow.noise import Purpose, normal

from image_forms import Array, MortalUnet, begun, finish, pipeline, request, text, whole
from masked_pictures import MASK, POINT, answer, drawn, encode, sample

SMALL = np.random.default_rng(2).integers(0, 256, (1, 32, 48, 3), np.uint8)
LATENTS = np.random.default_rng(3).standard_normal((4, 6, 9)).astype(np.float32)
NOISE = normal(3, Purpose.INITIAL_LATENTS, (4, 8, 8))


def small(**inputs: Array) -> dict[str, Array]:
    asked = {"width": whole(64), "height": whole(64), "latent_upscale": text("bilinear"), "init_image": SMALL, "strength": POINT}
    return request(**{**asked, **inputs})


def small_latents() -> Array:
    mean, deviation = encode(np.ascontiguousarray(SMALL.transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1)))
    return mean[0] + deviation[0] * normal(3, Purpose.IMAGE_POSTERIOR, (4, 4, 6))


@pytest.mark.parametrize("size", [(12, 18), (7, 10), (6, 9), (3, 4), (1, 1), (64, 5)], ids=str)
@pytest.mark.parametrize("how", LatentUpscale)
def test_latents_of_another_size_are_torchs(how: LatentUpscale, size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    expected = torch.nn.functional.interpolate(torch.from_numpy(LATENTS[None]), size=size, mode=how)[0].numpy()
    assert np.allclose(resized(LATENTS, size, how), expected, atol=1e-5)


@pytest.mark.parametrize("how", LatentUpscale)
def test_a_run_starts_from_the_latents_of_a_small_picture_at_the_size_that_is_drawn(how: LatentUpscale) -> None:
    task = begun(small(latent_upscale=text(how)), encode=encode)
    row = task.request.rows[0]
    assert row.latent_shape == (4, 8, 8)
    assert np.allclose(sample(task), row.table.mixed(0, resized(small_latents(), (8, 8), how), NOISE), atol=1e-6)


def test_a_picture_of_the_size_that_is_drawn_is_as_it_is_without_it() -> None:
    asked = small(init_image=np.ones((1, 64, 64, 3), np.uint8))
    without = {name: value for name, value in asked.items() if name != "latent_upscale"}
    assert np.allclose(sample(drawn(asked)[0]), sample(drawn(without)[0]), atol=1e-6)


def test_a_part_of_it_is_drawn_anew_and_the_rest_ends_as_its_latents_at_that_size() -> None:
    (task,) = drawn(small(mask_image=MASK))
    kept = MASK[0, ::8, ::8] == 0
    assert np.allclose(sample(task)[:, kept], resized(small_latents(), (8, 8), LatentUpscale.BILINEAR)[:, kept], atol=1e-6)


def test_a_unet_made_for_parts_is_told_the_rest_of_a_small_picture_at_the_size_that_is_drawn() -> None:
    top = np.zeros((1, 64, 64), np.uint8)
    top[:, :32] = 255
    asked = small(mask_image=top)
    told = begun(asked, pipeline(inpainting=True), encode=encode).runs[0].told
    rest = SMALL.transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1)
    rest[:, :, :16] = 0
    mean, deviation = encode(rest)
    expected = mean[0] + deviation[0] * normal(3, Purpose.MASKED_IMAGE_POSTERIOR, (4, 4, 6))
    assert np.allclose(told["masked_image_latents"], resized(expected, (8, 8), LatentUpscale.BILINEAR), atol=1e-6)
    assert told["mask"].shape == (1, 8, 8)


def test_memory_is_reckoned_for_the_picture_that_is_encoded() -> None:
    facts = pipeline(memory={"vae_encoder": RunMemory(base_bytes=0, bytes_per_row_pixel=1000)})

    def needed(picture: Array) -> float:
        fields, limits = FieldReader(small(init_image=picture), 1), Limits(tile_sample_min_size=512)
        return memory_of(
            fields, size_of(fields, facts, limits), [(False, False)], facts, limits, tiling_of(fields, facts, limits)
        )

    assert needed(np.zeros((1, 256, 256, 3), np.uint8)) == 64 * needed(np.zeros((1, 32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("inputs", "field", "sentence"),
    [
        (
            small(latent_upscale=text("lanczos")),
            "latent_upscale",
            "latent_upscale: 'lanczos' is not allowed; it must be nearest-exact, bilinear, bicubic",
        ),
        (
            request(latent_upscale=text("bilinear")),
            "latent_upscale",
            "latent_upscale: it has no meaning without init_image",
        ),
        (
            small(init_image=SMALL[:, :30]),
            "init_image",
            "size of init_image: '48 x 30' is not allowed; it must be multiples of 8 with latent_upscale",
        ),
        (small(init_image=SMALL[:, :0]), "init_image", "size of init_image: '48 x 0' is not allowed; it must be mul"),
        (
            small(init_image=np.zeros((1, 128, 64, 3), np.uint8)),
            "init_image",
            "size of init_image: '64 x 128' is not allowed; it must be at most 4096 pixels",
        ),
        (small(init_image=SMALL[..., :2]), "init_image", "shape of init_image: (32, 48, 2) is not allowed; it must be height"),
    ],
)
def test_pictures_without_latents_are_refused_in_one_sentence(inputs: dict[str, Array], field: str, sentence: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_image_request(inputs, pipeline(), Limits(max_pixels=64 * 64))
    assert str(caught.value).startswith(sentence)
    assert caught.value.field == field


def test_with_others_beside_it_a_picture_has_the_same_bytes() -> None:
    other = small(seed=np.array([[4]]), latent_upscale=text("bicubic"))
    asked = [small(), other, request(init_image=np.zeros((1, 64, 64, 3), np.uint8))]
    together = [begun(one, encode=encode) for one in asked]
    numbers = iter(range(100))
    finish(DenoisingLoop(MortalUnet(lambda _: next(numbers) == 1, answer=answer), 16), *together)
    for one, task in zip(asked, together, strict=True):
        assert np.array_equal(sample(task), sample(drawn(one)[0]))

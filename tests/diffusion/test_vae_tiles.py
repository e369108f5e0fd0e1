"""Tiles and slices: what is cut, that every call has the same shape, and that seams cost nothing where a VAE sees only nearby."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from types import MethodType
from typing import Any

import numpy as np
import pytest

from nereid.diffusion.images import to_pixels
from nereid.diffusion.vae_tiles import BYTES_PER_PIXEL, VaeTiling, decode_latents, encode_image

Array = np.ndarray

SCALE = 8
SHAPES = Path(__file__).parents[2] / "zoo" / "shapes" / "checkpoint"


def tiling(side: int = 64, overlap: float = 0.25) -> VaeTiling:
    return VaeTiling(tile_sample_min_size=side, tile_overlap_factor=overlap, vae_scale_factor=SCALE)


def latents(height: int, width: int, rows: int = 1) -> Array:
    return np.random.default_rng(height * width).standard_normal((rows, 3, height, width)).astype(np.float32)


def nothing() -> None:
    """Nobody ends the work."""


class Decoder:
    """Enlarges, after a mean over a latent's neighbours up to `reach` with zeros outside, and notes the shapes of its calls."""

    def __init__(self, reach: int = 0) -> None:
        self.reach = reach
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, given: Array) -> Array:
        self.calls.append(given.shape)
        reach, size = self.reach, 2 * self.reach + 1
        padded = np.pad(given, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(2, 3))
        return windows.mean(axis=(4, 5)).repeat(SCALE, axis=2).repeat(SCALE, axis=3).astype(np.float32)


@pytest.mark.parametrize("side", [64, 96, 128, 512])
@pytest.mark.parametrize("overlap", [0.05, 0.25, 1 / 3])
def test_a_plain_surface_stays_plain_at_every_size(side: int, overlap: float) -> None:
    """Weights sum up to one everywhere, and no place is blended of more than two tiles a side."""
    for length in (side // 8 + 1, side // 8 + 2, 2 * side // 8 - 1, 2 * side // 8, 3 * side // 8 + 5, 7 * side // 8):
        made = decode_latents(np.ones((1, 3, length, side // 8), np.float32), tiling(side, overlap), Decoder(), nothing)
        assert made.shape == (1, 3, length * 8, side)
        assert np.abs(made - 1).max() < 1e-6


@pytest.mark.parametrize(("height", "width"), [(65, 80), (33, 180), (32, 33), (200, 10), (128, 128)])
def test_a_tiled_picture_is_the_whole_ones_where_the_decoder_sees_no_further_than_what_is_left_out(
    height: int, width: int
) -> None:
    given = latents(height, width)
    decoder, whole = Decoder(reach=1), Decoder(reach=1)
    made = decode_latents(given, tiling(256), decoder, nothing)
    assert len(decoder.calls) > 1
    assert set(decoder.calls) == {(1, 3, min(height, 32), min(width, 32))}
    assert np.abs(made - whole(given)).max() < 1e-6


def test_without_room_around_the_seams_padding_would_be_seen() -> None:
    """The other half of the test before: a decoder that sees further than the outer quarter of the overlap is not equal."""
    given = latents(65, 80)
    made = decode_latents(given, tiling(256), Decoder(reach=6), nothing)
    assert np.abs(made - Decoder(reach=6)(given)).max() > 1e-3


@pytest.mark.parametrize(("height", "width", "calls"), [(16, 16, 1), (8, 32, 1), (32, 8, 1), (16, 17, 2), (32, 32, 9)])
def test_a_picture_is_cut_only_where_it_has_more_pixels_than_a_tile(height: int, width: int, calls: int) -> None:
    decoder = Decoder()
    decode_latents(latents(height, width), tiling(128), decoder, nothing)
    assert len(decoder.calls) == calls


def test_parts_are_spread_evenly_and_a_tile_has_those_that_are_half_a_side_apart() -> None:
    places = np.broadcast_to(np.arange(48, dtype=np.float32), (1, 3, 16, 48))
    starts: list[tuple[int, int]] = []

    def decode(given: Array) -> Array:
        starts.append((int(given[0, 0, 0, 0]), int(given[0, 0, 0, 8])))
        return Decoder()(given)

    decode_latents(places, tiling(128), decode, nothing)
    assert starts == [(0, 23), (6, 29), (11, 34), (17, 40)]


def test_small_pictures_of_a_request_go_in_one_call_or_one_after_another() -> None:
    given = latents(8, 8, rows=3)
    together, alone = Decoder(), Decoder()
    made = decode_latents(given, tiling(), together, nothing)
    assert together.calls == [(3, 3, 8, 8)]
    assert np.array_equal(made, decode_latents(given, tiling(), alone, nothing, use_slicing=True))
    assert alone.calls == [(1, 3, 8, 8)] * 3


def test_large_pictures_of_a_request_are_those_of_requests_alone() -> None:
    given, decoder = latents(12, 20, rows=2), Decoder(1)
    made = decode_latents(given, tiling(), decoder, nothing)
    assert {shape[0] for shape in decoder.calls} == {1}
    for row, picture in zip(given, made, strict=True):
        assert np.array_equal(decode_latents(row[None], tiling(), Decoder(1), nothing)[0], picture)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_no_more_is_held_beside_a_tile_than_the_pictures_and_their_pixels(rows: int) -> None:
    side, tile = 1024, 128
    given = latents(side // SCALE, side // SCALE, rows)
    plain = np.zeros((1, 3, tile, tile), np.float32)
    tracemalloc.start()
    try:
        pixels = to_pixels(decode_latents(given, tiling(tile), lambda _: plain, nothing))
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert pixels.shape == (rows, side, side, 3)
    least = rows * BYTES_PER_PIXEL * side**2
    assert least <= held < least + 0.1 * BYTES_PER_PIXEL * side**2 + 10 * plain.nbytes


def test_the_work_may_be_ended_before_every_call() -> None:
    decoder = Decoder()

    def proceed() -> None:
        if len(decoder.calls) == 4:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        decode_latents(latents(32, 32), tiling(128), decoder, proceed)
    assert len(decoder.calls) == 4
    with pytest.raises(TimeoutError):
        decode_latents(latents(2, 2), tiling(128), decoder, proceed)


def shrink(image: Array) -> tuple[Array, Array]:
    rows, channels, height, width = image.shape
    mean = image.reshape(rows, channels, height // SCALE, SCALE, width // SCALE, SCALE).mean(axis=(3, 5))
    return mean, np.abs(mean)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (136, 264), (400, 64)])
def test_an_image_is_encoded_by_tiles_to_the_same_moments(height: int, width: int) -> None:
    image = np.random.default_rng(1).standard_normal((3, height, width)).astype(np.float32)
    shapes: list[tuple[int, ...]] = []

    def encode(part: Array) -> tuple[Array, Array]:
        shapes.append(part.shape)
        return shrink(part)

    mean, deviation = encode_image(image, tiling(128), encode, nothing)
    assert set(shapes) == {(1, 3, 128, min(width, 128))}
    for made, whole in zip((mean, deviation), shrink(image[None]), strict=True):
        assert made.shape == whole.shape[1:]
        assert np.abs(made - whole[0]).max() < 1e-6


def test_the_encoding_may_be_ended_before_every_call() -> None:
    calls: list[int] = []

    def encode(part: Array) -> tuple[Array, Array]:
        calls.append(1)
        return shrink(part)

    def proceed() -> None:
        if len(calls) == 2:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        encode_image(np.zeros((3, 256, 256), np.float32), tiling(128), encode, proceed)
    assert len(calls) == 2
    with pytest.raises(TimeoutError):
        encode_image(np.zeros((3, 64, 64), np.float32), tiling(128), encode, proceed)


@pytest.mark.parametrize(
    ("side", "overlap", "sentence"),
    [
        (32, 0.25, "tile_sample_min_size: 32 is not allowed; it must be 64 or more, a multiple of 16"),
        (100, 0.25, "tile_sample_min_size: 100 is not allowed; it must be 64 or more, a multiple of 16"),
        (64, 0.5, "tile_overlap_factor: 0.5 is not allowed; it must be above 0 and at most 1/3"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(side: int, overlap: float, sentence: str) -> None:
    with pytest.raises(ValueError, match="is not allowed") as caught:
        tiling(side, overlap)
    assert str(caught.value) == sentence


# --- a trained VAE ---


@pytest.fixture(scope="module")
def vae() -> Any:
    pytest.importorskip("torch")
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(str(SHAPES / "vae")).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def scenes(vae: Any) -> Array:
    """Latents of a picture of 512 x 512, of sixteen scenes that have nothing in common."""
    import torch

    from nereid_zoo.shapes.scenes import render, sample_scene

    rng = Random(3)
    rows = [np.concatenate([render(sample_scene(rng)) for _ in range(4)], axis=1) for _ in range(4)]
    picture = np.concatenate(rows).transpose(2, 0, 1)[None] / np.float32(127.5) - 1
    return np.asarray(vae.encode(torch.from_numpy(picture)).latent_dist.mean.numpy())


def decoder_of(vae: Any) -> Callable[[Array], Array]:
    import torch

    return lambda given: np.asarray(vae.decode(torch.from_numpy(given)).sample.numpy())


def levels(made: Array, whole: Array) -> Array:
    """Differences in 1/255, as pixels have them."""
    return np.abs(np.clip(made, -1, 1) - np.clip(whole, -1, 1)) * 127.5


def with_statistics_of(vae: Any, given: Array) -> Callable[[Array], Array]:
    """The decoder with the statistics of its group normalisations held at those that they have for `given` as a whole."""
    import torch

    norms = [module for module in vae.decoder.modules() if isinstance(module, torch.nn.GroupNorm)]
    held: dict[Any, tuple[Any, Any]] = {}

    def groups(norm: Any, value: Any) -> Any:
        return value.reshape(len(value), norm.num_groups, -1)

    def measure(norm: Any, value: Any) -> Any:
        grouped = groups(norm, value)
        held[norm] = (grouped.mean(-1, keepdim=True), grouped.var(-1, keepdim=True, unbiased=False))
        return apply(norm, value)

    def apply(norm: Any, value: Any) -> Any:
        mean, variance = held[norm]
        plain = ((groups(norm, value) - mean) * torch.rsqrt(variance + norm.eps)).reshape(value.shape)
        return plain * norm.weight[:, None, None] + norm.bias[:, None, None]

    def run(how: Any, value: Array) -> Array:
        for norm in norms:
            norm.forward = MethodType(how, norm)
        try:
            return decoder_of(vae)(value)
        finally:
            for norm in norms:
                del norm.forward

    run(measure, given)
    return partial(run, apply)


@pytest.mark.torch
@pytest.mark.parametrize("overlap", [0.25, 1 / 3])
def test_seams_of_a_trained_vae_are_not_seen_but_for_its_statistics(vae: Any, scenes: Array, overlap: float) -> None:
    """Group normalisation is all that a tile of this VAE, which has no attention, does not know of its picture."""
    decode = with_statistics_of(vae, scenes)
    made = decode_latents(scenes, tiling(384, overlap), decode, nothing)
    difference = levels(made, decoder_of(vae)(scenes))
    assert difference.max() <= 1
    assert difference.mean() < 0.1


@pytest.mark.torch
def test_tiles_are_half_as_far_off_as_those_of_diffusers(vae: Any, scenes: Array) -> None:
    import torch

    whole = decoder_of(vae)(scenes)
    vae.tile_latent_min_size, vae.tile_sample_min_size, vae.tile_overlap_factor = 48, 384, 0.25
    vae.enable_tiling()
    theirs = levels(vae.decode(torch.from_numpy(scenes)).sample.numpy(), whole)
    vae.disable_tiling()
    ours = levels(decode_latents(scenes, tiling(384), decoder_of(vae), nothing), whole)
    assert ours.mean() < theirs.mean() / 2
    assert ours.max() < theirs.max() / 2
    assert 1 < ours.mean() < 10  # a picture of unlike parts is where it costs most

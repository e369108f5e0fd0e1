"""A VAE's decode and encode by slices of a batch and by overlapping tiles, blended; knows the engine as a callable.

Options have diffusers' names (`enable_tiling`, `enable_slicing`). Tiles differ from diffusers' in three ways. All calls are of
one shape, so that Triton can batch them. A tile is a mosaic of four parts from far places of the picture: group normalisation
and attention see all of a call, and four places are a fairer sample of the picture than one. What the convolutions have mixed
at a part's edge is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

Decode = Callable[[Array], Array]
"""The decoder: latents N x C x h x w to images N x 3 x H x W."""

Encode = Callable[[Array], tuple[Array, Array]]
"""The encoder: images N x 3 x H x W to mean and standard deviation of their scaled latents, N x C x h x w."""

Empty = Callable[[tuple[int, ...]], Array]
"""Zeros of a shape, where a picture is put together."""

Proceed = Callable[[], None]
"""Asked before every call; raises what ends the work."""

BYTES_PER_PIXEL = 3 * 4 + 3
"""Of a picture beside the calls of its tiles: what is put together of them, float32, and its pixels, uint8."""
PARTS = 2
"""Parts of a tile, along each side that is cut."""
SMALLEST_TILE = 64
"""Pixels a side; below this a part sees too little for its middle to be right."""
LARGEST_OVERLAP = 1 / 3
"""Up to this, no more than two evenly spread parts are blended at one place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeTiling:
    """When pictures are cut, and how. `vae_scale_factor`: pixels a latent is wide."""

    tile_sample_min_size: int
    tile_overlap_factor: float
    vae_scale_factor: int

    def __post_init__(self) -> None:
        side, scale = self.tile_sample_min_size, self.vae_scale_factor
        if side < SMALLEST_TILE or side % (PARTS * scale):
            allowed = f"{SMALLEST_TILE} or more, a multiple of {PARTS * scale}"
            raise ValueError(f"tile_sample_min_size: {side} is not allowed; it must be {allowed}")
        if not 0 < self.tile_overlap_factor <= LARGEST_OVERLAP:
            factor = f"{self.tile_overlap_factor:g}"
            raise ValueError(f"tile_overlap_factor: {factor} is not allowed; it must be above 0 and at most 1/3")

    @property
    def tile_latent_min_size(self) -> int:
        return self.tile_sample_min_size // self.vae_scale_factor

    def tiles(self, height: int, width: int) -> bool:
        """Whether latents of this size are cut: where they are more than a tile's, so that a call needs no more than a tile."""
        return height * width > self.tile_latent_min_size**2

    @property
    def tile_pixels(self) -> int:
        """Of the largest call."""
        return self.tile_sample_min_size**2


def decode_latents(
    latents: Array, tiling: VaeTiling | None, decode: Decode, proceed: Proceed, *, use_slicing: bool = False
) -> Array:
    """The images of a batch of latents: in one call, a call each (`use_slicing`), or a call for each tile of each."""
    if tiling is not None and tiling.tiles(*latents.shape[2:]):
        whole = _Whole(len(latents))
        for number, row in enumerate(latents):
            _decode_tiled(row[None], tiling, decode, proceed, whole.of(number))
        return whole.made
    slices = list(latents[:, None]) if use_slicing else [latents]
    made = []
    for part in slices:
        proceed()
        made.append(decode(part))
    return _joined(made)


def _joined(made: list[Array]) -> Array:
    """One batch; of a single picture there is never a copy."""
    return made[0] if len(made) == 1 else np.concatenate(made)


def encode_image(image: Array, tiling: VaeTiling, encode: Encode, proceed: Proceed) -> tuple[Array, Array]:
    """Mean and standard deviation (C x h x w) of one image's (3 x H x W) latents."""
    scale = tiling.vae_scale_factor
    if not tiling.tiles(*(side // scale for side in image.shape[1:])):
        proceed()
        mean, deviation = encode(image[None])
        return mean[0], deviation[0]

    def moments(tile: Array) -> Array:
        proceed()
        return np.concatenate(encode(tile), axis=1)

    mean, deviation = np.split(_by_tiles(image[None], tiling, moments, scale, 1)[0], 2)
    return mean, deviation


def _decode_tiled(latents: Array, tiling: VaeTiling, decode: Decode, proceed: Proceed, empty: Empty) -> None:
    def tile(given: Array) -> Array:
        proceed()
        return decode(given)

    _by_tiles(latents, tiling, tile, 1, tiling.vae_scale_factor, empty)


@dataclass(slots=True)
class _Whole:
    """All pictures of a batch, held once: each is put together in its own place."""

    rows: int
    made: Array = field(default_factory=lambda: np.zeros(0, np.float32))

    def of(self, row: int) -> Empty:
        def empty(shape: tuple[int, ...]) -> Array:
            if not self.made.size:
                self.made = np.zeros((self.rows, *shape[1:]), np.float32)
            return self.made[row : row + 1]

        return empty


def _zeros(shape: tuple[int, ...]) -> Array:
    return np.zeros(shape, np.float32)


@dataclass(frozen=True, slots=True)
class _Axis:
    """The parts of one side, in latents: where each begins, how long all are, and over how much two are blended."""

    length: int
    part: int
    starts: tuple[int, ...]
    blended: int

    @classmethod
    def spread(cls, length: int, tiling: VaeTiling) -> _Axis:
        if length <= tiling.tile_latent_min_size:
            return cls(length, length, (0,), 0)
        part = tiling.tile_latent_min_size // PARTS
        overlap = max(2, int(part * tiling.tile_overlap_factor))
        steps = math.ceil((length - part) / (part - overlap))
        starts = tuple(round(step * (length - part) / steps) for step in range(steps + 1))
        # The outer quarters of an overlap are seen by one part alone: the other's edge is within reach there.
        return cls(length, part, starts, max(1, overlap // 2))

    @property
    def calls(self) -> list[tuple[int, ...]]:
        """Which parts share a tile: those half a side apart. Where their number is odd, the last is there twice."""
        count = len(self.starts)
        if count == 1:
            return [(0,)]
        apart = -(-count // PARTS)
        return [tuple(min(first + apart * step, count - 1) for step in range(PARTS)) for first in range(apart)]

    def cut(self, number: int, scale: int) -> slice:
        start = self.starts[number]
        return slice(start * scale, (start + self.part) * scale)

    def place(self, position: int, scale: int) -> slice:
        """Where a tile has its part at this position."""
        return slice(position * self.part * scale, (position + 1) * self.part * scale)

    def weights(self, scale: int) -> list[Array]:
        """What each part counts along this side, at `scale` values a latent; for every place they sum up to 1."""
        made = [np.ones(self.part * scale, np.float32) for _ in self.starts]
        size = self.blended * scale
        ramp = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size or 1)
        for before, (left, right) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            begin = (left + self.part - right - self.blended) * scale // 2
            made[before + 1][:begin] = 0
            made[before + 1][begin : begin + size] = ramp
            begin += (right - left) * scale
            made[before][begin : begin + size] = 1 - ramp
            made[before][begin + size :] = 0
        return made


def _by_tiles(
    given: Array, tiling: VaeTiling, call: Callable[[Array], Array], scale: int, made_scale: int, empty: Empty = _zeros
) -> Array:
    """The whole (1 x C x ...) of tiles, one call after the other and always in the same order.

    `scale` and `made_scale`: values a latent is wide in what is given and in what is made.
    """
    rows, columns = (_Axis.spread(side // scale, tiling) for side in given.shape[2:])
    down, across = rows.weights(made_scale), columns.weights(made_scale)
    whole: Array | None = None
    placed: set[tuple[int, int]] = set()
    for tile in product(rows.calls, columns.calls):
        made = call(_mosaic(given, rows, columns, tile, scale))
        if whole is None:
            whole = empty((*made.shape[:2], rows.length * made_scale, columns.length * made_scale))
        for (y, row), (x, column) in product(enumerate(tile[0]), enumerate(tile[1])):
            if (row, column) in placed:
                continue
            placed.add((row, column))
            part = made[:, :, rows.place(y, made_scale), columns.place(x, made_scale)]
            whole[:, :, rows.cut(row, made_scale), columns.cut(column, made_scale)] += part * (
                down[row][:, None] * across[column]
            )
    assert whole is not None
    return whole


def _mosaic(given: Array, rows: _Axis, columns: _Axis, tile: tuple[tuple[int, ...], tuple[int, ...]], scale: int) -> Array:
    lines = [[given[:, :, rows.cut(row, scale), columns.cut(column, scale)] for column in tile[1]] for row in tile[0]]
    return np.concatenate([np.concatenate(line, axis=3) for line in lines], axis=2)

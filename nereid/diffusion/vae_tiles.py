"""A VAE's decode and encode by slices of a batch and by overlapping tiles, blended; knows the engine as a callable.

Options have diffusers' names (`enable_tiling`, `enable_slicing`). Unlike diffusers' tiles, ours are all of one size and spread
evenly, so that every call is a row of the same shape. What the convolutions' padding has spoiled at a tile's edge is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

Decode = Callable[[Array], Array]
"""The decoder: latents N x C x h x w to images N x 3 x H x W."""

Encode = Callable[[Array], tuple[Array, Array]]
"""The encoder: images N x 3 x H x W to mean and standard deviation of their scaled latents, N x C x h x w."""

Proceed = Callable[[], None]
"""Asked before every call; raises what ends the work."""

SMALLEST_TILE = 64
"""Pixels a side; below this a tile sees too little for its middle to be right."""
LARGEST_OVERLAP = 1 / 3
"""Up to this, no more than two evenly spread tiles are blended at one place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeTiling:
    """When pictures are cut, and how. `vae_scale_factor`: pixels a latent is wide."""

    tile_sample_min_size: int
    tile_overlap_factor: float
    vae_scale_factor: int
    use_slicing: bool = False

    def __post_init__(self) -> None:
        side, scale = self.tile_sample_min_size, self.vae_scale_factor
        if side < SMALLEST_TILE or side % scale:
            allowed = f"{SMALLEST_TILE} or more, a multiple of {scale}"
            raise ValueError(f"parameter tile_sample_min_size: {side} is not allowed; it must be {allowed}")
        if not 0 < self.tile_overlap_factor <= LARGEST_OVERLAP:
            raise ValueError(
                f"parameter tile_overlap_factor: {self.tile_overlap_factor:g} is not allowed; it must be above 0 and at most 1/3"
            )

    @property
    def tile_latent_min_size(self) -> int:
        return self.tile_sample_min_size // self.vae_scale_factor

    @property
    def overlap(self) -> int:
        """Latents that two tiles share at least."""
        return max(2, int(self.tile_latent_min_size * self.tile_overlap_factor))

    def tiles(self, height: int, width: int) -> bool:
        """Whether latents of this size are cut: where they are more than a tile's, so that a call needs no more than a tile."""
        return height * width > self.tile_latent_min_size**2


def decode_latents(latents: Array, tiling: VaeTiling, decode: Decode, proceed: Proceed) -> Array:
    """The images of a batch of latents: in one call, a call each (`use_slicing`), or a call for each tile of each."""
    if tiling.tiles(*latents.shape[2:]):
        return np.concatenate([_decode_tiled(row[None], tiling, decode, proceed) for row in latents])
    slices = list(latents[:, None]) if tiling.use_slicing else [latents]
    made = []
    for part in slices:
        proceed()
        made.append(decode(part))
    return made[0] if len(made) == 1 else np.concatenate(made)


def encode_image(image: Array, tiling: VaeTiling, encode: Encode, proceed: Proceed) -> tuple[Array, Array]:
    """Mean and standard deviation (C x h x w) of one image's (3 x H x W) latents."""
    scale = tiling.vae_scale_factor
    height, width = (side // scale for side in image.shape[1:])
    if not tiling.tiles(height, width):
        proceed()
        mean, deviation = encode(image[None])
        return mean[0], deviation[0]
    rows, columns = (_Axis.spread(side, tiling) for side in (height, width))

    def moments(row: int, column: int) -> Array:
        proceed()
        return np.concatenate(encode(image[None, :, rows.cut(row, scale), columns.cut(column, scale)]), axis=1)

    mean, deviation = np.split(_blend(rows, columns, moments, 1)[0], 2)
    return mean, deviation


def _decode_tiled(latents: Array, tiling: VaeTiling, decode: Decode, proceed: Proceed) -> Array:
    rows, columns = (_Axis.spread(side, tiling) for side in latents.shape[2:])

    def tile(row: int, column: int) -> Array:
        proceed()
        return decode(latents[:, :, rows.cut(row), columns.cut(column)])

    return _blend(rows, columns, tile, tiling.vae_scale_factor)


@dataclass(frozen=True, slots=True)
class _Axis:
    """The tiles of one side, in latents: where each begins, how long all are, and over how much two are blended."""

    length: int
    tile: int
    starts: tuple[int, ...]
    blended: int

    @classmethod
    def spread(cls, length: int, tiling: VaeTiling) -> _Axis:
        tile, overlap = tiling.tile_latent_min_size, tiling.overlap
        if length <= tile:
            return cls(length, length, (0,), 0)
        steps = math.ceil((length - tile) / (tile - overlap))
        starts = tuple(round(step * (length - tile) / steps) for step in range(steps + 1))
        # The outer quarters of an overlap are seen by one tile alone: the other's edge is within reach there.
        return cls(length, tile, starts, max(1, overlap // 2))

    def cut(self, number: int, scale: int = 1) -> slice:
        start = self.starts[number]
        return slice(start * scale, (start + self.tile) * scale)

    def weights(self, scale: int) -> list[Array]:
        """What each tile counts along this side, at `scale` values a latent; for every place they sum up to 1."""
        made = [np.ones(self.tile * scale, np.float32) for _ in self.starts]
        size = self.blended * scale
        ramp = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
        for before, (left, right) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            shared = left + self.tile - right
            begin = (shared - self.blended) * scale // 2
            made[before + 1][:begin] = 0
            made[before + 1][begin : begin + size] = ramp
            begin += (right - left) * scale
            made[before][begin : begin + size] = 1 - ramp
            made[before][begin + size :] = 0
        return made


def _blend(rows: _Axis, columns: _Axis, tile: Callable[[int, int], Array], scale: int) -> Array:
    """The whole (1 x C x ...) of tiles, made one after the other and always in the same order; `scale`: values a latent."""
    down, across = rows.weights(scale), columns.weights(scale)
    whole: Array | None = None
    for row, column in product(range(len(down)), range(len(across))):
        made = tile(row, column)
        if whole is None:
            whole = np.zeros((*made.shape[:2], rows.length * scale, columns.length * scale), np.float32)
        whole[:, :, rows.cut(row, scale), columns.cut(column, scale)] += made * (down[row][:, None] * across[column])
    assert whole is not None
    return whole

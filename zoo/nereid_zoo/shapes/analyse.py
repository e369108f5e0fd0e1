"""Finds shapes, colours, sizes and relations in a picture and compares them with what a caption asked for.

Works on pixels alone: it knows how shapes look, nothing of models or of how the picture came to be.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nereid_zoo.shapes.captions import Demand, ObjectDemand
from nereid_zoo.shapes.scenes import BACKGROUNDS, COLORS, IMAGE_SIZE, Layout, Shape, Size, coverage, position_of

MIN_PIXELS = 60
"""Smaller specks are not objects (the smallest object covers about 250 pixels)."""
MIN_OVERLAP = 0.72
"""Intersection over union with the ideal shape below which a blob is no shape at all."""
COLOR_TOLERANCE = 75.0
"""Largest distance in RGB from a named colour."""
SIZE_BORDER = 18.0
"""Half width in pixels between small and large."""

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundObject:
    """A blob; `color` or `shape` is None where it is like none that has a name."""

    color: str | None
    shape: Shape | None
    size: Size
    x: float
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is in a picture; `background` is None where it is like none that has a name."""

    background: str | None
    objects: tuple[FoundObject, ...]


def analyse(picture: Pixels) -> Found:
    """Look at a uint8 128 x 128 x 3 picture."""
    pixels = picture.astype(np.float32)
    border = np.concatenate([pixels[:3].reshape(-1, 3), pixels[-3:].reshape(-1, 3), pixels[:, :3].reshape(-1, 3)])
    ground = np.median(border, axis=0)
    differs = np.linalg.norm(pixels - ground, axis=-1) > 45
    objects = [_describe(pixels, ground, blob) for blob in _blobs(differs) if blob.sum() >= MIN_PIXELS]
    return Found(background=_nearest(ground, BACKGROUNDS), objects=tuple(objects))


def _nearest(color: NDArray[np.float32], named: dict[str, tuple[int, int, int]]) -> str | None:
    distances = {name: float(np.linalg.norm(color - np.array(value))) for name, value in named.items()}
    best = min(distances, key=distances.__getitem__)
    return best if distances[best] <= COLOR_TOLERANCE else None


def _blobs(mask: Mask) -> list[Mask]:
    """Connected areas (4 neighbours), each as a mask of the whole picture."""
    left = mask.copy()
    blobs = []
    for start in zip(*np.nonzero(mask), strict=True):
        if not left[start]:
            continue
        blob = np.zeros_like(mask)
        waiting = deque([(int(start[0]), int(start[1]))])
        left[start] = False
        while waiting:
            y, x = waiting.popleft()
            blob[y, x] = True
            for ny, nx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= ny < mask.shape[0] and 0 <= nx < mask.shape[1] and left[ny, nx]:
                    left[ny, nx] = False
                    waiting.append((ny, nx))
        blobs.append(blob)
    return blobs


def _describe(pixels: NDArray[np.float32], ground: NDArray[np.float32], blob: Mask) -> FoundObject:
    inner = blob & np.roll(blob, 1, 0) & np.roll(blob, -1, 0) & np.roll(blob, 1, 1) & np.roll(blob, -1, 1)
    color = np.median(pixels[inner if inner.any() else blob], axis=0)
    # An edge pixel belongs to the shape if it is more than half of the shape's colour.
    along = (pixels - ground) @ (color - ground) / max(float(np.sum((color - ground) ** 2)), 1.0)
    near = blob | np.roll(blob, 1, 0) | np.roll(blob, -1, 0) | np.roll(blob, 1, 1) | np.roll(blob, -1, 1)
    solid = near & (along > 0.5)
    solid = solid if solid.any() else blob
    rows, columns = np.nonzero(solid.any(axis=1))[0], np.nonzero(solid.any(axis=0))[0]
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    x, y = (left + right) / 2, (top + bottom) / 2
    half = max(right - left, bottom - top) / 2
    overlaps = {shape: _overlap(solid, shape, x, y, half) for shape in Shape}
    best = max(overlaps, key=overlaps.__getitem__)
    return FoundObject(
        color=_nearest(color, COLORS),
        shape=best if overlaps[best] >= MIN_OVERLAP else None,
        size=Size.SMALL if half < SIZE_BORDER else Size.LARGE,
        x=float(x),
        y=float(y),
    )


def _overlap(solid: Mask, shape: Shape, x: float, y: float, half: float) -> float:
    """Intersection over union with the ideal shape of the same extent."""
    radius = half / 0.9 if shape is Shape.SQUARE else half
    ideal = coverage(shape, x, y, radius, IMAGE_SIZE) > 0.5
    return float((solid & ideal).sum() / max((solid | ideal).sum(), 1))


def mistakes(found: Found, demand: Demand) -> list[str]:
    """What the picture lacks of the caption's demands; [] where it is right."""
    if len(found.objects) != len(demand.objects):
        return [f"{len(found.objects)} objects instead of {len(demand.objects)}"]
    axis = {Layout.HORIZONTAL: lambda item: item.x, Layout.VERTICAL: lambda item: item.y}
    ordered = sorted(found.objects, key=axis.get(demand.layout, lambda item: 0.0))
    wrong = [text for item, wanted in zip(ordered, demand.objects, strict=True) for text in _object_mistakes(item, wanted)]
    if demand.layout is not Layout.SINGLE:
        across, down = abs(ordered[0].x - ordered[1].x), abs(ordered[0].y - ordered[1].y)
        if (across > down) is not (demand.layout is Layout.HORIZONTAL):
            wrong.append(f"objects are not arranged {demand.layout}ly")
    if demand.background is not None and found.background != demand.background:
        wrong.append(f"background {found.background} instead of {demand.background}")
    return wrong


def _object_mistakes(item: FoundObject, wanted: ObjectDemand) -> list[str]:
    wrong = []
    if item.color != wanted.color:
        wrong.append(f"color {item.color} instead of {wanted.color}")
    if item.shape != wanted.shape:
        wrong.append(f"shape {item.shape} instead of {wanted.shape}")
    if wanted.size is not None and item.size != wanted.size:
        wrong.append(f"size {item.size} instead of {wanted.size}")
    if wanted.position is not None and position_of(item.x, item.y) != wanted.position:
        wrong.append(f"position {position_of(item.x, item.y)} instead of {wanted.position}")
    return wrong

"""Scenes of one or two coloured shapes: sampling, the held-out split and rendering; knows nothing of captions or models."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from random import Random

import numpy as np
from numpy.typing import NDArray

IMAGE_SIZE = 128
"""Width and height of a rendered scene in pixels."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "green": (38, 160, 65),
    "blue": (45, 90, 225),
    "yellow": (250, 210, 40),
    "purple": (140, 60, 175),
    "orange": (250, 130, 25),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "gray": (150, 150, 150),
    "black": (22, 22, 22),
    "beige": (232, 216, 188),
}


class Shape(StrEnum):
    CIRCLE = "circle"
    SQUARE = "square"
    TRIANGLE = "triangle"
    DIAMOND = "diamond"
    CROSS = "cross"


class Size(StrEnum):
    SMALL = "small"
    LARGE = "large"


class Layout(StrEnum):
    """How a scene's objects are arranged; the first object is the left or the upper one."""

    SINGLE = "single"
    HORIZONTAL = "horizontal"
    VERTICAL = "vertical"


RADII: dict[Size, tuple[float, float]] = {Size.SMALL: (12.5, 14.5), Size.LARGE: (21.5, 24.0)}
"""Half the width of an object in pixels (lowest, highest) for each size."""

CELL_CENTERS = (34.0, 64.0, 94.0)
"""Where the columns (rows) of the 3 x 3 grid of positions have their centre, in pixels."""

POSITIONS = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "center", "right"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneObject:
    """One shape: its looks, its centre and its half width in pixels."""

    color: str
    shape: Shape
    size: Size
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One or two objects on a plain background."""

    objects: tuple[SceneObject, ...]
    background: str
    layout: Layout

    @property
    def combination(self) -> str:
        """What the held-out split is made by: the kinds and colours of all objects and how they are arranged."""
        parts = [f"{item.color} {item.shape}" for item in self.objects]
        if self.layout is Layout.SINGLE:
            parts += [self.objects[0].size, position_of(self.objects[0].x, self.objects[0].y)]
        return f"{self.layout}: " + ", ".join(parts)

    @property
    def held_out(self) -> bool:
        """Whether training never sees this combination (one in ten, chosen by hash)."""
        return hashlib.sha256(self.combination.encode()).digest()[0] < 26


def position_of(x: float, y: float) -> str:
    """Name of the 3 x 3 grid cell that holds a point given in pixels of a 128 x 128 picture."""
    column = min(range(3), key=lambda i: abs(CELL_CENTERS[i] - x))
    row = min(range(3), key=lambda i: abs(CELL_CENTERS[i] - y))
    return POSITIONS[row * 3 + column]


def sample_scene(rng: Random, *, held_out: bool = False) -> Scene:
    """A random scene from the training (default) or the held-out combinations."""
    while True:
        scene = _draw(rng)
        if scene.held_out is held_out:
            return scene


def _draw(rng: Random) -> Scene:
    layout = rng.choices(list(Layout), weights=(4, 3, 3))[0]
    background = rng.choice(list(BACKGROUNDS))
    if layout is Layout.SINGLE:
        x, y = (rng.choice(CELL_CENTERS) + rng.uniform(-4, 4) for _ in range(2))
        return Scene(objects=(_draw_object(rng, x, y),), background=background, layout=layout)
    along = [CELL_CENTERS[0] + rng.uniform(-4, 3), CELL_CENTERS[2] + rng.uniform(-3, 4)]
    across = [CELL_CENTERS[1] + rng.uniform(-7, 7) for _ in range(2)]
    points = list(zip(along, across, strict=True))
    if layout is Layout.VERTICAL:
        points = [(x, y) for y, x in points]
    first = _draw_object(rng, *points[0])
    second = _draw_object(rng, *points[1])
    while (second.color, second.shape) == (first.color, first.shape):
        second = _draw_object(rng, *points[1])
    return Scene(objects=(first, second), background=background, layout=layout)


def _draw_object(rng: Random, x: float, y: float) -> SceneObject:
    size = rng.choice(list(Size))
    return SceneObject(
        color=rng.choice(list(COLORS)),
        shape=rng.choice(list(Shape)),
        size=size,
        x=x,
        y=y,
        radius=rng.uniform(*RADII[size]),
    )


def render(scene: Scene) -> NDArray[np.uint8]:
    """The scene's picture, anti-aliased: uint8, 128 x 128 x 3."""
    picture = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    picture[:] = BACKGROUNDS[scene.background]
    for item in scene.objects:
        cover = coverage(item.shape, item.x, item.y, item.radius)[:, :, None]
        picture += cover * (np.array(COLORS[item.color], dtype=np.float32) - picture)
    return np.rint(picture).astype(np.uint8)


def coverage(shape: Shape, x: float, y: float, radius: float, size: int = IMAGE_SIZE) -> NDArray[np.float32]:
    """Share of each pixel that a shape covers: float32 in 0..1, size x size."""
    grid = np.arange(size, dtype=np.float32) + 0.5
    dx, dy = grid[None, :] - x, grid[:, None] - y
    inside = -_signed_distance(shape, dx, dy, radius)
    return np.clip(inside + 0.5, 0.0, 1.0)


def _signed_distance(shape: Shape, dx: NDArray[np.float32], dy: NDArray[np.float32], radius: float) -> NDArray[np.float32]:
    ax, ay = np.abs(dx), np.abs(dy)
    match shape:
        case Shape.CIRCLE:
            return np.sqrt(dx * dx + dy * dy) - radius
        case Shape.SQUARE:
            return np.maximum(ax, ay) - 0.9 * radius
        case Shape.DIAMOND:
            return (ax + ay - radius) * np.float32(0.7071)
        case Shape.CROSS:
            arm = radius / 3
            return np.minimum(np.maximum(ax - arm, ay - radius), np.maximum(ax - radius, ay - arm))
        case Shape.TRIANGLE:  # pointing up; base below
            slope = np.float32(2 / 5**0.5)
            return np.maximum((ax - (dy + radius) * 0.5) * slope, dy - radius)

"""Captions in varied English for scenes, and what each caption demands of a picture; knows nothing of pixels or models."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from nereid_zoo.shapes.scenes import Layout, Scene, SceneObject, Shape, Size, position_of

SHAPE_WORDS: dict[Shape, tuple[str, ...]] = {
    Shape.CIRCLE: ("circle", "circle", "disc", "round dot"),
    Shape.SQUARE: ("square", "square", "box"),
    Shape.TRIANGLE: ("triangle",),
    Shape.DIAMOND: ("diamond", "diamond", "rhombus"),
    Shape.CROSS: ("cross", "cross", "plus sign"),
}
SIZE_WORDS: dict[Size, tuple[str, ...]] = {
    Size.SMALL: ("small", "small", "little", "tiny"),
    Size.LARGE: ("large", "large", "big", "huge"),
}
BACKGROUND_PHRASES = (
    "on a {} background",
    "on {}",
    "against a {} background",
    "over a {} backdrop",
    "with a {} background",
)
OPENINGS = ("", "", "", "a picture of ", "an image of ", "a drawing of ", "there is ", "please draw ")
POSITION_PHRASES: dict[str, tuple[str, ...]] = {
    "top left": ("in the top left corner", "in the upper left", "at the top left"),
    "top center": ("at the top", "at the top center", "in the upper middle"),
    "top right": ("in the top right corner", "in the upper right", "at the top right"),
    "middle left": ("on the left", "at the left side", "on the left side"),
    "middle center": ("in the center", "in the middle", "at the center"),
    "middle right": ("on the right", "at the right side", "on the right side"),
    "bottom left": ("in the bottom left corner", "in the lower left", "at the bottom left"),
    "bottom center": ("at the bottom", "at the bottom center", "in the lower middle"),
    "bottom right": ("in the bottom right corner", "in the lower right", "at the bottom right"),
}
FORWARD: dict[Layout, tuple[str, ...]] = {
    Layout.HORIZONTAL: ("to the left of", "left of", "on the left of"),
    Layout.VERTICAL: ("above", "above", "over", "on top of", "higher than"),
}
BACKWARD: dict[Layout, tuple[str, ...]] = {
    Layout.HORIZONTAL: ("to the right of", "right of", "on the right of"),
    Layout.VERTICAL: ("below", "below", "under", "beneath", "lower than"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectDemand:
    """What a caption says of one object; `size` and `position` are None where it does not say."""

    color: str
    shape: Shape
    size: Size | None
    position: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a caption asks for: objects (left or upper one first), their arrangement, the background if named."""

    objects: tuple[ObjectDemand, ...]
    layout: Layout
    background: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    text: str
    demand: Demand


def write_caption(scene: Scene, rng: Random) -> Caption:
    """A random true caption of the scene; it may leave out sizes, the position and the background."""
    tells_size = [rng.random() < 0.5 for _ in scene.objects]
    tells_position = scene.layout is Layout.SINGLE and rng.random() < 0.7
    tells_background = rng.random() < 0.6
    nouns = [_noun(item, told, rng) for item, told in zip(scene.objects, tells_size, strict=True)]
    if scene.layout is Layout.SINGLE:
        text = nouns[0]
        if tells_position:
            text = _single(text, rng.choice(POSITION_PHRASES[_position(scene.objects[0])]), rng)
    else:
        text = _pair(nouns[0], nouns[1], scene.layout, rng)
    if tells_background:
        phrase = rng.choice(BACKGROUND_PHRASES).format(_spell(scene.background, rng))
        opens = phrase.startswith("on ") and rng.random() < 0.25
        text = f"{phrase}, {text}" if opens else f"{text} {phrase}"
    text = rng.choice(OPENINGS) + text + rng.choice(("", "", "."))
    demand = Demand(
        objects=tuple(
            ObjectDemand(
                color=item.color,
                shape=item.shape,
                size=item.size if told else None,
                position=_position(item) if tells_position else None,
            )
            for item, told in zip(scene.objects, tells_size, strict=True)
        ),
        layout=scene.layout,
        background=scene.background if tells_background else None,
    )
    return Caption(text=text, demand=demand)


def _position(item: SceneObject) -> str:
    return position_of(item.x, item.y)


def _spell(background: str, rng: Random) -> str:
    return "grey" if background == "gray" and rng.random() < 0.4 else background


def _noun(item: SceneObject, tells_size: bool, rng: Random) -> str:
    words = [rng.choice(SIZE_WORDS[item.size])] if tells_size else []
    words += [item.color, rng.choice(SHAPE_WORDS[item.shape])]
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def _single(noun: str, where: str, rng: Random) -> str:
    return f"{where}, {noun}" if rng.random() < 0.2 else f"{noun} {where}"


def _pair(first: str, second: str, layout: Layout, rng: Random) -> str:
    if rng.random() < 0.5:  # name the right or lower one as the subject: same scene, other words
        first, second, relations = second, first, BACKWARD[layout]
    else:
        relations = FORWARD[layout]
    relation = rng.choice(relations)
    if rng.random() < 0.15 and relation not in ("higher than", "lower than"):
        return f"{relation} {second} is {first}"
    return f"{first} {relation} {second}"

"""A client's own list of elements, as JSON, to a valid section."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from nereid.flow.errors import InvalidRequestError
from nereid.layout.canvas import Canvas
from nereid.layout.elements import FREE, MOST_CHARACTERS, MOST_ID, Box, Element, ElementClass, Fixed, Section
from nereid.layout.words import length_of

CANVAS_KEYS = ("width", "density", "columns", "style")
ELEMENT_KEYS = (
    *("id", "class", "parent", "order", "text", "characters", "items", "ratio"),
    *("min_width", "min_height", "fixed", "draft", "color", "background"),
)
MOST_ITEMS = 50
SMALLEST_RATIO, LARGEST_RATIO = 0.1, 10.0
MOST_PIXELS = 20_000
_COLOR = re.compile(r"#(?:[0-9a-fA-F]{3}|[0-9a-fA-F]{6})")


def read_canvas(given: object) -> Canvas:
    """`{"width": 1280, "density": "normal", "columns": 12, "style": "grid"}`; all but `width` may be absent.

    Raises InvalidRequestError.
    """
    values = _mapping("canvas", given, CANVAS_KEYS)
    for name in ("density", "style"):
        if not isinstance(values.get(name, ""), str | None):
            raise InvalidRequestError.of(f"canvas.{name}", values[name], "a string")
    return Canvas.of(values.get("width"), values.get("density"), values.get("columns"), values.get("style"))  # type: ignore[arg-type]


def read_elements(given: object, canvas: Canvas) -> Section:
    """Elements with `class`, and optionally `id`, `parent` (an id), `order` (a number; else the place in the list), `text` or
    `characters`, `items`, `ratio` (width / height), `min_width`, `min_height`, `fixed` (any of `x`, `y`, `width`, `height`, CSS
    pixels), `draft` (all four of them: a box to refine; all elements have one or none has), `color` and `background`
    (`#rrggbb` or `#rgb`).

    Raises InvalidRequestError, which names the element.
    """
    if not isinstance(given, list):
        raise InvalidRequestError.of("elements", given, "a list")
    ordered = []
    for place, item in enumerate(given):
        values = _present(_mapping(f"elements.{place}", item, ELEMENT_KEYS))
        element = _element(values, place)
        ordered.append((_number(f"elements.{element.id}.order", values.get("order", place), -1e9, 1e9), place, element))
    ordered.sort(key=lambda entry: entry[:2])
    return Section.of(canvas, (element for _, _, element in ordered))


def _element(values: Mapping[str, Any], place: int) -> Element:
    name = values.get("id", f"{place}")
    if not isinstance(name, str) or not 1 <= len(name) <= MOST_ID:
        raise InvalidRequestError.of(f"elements.{place}.id", name, f"a string of 1 to {MOST_ID} characters")
    where = f"elements.{name}"
    kind = values.get("class")
    if kind not in tuple(ElementClass):
        raise InvalidRequestError.of(f"{where}.class", kind, f"one of {', '.join(ElementClass)}")
    parent = values.get("parent")
    if not isinstance(parent, str | None):
        raise InvalidRequestError.of(f"{where}.parent", parent, "another element's id, or absent")
    return Element(
        id=name,
        kind=ElementClass(kind),
        parent=parent,
        characters=_characters(where, values),
        items=_whole(f"{where}.items", values.get("items", 0), MOST_ITEMS),
        ratio=None if values.get("ratio") is None else _number(f"{where}.ratio", values["ratio"], SMALLEST_RATIO, LARGEST_RATIO),
        min_width=_number(f"{where}.min_width", values.get("min_width", 0), 0, MOST_PIXELS),
        min_height=_number(f"{where}.min_height", values.get("min_height", 0), 0, MOST_PIXELS),
        fixed=_fixed(f"{where}.fixed", values.get("fixed")),
        draft=_draft(f"{where}.draft", values.get("draft")),
        color=read_color(f"{where}.color", values.get("color")),
        background=read_color(f"{where}.background", values.get("background")),
    )


def _characters(where: str, values: Mapping[str, Any]) -> int:
    text = values.get("text")
    if text is None:
        return _whole(f"{where}.characters", values.get("characters", 0), MOST_CHARACTERS)
    if not isinstance(text, str) or "characters" in values:
        allowed = "a string" if not isinstance(text, str) else "absent where characters is given"
        raise InvalidRequestError.of(f"{where}.text", text, allowed)
    return _whole(f"characters of {where}.text", length_of(" ".join(text.split())), MOST_CHARACTERS)


def read_color(field: str, value: object) -> str | None:
    """`#rrggbb`, of `#rgb` too; None stays None. Raises InvalidRequestError."""
    if value is None:
        return None
    if not isinstance(value, str) or not _COLOR.fullmatch(value):
        raise InvalidRequestError.of(field, value, "a colour like #1a2b3c or #abc")
    return value if len(value) == 7 else "#" + "".join(2 * digit for digit in value[1:])


def _fixed(field: str, value: object) -> Fixed:
    if value is None:
        return FREE
    values = _present(_mapping(field, value, Fixed._fields))
    return Fixed(**{name: _number(f"{field}.{name}", number, -MOST_PIXELS, MOST_PIXELS) for name, number in values.items()})


def _draft(field: str, value: object) -> Box | None:
    if value is None:
        return None
    given = _fixed(field, value)
    missing = next((name for name, number in zip(Fixed._fields, given, strict=True) if number is None), None)
    if missing is not None:
        raise InvalidRequestError.of(f"{field}.{missing}", None, f"a number, as each of {', '.join(Fixed._fields)}")
    for name in ("width", "height"):
        if (size := getattr(given, name)) <= 0:
            raise InvalidRequestError.of(f"{field}.{name}", size, "above 0")
    return Box(*(number for number in given if number is not None))


def _mapping(field: str, value: object, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequestError.of(field, value, "an object")
    for name in value:
        if name not in known:
            raise InvalidRequestError.of(f"{field}.{name}", value[name], f"absent; known are {', '.join(known)}")
    return value


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is null, which is as absent."""
    return {name: value for name, value in values.items() if value is not None}


def _number(field: str, value: object, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most or not math.isfinite(value):
        raise InvalidRequestError.of(field, value, f"a number, {least:g} to {most:g}")
    return float(value)


def _whole(field: str, value: object, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise InvalidRequestError.of(field, value, f"an integer, 0 to {most}")
    return value

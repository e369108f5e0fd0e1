"""The forms of an answer beside JSON: CSS rules, and a tree of Figma's nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nereid.layout.elements import CONTAINERS, TARGETS, Box, ElementClass, Section
from nereid.layout.picture import BOTTOM


def height_of(boxes: Sequence[Box]) -> float:
    """Of the canvas, in CSS pixels."""
    return max((box.bottom for box in boxes), default=0.0) + BOTTOM


def css(section: Section, boxes: Sequence[Box]) -> str:
    """A style sheet: the section is what holds the elements, each known by its id and placed in what holds it."""
    width, height = _px(section.canvas.width), _px(height_of(boxes))
    lines = [f".section {{ position: relative; width: {width}; height: {height}; }}"]
    for place, element in enumerate(section.elements):
        x, y = _inside(section, boxes, place)
        box = boxes[place]
        lines.append(
            f"{_selector(element.id)} {{ position: absolute; box-sizing: border-box; margin: 0; left: {_px(x)}; top: {_px(y)}; "
            f"width: {_px(box.width)}; height: {_px(box.height)}; }}"
        )
    return "\n".join(lines) + "\n"


def figma(section: Section, boxes: Sequence[Box]) -> dict[str, Any]:
    """A frame with children, as Figma's plugins make nodes: places are within the parent. Elements without children have none."""
    nodes = []
    for place, element in enumerate(section.elements):
        x, y = _inside(section, boxes, place)
        node = {"id": element.id, "name": f"{element.kind} {element.id}", "type": _NODES.get(element.kind, "TEXT")}
        box = boxes[place]
        nodes.append({**node, "x": x, "y": y, "width": box.width, "height": box.height})
    for place in reversed(range(len(section))):  # children come after their parents
        if section.children[place]:
            nodes[place]["children"] = [nodes[child] for child in section.children[place]]
    return {
        "id": "section",
        "name": f"section {section.canvas.width}",
        "type": "FRAME",
        "x": 0.0,
        "y": 0.0,
        "width": float(section.canvas.width),
        "height": height_of(boxes),
        "children": [nodes[child] for child in section.children[-1]],
    }


_NODES = {**dict.fromkeys((*CONTAINERS, *TARGETS), "FRAME"), ElementClass.IMAGE: "RECTANGLE"}


def _inside(section: Section, boxes: Sequence[Box], place: int) -> tuple[float, float]:
    """Left and top from those of what holds it."""
    parent = section.parents[place]
    if parent < 0:
        return boxes[place].x, boxes[place].y
    return boxes[place].x - boxes[parent].x, boxes[place].y - boxes[parent].y


def _px(value: float) -> str:
    return f"{value:g}px"


def _selector(name: str) -> str:
    """By attribute, for an id may be any text: CSS strings escape quotes, backslashes and what is no printable character.

    `<` as well, so that no id ends the `<style>` that a sheet is put into.
    """
    escaped = "".join(char if char.isprintable() and char not in '"\\<' else f"\\{ord(char):x} " for char in name)
    return f'[id="{escaped}"]'

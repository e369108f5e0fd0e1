"""What noisy boxes are to each other: the numbers that the layout transformer reads beside them."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import Tensor

from nereid.layout.canvas import Canvas
from nereid.layout.content import needed_height
from nereid.layout.elements import Box, Element, ElementClass, Section
from nereid.layout.tokens import SCALE, to_units, tokens_of
from nereid_zoo.layout.batches import sample_row
from nereid_zoo.layout.relations import DISTANCES, RELATIONS, needed_heights, relations

pytestmark = pytest.mark.torch


def given(section: Section, boxes: list[Box], count: int | None = None) -> tuple[Tensor, ...]:
    """Boxes in units, and what else `relations` takes, of one row."""
    tokens = tokens_of([section], count)
    pixels = np.zeros((1, tokens.valid.shape[1], 4))
    pixels[0, : len(section)] = boxes
    arrays = (to_units(pixels, tokens.canvas), tokens.classes, tokens.parents, tokens.content, tokens.canvas)
    return tuple(map(torch.from_numpy, arrays))


def in_pixels(section: Section, boxes: list[Box], count: int | None = None) -> np.ndarray:
    """The distances alone, elements x DISTANCES."""
    told = relations(*given(section, boxes, count))
    assert told.shape[-1] == RELATIONS
    return (told[0, : len(section), :DISTANCES] * 4 * SCALE).numpy()


def test_needed_heights_are_those_that_checks_ask_for() -> None:
    rng, seen = Random(0), set()
    for _ in range(40):
        section, boxes = sample_row(rng)
        its = given(section, boxes)
        needed = (needed_heights(its[0][..., 2:3] + 1, its[1], its[3], its[4])[0, :, 0] * SCALE).numpy()
        for element, box, height in zip(section.elements, boxes, needed, strict=False):
            wanted = needed_height(element, box.width, section.canvas) if element.ratio is None else box.width / element.ratio
            assert height == pytest.approx(wanted, abs=0.01), element
            seen.add(element.kind)
    assert {ElementClass.LIST, ElementClass.IMAGE, ElementClass.PARAGRAPH, ElementClass.FIELD} <= seen


@pytest.mark.parametrize(
    "element",
    [
        Element(id="long", kind=ElementClass.PARAGRAPH, characters=1500),
        Element(id="long", kind=ElementClass.LIST, characters=4000, items=12),
        Element(id="odd", kind=ElementClass.PARAGRAPH, characters=100, items=5),
    ],
)
def test_needed_heights_hold_for_long_texts_and_for_items_of_what_is_no_list(element: Element) -> None:
    section, width = Section.of(Canvas.of(1280), [element]), 480
    its = given(section, [Box(0, 0, width, 100)])
    needed = float(needed_heights(its[0][..., 2:3] + 1, its[1], its[3], its[4])[0, 0, 0] * SCALE)
    assert needed == pytest.approx(needed_height(element, width, section.canvas), abs=0.1)


def test_distances_are_to_the_parent_the_siblings_the_children_and_what_is_above() -> None:
    canvas = Canvas.of(640)
    elements = [
        Element(id="title", kind=ElementClass.HEADING, characters=5),
        Element(id="card", kind=ElementClass.CARD),
        Element(id="text", kind=ElementClass.PARAGRAPH, parent="card", characters=100),
        Element(id="go", kind=ElementClass.BUTTON, parent="card", characters=2),
    ]
    section = Section.of(canvas, elements)
    boxes = [Box(32, 16, 576, 48), Box(40, 80, 300, 200), Box(56, 96, 200, 72), Box(60, 184, 100, 40)]
    title, card, text, go = in_pixels(section, boxes)
    canvas_end = [640 - 340, 0]  # the lowest box is the card
    assert card == pytest.approx([40, 80, *canvas_end, 40 - 608, 80 - 64, 8, 64, 0, 0, 16, 16, 84, 56, 80 - 64, 200, 0], abs=0.01)
    assert title[8:10] == pytest.approx([40 - 608, 80 - 64], abs=0.01)
    assert text[:4] == pytest.approx([16, 16, 84, 112], abs=0.01)
    assert go[4:8] == pytest.approx([60 - 256, 16, 4, 88], abs=0.01)
    assert go[14] == pytest.approx(184 - 168, abs=0.01)
    assert text[15:] == pytest.approx([72 - 120, 120], abs=0.01)  # 100 characters are 880 px wide: five lines


def test_what_a_row_is_padded_to_changes_none_of_its_numbers() -> None:
    rng = Random(1)
    for _ in range(5):
        section, boxes = sample_row(rng)
        shaken = [Box(*(value + rng.gauss(0, 40) for value in box)) for box in boxes]
        assert np.array_equal(in_pixels(section, shaken), in_pixels(section, shaken, 32))

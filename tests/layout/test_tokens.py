"""Sections as a transformer's arrays: there and back, padding, and fixed fields."""

from __future__ import annotations

import numpy as np
import pytest

from nereid.layout.canvas import Canvas
from nereid.layout.elements import MAX_ELEMENTS
from nereid.layout.tokens import (
    BUCKETS,
    CANVAS,
    CONTENT,
    ITEMS_UNIT,
    LINE_UNIT,
    MOST_LINE,
    SCALE,
    Content,
    boxes_of,
    bucket_of,
    canvas_numbers,
    content_numbers,
    to_pixels,
    to_units,
    tokens_of,
)

from sections import section, two_cards


def test_boxes_come_back_as_they_were() -> None:
    made, boxes = two_cards()
    canvas = tokens_of([made]).canvas
    units = to_units(np.array([boxes]), canvas)
    assert np.abs(to_pixels(units, canvas)[0] - boxes).max() < 0.001
    assert boxes_of(made, units[0]) == boxes


@pytest.mark.parametrize("width", [240, 375, 1280])
def test_x_is_told_from_the_canvas_middle_in_units_of_320_pixels(width: int) -> None:
    canvas = np.array([canvas_numbers(Canvas.of(width))], np.float32)
    units = to_units(np.array([[[width / 2, 320.0, 640.0, 0.0]]]), canvas)
    assert units[0, 0] == pytest.approx([0, 0, 1, -1], abs=1e-6)


def test_arrays_are_padded_to_a_bucket_and_valid_where_elements_are() -> None:
    made, _ = two_cards()
    small = section({"id": "a", "class": "paragraph", "characters": 3})
    tokens = tokens_of([made, small], 16)
    assert tokens.content.shape == (2, 16, CONTENT)
    assert tokens.canvas.shape == (2, CANVAS)
    assert tokens.valid.sum(1).tolist() == [8, 1]
    assert tokens.parents[0, :8].tolist() == [0, 0, 0, 3, 3, 0, 6, 6]
    assert not tokens.field_mask.any()
    alone = tokens_of([small])
    assert (alone.content[0, 0] == tokens.content[1, 0]).all()


def test_content_is_told_in_the_places_that_are_named() -> None:
    listed = {"id": "b", "class": "list", "characters": 900, "items": 3}
    image = {"id": "c", "class": "image", "ratio": 2.0, "min_height": 64}
    made = section(
        {"id": "a", "class": "heading", "characters": 8}, listed, image, {"id": "d", "class": "heading", "characters": 4}
    )
    told = np.array(content_numbers(made))
    assert told.shape == (4, CONTENT)
    assert told[:, Content.ITEMS] * ITEMS_UNIT == pytest.approx([0, 3, 0, 0])
    assert told[:, Content.HAS_RATIO].tolist() == [0, 0, 1, 0]
    assert np.exp(told[2, Content.RATIO]) == pytest.approx(2)
    assert told[:3, Content.LEAST_HEIGHT] * SCALE == pytest.approx([48, 3 * 24 + 2 * 8, 64])
    assert told[2, Content.LEAST_WIDTH] * SCALE == pytest.approx(128)
    long = np.array([8 * 40, 900 * 16, 0, 4 * 40]) * 0.55 / SCALE
    assert np.exp(told[:, Content.LINE_LOGARITHM]) - 1 == pytest.approx(long)
    assert told[:, Content.LINE] * LINE_UNIT == pytest.approx(np.minimum(long, MOST_LINE))
    assert told[1, Content.LINE] * LINE_UNIT == MOST_LINE < long[1]
    for name, counts in (("PLACE", [0, 1, 2, 3]), ("SIBLINGS", [4] * 4), ("ALIKE", [2, 1, 1, 2]), ("CHILDREN", [0] * 4)):
        assert (8 * told[:, Content[name]]).tolist() == counts


def test_buckets_hold_every_section() -> None:
    assert [bucket_of(count) for count in (1, 8, 9, 17, MAX_ELEMENTS)] == [8, 8, 16, 24, 32]
    assert BUCKETS[-1] == MAX_ELEMENTS


def test_a_draft_is_known_by_half_and_fixed_fields_wholly() -> None:
    made, boxes = two_cards(fixed={"x": 64.25})
    other, _ = two_cards()
    tokens = tokens_of([made, other], 8, [boxes, None])
    assert tokens.field_mask[0, 2].tolist() == [1, 0.5, 0.5, 0.5]
    assert tokens.known[0, 1] == pytest.approx(to_units(np.array([boxes]), tokens.canvas[:1])[0, 1])
    assert tokens.known[0, 2, 0] == pytest.approx((64.25 - 640) / 320)
    assert not tokens.field_mask[1].any()


def test_fixed_fields_are_known_and_stay_as_given() -> None:
    made, boxes = two_cards(fixed={"x": 64.25, "height": 136})
    tokens = tokens_of([made])
    assert tokens.field_mask[0, 2].tolist() == [1, 0, 0, 1]
    assert tokens.field_mask.sum() == 2
    units = to_units(np.array([boxes]), tokens.canvas)
    assert tokens.known[0, 2] == pytest.approx([(64.25 - 640) / 320, 0, 0, units[0, 2, 3]])
    assert boxes_of(made, units[0] + 1)[2].x == 64.25

"""Repair: what is valid stays, what is nearly right becomes right, and what moved is told."""

from __future__ import annotations

import math
from random import Random

import pytest

from nereid.layout.checks import Check, check_layout, has_errors
from nereid.layout.elements import Box, Section
from nereid.layout.longest_paths import Line
from nereid.layout.repair import Move, repair
from nereid.layout.snapping import snap
from nereid_zoo.layout.batches import sample_row

from sections import section, two_cards


def shaken(boxes: list[Box], rng: Random, pixels: float) -> list[Box]:
    return [Box(*(value + rng.gauss(0, pixels) for value in box)) for box in boxes]


def rows(count: int, seed: int) -> list[tuple[Section, list[Box]]]:
    rng = Random(seed)
    return [sample_row(rng) for _ in range(count)]


def test_what_passes_every_check_is_not_moved() -> None:
    for made, boxes in rows(60, 1):
        assert repair(made, boxes).moves == ()


@pytest.mark.parametrize("pixels", [3, 20, 300])
def test_boxes_off_by_any_amount_pass_every_error_check_after_repair(pixels: float) -> None:
    rng = Random(2)
    for made, boxes in rows(60, 3):
        found = check_layout(made, repair(made, shaken(boxes, rng, pixels)).boxes)
        assert not has_errors(found), found


def test_boxes_off_by_a_pixel_come_back_to_where_they_were() -> None:
    rng = Random(4)
    for made, boxes in rows(40, 5):
        off = [Box(*(value + rng.uniform(-0.9, 0.9) for value in box)) for box in boxes]
        assert repair(made, off).boxes == boxes


def test_moves_tell_by_how_much_each_box_was_moved() -> None:
    made, boxes = two_cards()
    off = [box._replace(x=box.x + 3) if place == 1 else box for place, box in enumerate(boxes)]
    (move,) = repair(made, off).moves
    assert (move.element, move.x, move.y, move.height) == ("lead", -3, 0, 0)
    assert move.distance == 3
    assert Move("wider", -5, 0, 5, 0).distance == 5


def test_empty_cards_of_a_row_keep_their_ratios() -> None:
    made = section(*({"id": f"{number}", "class": "card", "ratio": ratio} for number, ratio in enumerate((1.0, 2.0, 4.0))))
    boxes = repair(made, [Box(64 + 392 * number, 48, 368, 100) for number in range(3)]).boxes
    assert len({box.y for box in boxes}) == 1
    assert [box.width / box.height for box in boxes] == pytest.approx([1, 2, 4], rel=0.05)


def test_fixed_fields_stay_and_what_is_in_their_way_moves() -> None:
    made = section(
        {"id": "title", "class": "heading", "characters": 8},
        {"id": "card", "class": "card", "fixed": {"x": 64, "y": 100, "width": 400, "height": 200}},
        {"id": "text", "class": "paragraph", "characters": 40},
    )
    drawn = [Box(64, 16, 400, 56), Box(80, 90, 380, 190), Box(64, 200, 400, 32)]
    mended = repair(made, drawn)
    assert mended.boxes[1] == Box(64, 100, 400, 200)
    assert mended.boxes[2].y >= 308
    assert not has_errors(check_layout(made, mended.boxes))


def test_what_does_not_fit_beside_is_put_below() -> None:
    made = section(*({"id": f"b{n}", "class": "button", "characters": 40} for n in range(4)))
    mended = repair(made, [Box(64 + 300 * n, 0, 290, 48) for n in range(4)])
    assert not has_errors(check_layout(made, mended.boxes))
    assert len({box.y for box in mended.boxes}) == 2


def test_boxes_of_nothing_or_infinity_are_placed_anew() -> None:
    made, boxes = two_cards()
    for bad in (math.nan, math.inf, 1e30):
        mended = repair(made, [box._replace(y=bad) for box in boxes]).boxes
        assert not has_errors(check_layout(made, mended))


def test_a_fixed_field_that_breaks_a_check_is_kept_and_the_check_says_so() -> None:
    made = section({"id": "text", "class": "paragraph", "characters": 400, "fixed": {"width": 200, "height": 24}})
    mended = repair(made, [Box(64, 0, 200, 24)])
    assert (mended.boxes[0].width, mended.boxes[0].height) == (200, 24)
    assert Check.MINIMUM_SIZE in {finding.check for finding in check_layout(made, mended.boxes)}


def test_a_card_of_fixed_height_keeps_it_though_its_text_needs_more() -> None:
    made = section(
        {"id": "card", "class": "card", "fixed": {"height": 80}},
        {"id": "text", "class": "paragraph", "parent": "card", "characters": 300},
    )
    mended = repair(made, [Box(64, 0, 300, 90), Box(80, 16, 268, 56)])
    assert mended.boxes[0].height == 80
    assert Check.INSIDE_PARENT in {finding.check for finding in check_layout(made, mended.boxes)}


def test_edges_near_each_other_snap_to_one_line_and_to_columns_and_fixed_ones() -> None:
    made = section(
        {"id": "a", "class": "card"},
        {"id": "b", "class": "card", "fixed": {"x": 700.5, "width": 300}},
        {"id": "c", "class": "card"},
    )
    assert made.canvas.grid.start(0) == 72
    drawn = [Box(76, 101, 321, 61), Box(703, 103, 290, 60), Box(702, 203, 298, 60)]
    assert snap(made, drawn) == [Box(72, 104, 328, 56), Box(700.5, 104, 300, 56), Box(700.5, 200, 300, 64)]


def test_rows_of_cards_stay_level_when_one_must_grow() -> None:
    made = section(
        *({"id": f"c{n}", "class": "card"} for n in range(3)),
        {"id": "text", "class": "paragraph", "parent": "c1", "characters": 200},
    )
    boxes = {"c0": Box(64, 0, 300, 80), "c1": Box(388, 2, 300, 80), "text": Box(404, 16, 268, 40), "c2": Box(712, 1, 300, 80)}
    mended = repair(made, [boxes[element.id] for element in made.elements]).boxes
    cards = [box for box, element in zip(mended, made.elements, strict=True) if element.kind == "card"]
    assert len({(box.y, box.height) for box in cards}) == 1
    assert cards[0].height > 168


def line(**fields: object) -> Line:
    after = fields.pop("after")
    return Line(**{"low": 0, "high": 100, "pinned": {}, "after": after, **fields})  # type: ignore[arg-type]


CHAIN: list[list[tuple[int, float]]] = [[], [(0, 5)], [(1, 5)]]


def test_a_chain_is_solved_as_near_to_what_is_wanted_as_its_constraints_allow() -> None:
    chain = line(sizes=[20, 20, 20], wanted=[-10, 22, 95], after=CHAIN)
    assert chain.earliest() == [0, 25, 50]
    assert chain.latest() == [30, 55, 80]
    assert chain.solve() == [0, 25, 80]
    assert chain.excess() is None


def test_a_pinned_interval_holds_back_those_before_it() -> None:
    chain = line(sizes=[20, 20, 20], wanted=[30, 30, 60], pinned={1: 30}, after=CHAIN)
    assert chain.solve() == [5, 30, 60]


def test_a_pinned_interval_is_not_blamed_for_what_is_after_it() -> None:
    assert line(sizes=[20, 20, 20], wanted=[0, 0, 0], pinned={0: 40}, after=CHAIN).excess() == 1


def test_a_chain_that_is_too_long_is_found_with_its_whole_path() -> None:
    chain = line(sizes=[40, 40, 40, 10], wanted=[0, 0, 0, 0], after=[*CHAIN, []])
    assert chain.excess() == 0
    assert chain.beyond(1) == 30
    assert chain.path(1) == [0, 1, 2]
    assert chain.path(3) == [3]


def test_what_needs_no_width_is_not_narrowed_to_none() -> None:
    made = section({"id": "card", "class": "card"}, {"id": "title", "class": "heading", "fixed": {"width": 1280}})
    boxes = repair(made, [Box(0, 0, 64, 900), Box(64, 0, 1280, 900)]).boxes
    assert min(box.width for box in boxes) > 0
    assert all(finding.check is not Check.COMPLETE for finding in check_layout(made, boxes))

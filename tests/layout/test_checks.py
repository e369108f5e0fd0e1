"""Checks: each one finds what breaks it, with its value and limit, and nothing else."""

from __future__ import annotations

import math
from typing import Any

import pytest

from nereid.layout.checks import Check, Severity, check_layout, has_errors, score
from nereid.layout.checks.content import luminance
from nereid.layout.checks.reading import backwards, kendall_tau
from nereid.layout.elements import Box

from sections import section, two_cards


def only(findings: list[Any], check: Check) -> Any:
    (found,) = (finding for finding in findings if finding.check is check)
    return found


def moved(boxes: list[Box], place: int, **fields: float) -> list[Box]:
    return [box._replace(**fields) if number == place else box for number, box in enumerate(boxes)]


def test_a_tidy_layout_has_no_findings_and_scores_1() -> None:
    made, boxes = two_cards()
    assert check_layout(made, boxes) == []
    assert score(made, []) == 1


def test_a_missing_or_empty_box_is_incomplete_and_nothing_else_is_said() -> None:
    made, boxes = two_cards()
    for broken in ([*boxes[:-1], None], boxes[:-1], moved(boxes, 7, width=math.nan), moved(boxes, 7, height=0.0)):
        (found,) = check_layout(made, broken)
        assert (found.check, found.elements) == (Check.COMPLETE, ("two-text",))


def test_beyond_the_canvas_is_out_of_bounds_by_so_much() -> None:
    made, boxes = two_cards()
    for fields, value in (({"x": -24.0}, 24), ({"y": -8.0}, 8), ({"x": 200.0, "width": 1100.0}, 20)):
        found = only(check_layout(made, moved(boxes, 0, **fields)), Check.IN_BOUNDS)
        assert (found.elements, found.value, found.limit, found.severity) == (("title",), value, 0, Severity.ERROR)


def test_siblings_that_overlap_are_found_and_containers_may_contain() -> None:
    made, boxes = two_cards()
    found = only(check_layout(made, moved(boxes, 1, y=80.0)), Check.DISJOINT)
    assert (found.elements, found.value) == (("title", "lead"), 24)


def test_a_child_beyond_its_parent_is_found() -> None:
    made, boxes = two_cards()
    found = only(check_layout(made, moved(boxes, 4, y=280.0)), Check.INSIDE_PARENT)
    assert (found.elements, found.value) == (("one-text", "one"), 8)


def test_a_fixed_field_must_be_as_given() -> None:
    made, boxes = two_cards(fixed={"y": 184, "height": 136})
    assert check_layout(made, boxes) == []
    found = only(check_layout(made, moved(boxes, 2, height=140.0)), Check.FIXED)
    assert (found.elements, found.value, found.limit) == (("one",), 4, 0.5)


def test_text_needs_room_for_its_lines_and_its_longest_word() -> None:
    made = section({"id": "text", "class": "paragraph", "characters": 100})
    wide = 100 * 0.55 * 16
    assert not has_errors(check_layout(made, [Box(64, 0, wide, 24)]))
    found = only(check_layout(made, [Box(64, 0, wide - 8, 24)]), Check.MINIMUM_SIZE)  # a second line
    assert (found.value, found.limit) == (24, 48)
    found = only(check_layout(made, [Box(64, 0, 80, 600)]), Check.MINIMUM_SIZE)
    assert found.limit == pytest.approx(10 * 0.55 * 16)


@pytest.mark.parametrize(
    ("element", "width", "height"),
    [
        ({"class": "button", "characters": 10}, 10 * 8.8 + 48, 40),
        ({"class": "link", "characters": 4}, 4 * 8.8 + 16, 24),
        ({"class": "field"}, 120, 64),
        ({"class": "list", "characters": 30, "items": 3}, 88, 3 * 24 + 2 * 8),
        ({"class": "image", "ratio": 3}, 96, 32),
        ({"class": "heading", "characters": 5, "min_width": 300, "min_height": 90}, 300, 90),
    ],
)
def test_each_class_has_its_least_size(element: dict[str, Any], width: float, height: float) -> None:
    made = section({"id": "it", **element})
    assert Check.MINIMUM_SIZE not in {finding.check for finding in check_layout(made, [Box(64, 0, width, height)])}
    for smaller in (Box(64, 0, width - 1, height), Box(64, 0, width, height - 1)):
        assert Check.MINIMUM_SIZE in {finding.check for finding in check_layout(made, [smaller])}


def test_an_image_keeps_its_ratio_within_8_pixels_or_2_percent() -> None:
    made = section({"id": "image", "class": "image", "ratio": 2})
    for box, good in ((Box(64, 0, 400, 208), True), (Box(64, 0, 400, 210), False), (Box(64, 0, 1200, 611), True)):
        assert (Check.RATIO in {finding.check for finding in check_layout(made, [box])}) is not good
    assert only(check_layout(made, [Box(64, 0, 400, 250)]), Check.RATIO).value == 1.6


def test_small_targets_are_errors_unless_spaced_and_below_44_are_warnings() -> None:
    """WCAG 2.5.8's own exceptions: a circle of 24 px around a small target's centre must be clear."""
    made = section({"id": "a", "class": "link"}, {"id": "b", "class": "link"})

    def findings(second: Box) -> set[Check]:
        return {finding.check for finding in check_layout(made, [Box(64, 0, 20, 20), second])}

    assert Check.TARGET_SIZE in findings(Box(86, 0, 20, 20))  # 22 px from centre to centre
    assert Check.TARGET_SIZE not in findings(Box(88, 0, 20, 20))  # 24 px
    assert Check.TARGET_SIZE in findings(Box(85, 0, 100, 48))  # 11 px from the centre to a large one
    assert Check.TARGET_SIZE not in findings(Box(86, 0, 100, 48))
    assert Check.TARGET_SIZE_AAA in findings(Box(300, 0, 100, 48))


def test_contrast_is_wcags_where_colours_are_given() -> None:
    assert luminance("#ffffff") == pytest.approx(1)
    assert luminance("#808080") == pytest.approx(0.2159, abs=1e-4)
    made, boxes = two_cards(background="#777777")
    assert check_layout(made, boxes) == []
    elements = [{"id": "card", "class": "card", "background": "#000000"}]
    for kind, color, good in (("paragraph", "#777777", True), ("paragraph", "#707070", False), ("heading", "#707070", True)):
        text = {"id": "text", "class": kind, "parent": "card", "characters": 4, "color": color}
        found = check_layout(section(*elements, text), [Box(64, 0, 400, 200), Box(80, 16, 320, 56)])
        assert (Check.CONTRAST in {finding.check for finding in found}) is not good, (kind, color)
    white = section({"id": "text", "class": "paragraph", "characters": 4, "color": "#777777"})
    found = only(check_layout(white, [Box(64, 0, 400, 24)]), Check.CONTRAST)  # 4.48 on white: the known near miss
    assert (round(found.value, 2), found.limit, found.severity) == (4.48, 4.5, Severity.ERROR)


@pytest.mark.parametrize(
    ("first", "second", "wrong"),
    [
        (Box(0, 100, 50, 50), Box(0, 0, 50, 50), True),  # above, in one column
        (Box(100, 0, 50, 50), Box(0, 0, 50, 50), True),  # left, in one row
        (Box(100, 100, 50, 50), Box(0, 0, 50, 50), True),  # above and left
        (Box(0, 100, 50, 50), Box(100, 0, 50, 50), False),  # further up in the next column
        (Box(0, 0, 50, 50), Box(0, 50, 50, 50), False),
        (Box(0, 0, 50, 50), Box(50, 0, 50, 50), False),
    ],
)
def test_reading_order_goes_down_columns_and_along_rows(first: Box, second: Box, wrong: bool) -> None:
    assert (backwards(first, second) > 0) is wrong


def test_inversions_are_found_among_siblings_and_counted_by_kendalls_tau() -> None:
    made, boxes = two_cards()
    swapped = [*boxes[:2], *boxes[5:], *boxes[2:5]]
    found = only(check_layout(made, swapped), Check.READING_ORDER)
    assert found.elements == ("one", "two")
    assert kendall_tau(made, boxes) == 1
    assert kendall_tau(made, swapped) == pytest.approx(1 - 2 / 8)


def test_text_beside_its_heading_is_not_below_it() -> None:
    made, boxes = two_cards()
    broken = moved(moved(boxes, 3, width=200.0), 4, x=300.0, width=200.0, y=200.0)
    found = only(check_layout(made, broken), Check.HEADING_ABOVE)
    assert (found.elements, found.value) == (("one-title", "one-text"), 40)


def test_style_is_warned_of_and_leaves_the_score_above_half() -> None:
    made, boxes = two_cards()
    off = moved(boxes, 1, x=boxes[1].x + 5, y=121.0, width=401.0, height=33.0)
    findings = check_layout(made, off)
    assert {finding.check for finding in findings} == {Check.ALIGNMENT, Check.GRID, Check.COLUMNS}
    assert {finding.severity for finding in findings} == {Severity.WARNING}
    assert only(findings, Check.GRID).value == 3
    assert 0.5 < score(made, findings) < 1


def test_repeats_have_equal_gaps() -> None:
    made = section(*({"id": f"c{n}", "class": "card"} for n in range(4)))
    row = [Box(64 + 200 * n, 0, 160, 80) for n in range(3)]
    below = Box(64, 120, 160, 80)
    assert Check.EQUAL_GAPS not in {finding.check for finding in check_layout(made, [*row, below])}
    found = only(check_layout(made, [*moved(row, 1, x=272.0), below]), Check.EQUAL_GAPS)
    assert (found.elements, found.value) == (("c0", "c1", "c2", "c3"), 16)
    stack = [Box(64, y, 160, 80) for y in (0, 100, 200, 320)]
    assert only(check_layout(made, stack), Check.EQUAL_GAPS).value == 20


def test_any_error_scores_less_than_all_warnings() -> None:
    made, boxes = two_cards()
    untidy = [box._replace(x=box.x + 1.3 * place, width=box.width - 1.3 * place) for place, box in enumerate(boxes)]
    untidy = [box._replace(y=box.y + 0.7 * place, height=box.height - 0.7 * place) for place, box in enumerate(untidy)]
    warned = check_layout(made, [*untidy[:2], boxes[2], *untidy[3:5], boxes[5], *untidy[6:]])
    assert len(warned) >= 5
    assert not has_errors(warned)
    wrong = check_layout(made, moved(boxes, 1, y=80.0))
    assert score(made, wrong) <= 0.5 < score(made, warned)


def test_a_finding_says_all_of_itself_in_json() -> None:
    made, boxes = two_cards()
    found = only(check_layout(made, moved(boxes, 1, y=80.0)), Check.DISJOINT)
    assert found.as_json() == {
        "check": "disjoint",
        "severity": "error",
        "elements": ["title", "lead"],
        "value": 24,
        "limit": 0,
    }

"""Elements and canvases: what is refused, by a sentence that names the element; reading order; the column grid."""

from __future__ import annotations

from typing import Any

import pytest

from nereid.flow.errors import InvalidRequestError
from nereid.layout.canvas import Canvas
from nereid.layout.element_list import read_canvas, read_elements

from sections import DESKTOP, section

TEXT = {"id": "text", "class": "paragraph", "characters": 20}


@pytest.mark.parametrize(
    ("elements", "sentence"),
    [
        ([], "elements: 0 is not allowed; it must be 1 to 32 elements"),
        ([{"id": f"e{n}", "class": "paragraph"} for n in range(33)], "elements: 33 .* 1 to 32 elements .e32 is one too many"),
        ([{"id": "lost"}], "elements.lost.class: None is not allowed; it must be one of heading, subheading"),
        ([{"id": "lost", "class": "marquee"}], "elements.lost.class: 'marquee'"),
        ([{"class": "paragraph", "parent": "0"}], r"elements.0.parent: '0' .* a card, figure.*; it is a paragraph"),
        ([TEXT, TEXT], "elements.text.id: 'text' is not allowed; it must be given to one element only"),
        ([{**TEXT, "parent": "nobody"}], "elements.text.parent: 'nobody' .* another element's id"),
        (
            [{"id": "a", "class": "card", "parent": "b"}, {"id": "b", "class": "card", "parent": "a"}],
            "elements.a.parent: 'b' .* not inside it .a cycle",
        ),
        ([{"id": "a", "class": "card", "parent": "a"}], "elements.a.parent: 'a' .* .a cycle."),
        (
            [
                {**TEXT, "parent": "a"},
                {"id": "a", "class": "card", "parent": "b"},
                {"id": "b", "class": "card", "parent": "a"},
            ],
            "elements.a.parent: 'b' .* .a cycle.",
        ),
        ([{**TEXT, "fixed": {"x": 1200, "width": 100}}], "elements.text.width: 100.0 .* inside the canvas, 1280 px wide"),
        ([{**TEXT, "fixed": {"x": -8}}], "elements.text.x: -8.0 .* inside the canvas"),
        ([{**TEXT, "fixed": {"y": -1}}], "elements.text.y: -1.0"),
        ([{**TEXT, "fixed": {"height": 0}}], "elements.text.height: 0.0"),
        ([{**TEXT, "fixed": {"z": 0}}], "elements.text.fixed.z: 0 .* known are x, y, width, height"),
        ([{**TEXT, "characters": -1}], "elements.text.characters: -1 .* 0 to 4000"),
        ([{**TEXT, "text": "both"}], "elements.text.text: 'both' .* absent where characters is given"),
        ([{"id": "text", "class": "paragraph", "text": "x" * 4001}], "characters of elements.text.text: 4001"),
        ([{**TEXT, "ratio": 0}], "elements.text.ratio: 0 .* 0.1 to 10"),
        ([{**TEXT, "min_width": float("nan")}], "elements.text.min_width: nan"),
        ([{**TEXT, "color": "red"}], "elements.text.color: 'red' .* a colour like"),
        (
            [{**TEXT, "draft": {"x": 0, "y": 0, "width": -8, "height": 8}}],
            "elements.text.draft.width: -8.0 is not allowed; it must be above 0",
        ),
        ([{**TEXT, "draft": {"x": 0, "y": 0, "width": 8, "height": 0}}], "elements.text.draft.height: 0.0"),
        (
            [{**TEXT, "draft": {"x": 1280, "y": 0, "width": 8, "height": 8}}],
            "elements.text.draft.x: 1280.0 is not allowed; it must be on the canvas, 1280 px wide, at least in part",
        ),
        ([{**TEXT, "draft": {"x": -8, "y": 0, "width": 8, "height": 8}}], "elements.text.draft.x: -8.0 .* on the canvas"),
        ([{**TEXT, "draft": {"x": 0, "y": -90, "width": 8, "height": 80}}], "elements.text.draft.y: -90.0 .* on the canvas"),
        ([{**TEXT, "width": 3}], "elements.0.width: 3 is not allowed; it must be absent; known are id, class"),
        ([{**TEXT, "id": 3}], "elements.0.id: 3 .* a string"),
        ([3], "elements.0: 3 .* an object"),
        ({}, "elements: {} .* a list"),
    ],
)
def test_bad_elements_end_in_one_sentence_that_names_them(elements: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequestError, match=sentence):
        read_elements(elements, DESKTOP)


def test_a_sentence_is_short_however_long_what_is_wrong_is() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_elements([{**TEXT, "x" * 100_000: "y" * 100_000}], DESKTOP)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    ("canvas", "sentence"),
    [
        ({"width": 0}, "canvas.width: 0 is not allowed; it must be an integer, 240 to 2560"),
        ({}, "canvas.width: None"),
        ({"width": 1280.5}, "canvas.width: 1280.5"),
        ({"width": True}, "canvas.width: True"),
        ({"width": 1280, "density": "tight"}, "canvas.density: 'tight' .* one of compact, normal, spacious"),
        ({"width": 1280, "style": 3}, "canvas.style: 3 .* a string"),
        ({"width": 1280, "style": ""}, "canvas.style: '' .* one of stacked"),
        ({"width": 1280, "density": ""}, "canvas.density: '' .* one of compact"),
        ({"width": 1280, "columns": 0}, "canvas.columns: 0 .* 1 to 24"),
        ({"width": 300, "columns": 24}, "canvas.columns: 24 .* so few that columns on 300 px"),
        ({"width": 1280, "height": 3}, "canvas.height: 3 .* known are width"),
    ],
)
def test_bad_canvases_are_refused_by_field(canvas: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequestError, match=sentence):
        read_canvas(canvas)


def test_a_canvas_has_usual_columns_where_none_are_given() -> None:
    assert [Canvas.of(width).columns for width in (390, 768, 1280)] == [4, 8, 12]


@pytest.mark.parametrize("width", [240, 375, 768, 1366, 2560])
def test_the_column_grid_is_of_multiples_of_8_and_inside_the_canvas(width: int) -> None:
    grid = Canvas.of(width).grid
    assert not any(value % 8 for value in (grid.margin, grid.column, grid.gutter))
    assert grid.margin > 0
    assert grid.start(grid.count - 1) + grid.column <= width - grid.margin


def test_elements_come_in_reading_order_parents_first() -> None:
    made = section(
        {"id": "inner", "class": "paragraph", "parent": "card", "order": 0},
        {"id": "last", "class": "paragraph", "order": 9},
        {"id": "card", "class": "card", "order": 3},
        {"id": "first", "class": "heading", "order": 1},
    )
    assert [element.id for element in made.elements] == ["first", "card", "inner", "last"]
    assert (made.parents, made.depths) == ((-1, -1, 1, -1), (0, 0, 1, 0))
    assert made.children == ((), (2,), (), (), (0, 1, 3))


def test_members_that_are_null_are_as_absent() -> None:
    plain = {"class": "paragraph", "characters": 12}
    fixed = {"x": 8, "y": None, "width": None, "height": None}
    nothing = dict.fromkeys(
        ("id", "parent", "order", "text", "items", "ratio", "min_width", "min_height", "draft", "color", "background")
    )
    assert read_elements([{**plain, **nothing, "fixed": fixed}], DESKTOP) == read_elements(
        [{**plain, "fixed": {"x": 8}}], DESKTOP
    )
    told = {"class": "paragraph", "text": "a", "characters": None}
    assert read_elements([told], DESKTOP).elements[0].characters == 1


def test_text_is_counted_without_its_line_breaks_and_short_colours_are_written_out() -> None:
    (text,) = section({"id": "a", "class": "paragraph", "text": "two\n   words ", "color": "#1af"}).elements
    assert (text.characters, text.color) == (9, "#11aaff")

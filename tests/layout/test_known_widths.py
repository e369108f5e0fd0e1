"""Canvases of widths that a transformer has not learnt are drawn on one that it has, and stretched to their own."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drawing import FACTS, FLOW, HTML, Straight, ask, boxes_of, serving

from nereid.layout.canvas import Breakpoint, Canvas
from nereid.layout.content import needed_width
from nereid.layout.elements import Box, Fixed, Section
from nereid.layout.known_widths import KnownWidths, stretched
from nereid.layout.settings import LAYOUT_FILE, LayoutFacts

from sections import DESKTOP, section, two_cards

KNOWN = KnownWidths({Breakpoint.MOBILE: (360, 430), Breakpoint.TABLET: (744, 834), Breakpoint.DESKTOP: (1200, 1280)})
CARDS, BOXES = two_cards()
ELEMENTS: list[dict[str, Any]] = [
    {"id": element.id, "class": str(element.kind), "parent": element.parent, "characters": element.characters}
    for element in CARDS.elements
]
WIDE = Canvas.of(1920, "normal", 12, "grid")


@pytest.mark.parametrize(
    ("width", "drawn"),
    [(240, 360), (360, 360), (400, 400), (639, 430), (640, 744), (1023, 834), (1024, 1200), (1250, 1250), (2560, 1280)],
)
def test_the_nearest_known_width_of_the_same_screen_is_drawn_on(width: int, drawn: int) -> None:
    asked = section({"id": "title", "class": "heading", "characters": 12}, canvas=Canvas.of(width, "compact"))
    found = KNOWN.section(asked)
    assert (found.canvas.width, found.canvas.breakpoint) == (drawn, asked.canvas.breakpoint)
    assert (found is asked) == (width == drawn)


def test_what_was_written_is_read_and_else_refused() -> None:
    assert KnownWidths.parse(json.loads(json.dumps(KNOWN.written()))) == KNOWN
    half: Any = {"mobile": [1, 2], "tablet": [3, 4]}
    for wrong in (half, {**half, "desktop": [6, 5]}, {**half, "desktop": [5]}, {**half, "desktop": ["a", 5]}, [], None):
        with pytest.raises(
            ValueError, match=r"canvas_widths: .* must have least and greatest width of mobile \(240 to 639\), tablet"
        ):
            KnownWidths.parse(wrong)


@pytest.mark.parametrize(("screen", "its"), [("mobile", [360, 640]), ("tablet", [639, 834]), ("desktop", [1200, 2561])])
def test_widths_of_another_screen_are_refused(screen: str, its: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"canvas_widths: .*{screen} \("):
        KnownWidths.parse({**KNOWN.written(), screen: its})


def test_a_known_width_without_room_for_the_columns_gives_way_to_the_next_that_has_it() -> None:
    asked = section({"id": "title", "class": "heading", "fixed": {"x": 40, "width": 8}}, canvas=Canvas.of(1023, "spacious", 24))
    drawn = KnownWidths({**KNOWN.ranges, Breakpoint.TABLET: (744, 744)}).section(asked)
    assert (drawn.canvas.width, drawn.canvas.grid.column) == (64 + 24 * 8 + 23 * 32, 8)
    assert drawn.elements[0].fixed.width is not None
    assert drawn.elements[0].fixed.width > 0


def test_facts_have_the_widths_that_export_wrote(tmp_path: Path) -> None:
    (tmp_path / LAYOUT_FILE).write_text(json.dumps({"scheduler": FLOW, "canvas_widths": KNOWN.written()}))
    assert LayoutFacts.read(tmp_path).canvas_widths == KNOWN
    (tmp_path / LAYOUT_FILE).write_text(json.dumps({"scheduler": FLOW, "canvas_widths": {}}))
    with pytest.raises(ValueError, match=f"{LAYOUT_FILE}: canvas_widths"):
        LayoutFacts.read(tmp_path)


def test_boxes_keep_their_columns() -> None:
    asked = replace(CARDS, canvas=WIDE)
    made = dict(zip((element.id for element in CARDS.elements), stretched(KNOWN.section(asked), BOXES, asked), strict=True))
    grid = WIDE.grid
    assert (made["title"].x, made["title"].width) == (grid.start(0), grid.span(12))
    assert (made["one"].x, made["one"].width) == (grid.start(0), grid.span(6))
    assert (made["two"].x, made["two"].width) == (grid.start(6), grid.span(6))
    assert [box.y for box in made.values()] == [box.y for box in BOXES]  # nothing here needs another height


def test_heights_are_what_the_new_width_needs_and_what_is_below_makes_room() -> None:
    asked = section(
        {"id": "text", "class": "paragraph", "characters": 900},
        {"id": "picture", "class": "image", "ratio": 2.0},
        {"id": "more", "class": "button", "characters": 6},
        canvas=Canvas.of(1024),
    )
    drawn = KNOWN.section(asked)
    left, full = drawn.canvas.grid.margin, drawn.canvas.grid.span(12)
    boxes = [Box(left, 48, full, 168), Box(left, 232, full, full / 2), Box(left, 248 + full / 2, 128, 40)]
    text, picture, more = stretched(drawn, boxes, asked)
    assert text.width == picture.width == asked.canvas.grid.span(12)
    assert text.height > 168
    assert picture.height == pytest.approx(picture.width / 2, abs=1)
    assert picture.y >= text.bottom + 8
    assert (more.y >= picture.bottom + 8, more.height) == (True, 40)


def test_a_fixed_height_moves_nothing_below() -> None:
    asked = section(
        {"id": "text", "class": "paragraph", "characters": 900, "fixed": {"height": 168}},
        {"id": "more", "class": "button", "characters": 6},
        canvas=Canvas.of(1024),
    )
    drawn = KNOWN.section(asked)
    left, full = drawn.canvas.grid.margin, drawn.canvas.grid.span(12)
    text, more = stretched(drawn, [Box(left, 48, full, 168), Box(left, 232, 128, 40)], asked)
    assert (text.height, more.y) == (168, 232)


def test_what_hangs_from_a_fixed_top_is_as_high_as_itself_needs_whatever_grows_beside_it() -> None:
    asked = section(
        {"id": "card", "class": "card", "fixed": {"y": 48}},
        {"id": "text", "class": "paragraph", "characters": 20, "parent": "card", "fixed": {"y": 64}},
        {"id": "picture", "class": "image", "ratio": 1.5},
        canvas=WIDE,
    )
    grid = KNOWN.section(asked).canvas.grid
    left, right, width = grid.start(0), grid.start(6), grid.span(6)
    boxes = [Box(left, 48, width, 64), Box(left + 16, 64, width - 32, 32), Box(right, 48, width, width / 1.5)]
    card, text, picture = stretched(KNOWN.section(asked), boxes, asked)
    assert picture.height > 1.4 * boxes[2].height
    assert (card.y, card.height, text.y, text.height) == (48, 64, 64, 32)


def test_what_is_below_a_fixed_place_keeps_its_distance_whatever_grows_above() -> None:
    asked = section(
        {"id": "text", "class": "paragraph", "characters": 900},
        {"id": "picture", "class": "image", "fixed": {"y": 400, "height": 200}},
        {"id": "more", "class": "button", "characters": 6},
        canvas=Canvas.of(1024),
    )
    drawn = KNOWN.section(asked)
    left, full = drawn.canvas.grid.margin, drawn.canvas.grid.span(12)
    text, picture, more = stretched(drawn, [Box(left, 48, full, 168), Box(left, 400, full, 200), Box(left, 616, 128, 40)], asked)
    assert text.height > 168
    assert (picture.y, picture.height, more.y) == (400, 200, 616)


def test_a_box_that_is_none_is_placed_anew() -> None:
    asked = section({"id": "title", "class": "heading", "characters": 12}, canvas=WIDE)
    (box,) = stretched(KNOWN.section(asked), [Box(math.nan, 48, math.inf, 56)], asked)
    assert (box.x, box.width) == (WIDE.grid.start(0), WIDE.grid.span(12))


def test_what_a_container_holds_keeps_its_distance_from_the_edges() -> None:
    asked = replace(CARDS, canvas=WIDE)
    made = dict(zip((element.id for element in CARDS.elements), stretched(KNOWN.section(asked), BOXES, asked), strict=True))
    for card in ("one", "two"):
        title = made[f"{card}-title"]
        assert (title.x - made[card].x, made[card].right - title.right) == (16, 16)


def test_what_a_container_of_fixed_width_holds_keeps_its_distance_from_its_edges() -> None:
    cards, boxes = two_cards(fixed={"width": 760})
    asked = replace(cards, canvas=WIDE)
    drawn = KNOWN.section(asked)
    made = dict(zip((element.id for element in cards.elements), stretched(drawn, boxes, asked), strict=True))
    title, card = made["one-title"], made["one"]
    assert (card.width, title.x - card.x, card.right - title.right) == (760, 8, 8)


def test_what_has_a_fixed_width_begins_where_its_column_does() -> None:
    asked = section({"id": "picture", "class": "image", "fixed": {"width": WIDE.grid.span(6)}}, canvas=WIDE)
    drawn = KNOWN.section(asked)
    (box,) = stretched(drawn, [Box(drawn.canvas.grid.start(6), 48, 560, 400)], asked)
    assert (box.x, box.width) == (WIDE.grid.start(6), WIDE.grid.span(6))


def test_a_label_has_room_on_a_narrower_canvas() -> None:
    asked = section({"id": "order", "class": "button", "characters": 60}, canvas=Canvas.of(1024))
    drawn = KNOWN.section(asked)
    (box,) = stretched(drawn, [Box(1200 - 64 - 560, 48, 560, 40)], asked)
    assert 560 * 1024 / 1200 < needed_width(asked.elements[0], asked.canvas) <= box.width + 0.5
    assert box.right <= 1024 - asked.canvas.grid.margin


def test_what_is_fixed_is_drawn_where_its_columns_are_and_answered_as_it_was_given() -> None:
    given = [{**ELEMENTS[0], "fixed": {"x": 60, "y": 48, "width": 1800, "height": 56}}, {**ELEMENTS[1], "fixed": {"width": 960}}]
    asked = section(*given, canvas=WIDE)
    drawn = KNOWN.section(asked)
    title, lead = (element.fixed for element in drawn.elements)
    assert title == Fixed(pytest.approx(40, abs=25), 48, pytest.approx(1200, abs=50), 56)
    assert lead == Fixed(width=640)
    engine = Straight(lambda tokens: [Box(0, 0, 8, 8), Box(64, 120, 8, 32)], width=1280)
    with serving(engine, facts=replace(FACTS, canvas_widths=KNOWN)) as service:
        boxes = boxes_of(ask(service, given, {"width": 1920, "columns": 12, "style": "grid"}).layout)
    assert boxes["title"] == Box(60, 48, 1800, 56)
    assert boxes["lead"].width == 960


def test_a_service_asks_its_engine_for_a_known_width_and_answers_the_one_that_was_asked_for() -> None:
    engine = Straight(lambda tokens: BOXES, width=1280)
    with serving(engine, facts=replace(FACTS, canvas_widths=KNOWN)) as service:
        told = ask(service, ELEMENTS, {"width": 1920, "columns": 12, "style": "grid"}, stream_interval=1)
        answer = told.layout
        shown = json.loads(told.sent[3]["layout"].item())
        known = ask(service, ELEMENTS, {"width": 1280, "columns": 12, "style": "grid"}).layout
    assert {float(width) for call in engine.calls for width in call["canvas"][:, 0]} == {1280 / 320}
    grid, boxes = WIDE.grid, boxes_of(answer)
    assert answer["canvas"]["width"] == shown["canvas"]["width"] == 1920
    assert (boxes["two"].x, boxes["two"].width) == (grid.start(6), grid.span(6))
    assert boxes_of(shown)["title"].width == grid.span(12)
    assert answer["checks"] == []
    assert list(boxes_of(known).values()) == BOXES


def test_previews_are_stretched_where_they_are_sent_and_not_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def noted(drawn: Section, boxes: Sequence[Box], section: Section) -> list[Box]:
        threads.append(threading.current_thread().name)
        return stretched(drawn, boxes, section)

    monkeypatch.setattr("nereid.layout.task.stretched", noted)
    with serving(Straight(lambda tokens: BOXES, width=1280), facts=replace(FACTS, canvas_widths=KNOWN)) as service:
        sent = ask(service, ELEMENTS, 1920, stream_interval=1).wait().sent
    assert sum(name.startswith("layout-send") for name in threads) == len(sent) - 1 == 7


def test_drafts_are_refined_in_the_same_columns() -> None:
    engine = Straight(lambda tokens: BOXES, width=1280)
    drafts = [
        {**element, "draft": {"x": WIDE.grid.start(0), "y": 48, "width": WIDE.grid.span(12), "height": 56}}
        for element in ELEMENTS[:1]
    ]
    with serving(engine, facts=replace(FACTS, canvas_widths=KNOWN)) as service:
        ask(service, drafts, {"width": 1920, "columns": 12}).wait()
    (x, _, width, _) = engine.calls[0]["known"][0, 0]
    assert (x * 320 + 640, width * 320 + 320) == (
        pytest.approx(DESKTOP.grid.start(0), abs=8),
        pytest.approx(DESKTOP.grid.span(12), abs=16),
    )


def test_a_checkpoint_that_tells_no_widths_is_drawn_as_it_is_asked_for() -> None:
    engine = Straight(width=1920)
    with serving(engine) as service:
        ask(service, HTML, 1920).wait()
    assert engine.calls[0]["canvas"][0, 0] == 1920 / 320

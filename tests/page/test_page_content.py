"""A section's HTML as parts, what a layout is asked for with them, and room for what is drawn."""

from __future__ import annotations

import pytest

from nereid.flow.errors import InvalidRequestError
from nereid.layout.canvas import Canvas, Style
from nereid.layout.checks import check_layout
from nereid.layout.checks.finding import Check
from nereid.layout.content import CHARACTER
from nereid.layout.elements import Box, ElementClass
from nereid.layout.flow import flow_layout
from nereid.page.checks import check_page, passed
from nereid.page.content import room_for, style_of
from nereid.page.document import PlacedSection
from nereid.page.room import make_room
from nereid.page.text import shipped_font

from page_forms import CONTACT, FEATURES, GALLERY, content


def test_parts_have_ids_of_their_own_and_tags_of_a_fixed_set() -> None:
    made = content(
        '<section><h1 id="x">A</h1><h1>B</h1><ol><li>One</li><li>Two</li></ol><blockquote><p>Q</p></blockquote></section>',
        2,
    )
    assert [(part.id, part.tag, part.parent) for part in made.parts] == [
        ("s2-heading-1", "h2", None),
        ("s2-heading-2", "h2", None),
        ("s2-group-1", "ol", None),
        ("s2-paragraph-1", "li", "s2-group-1"),
        ("s2-paragraph-2", "li", "s2-group-1"),
        ("s2-card-1", "blockquote", None),
        ("s2-paragraph-3", "p", "s2-card-1"),
    ]
    assert [part.tag for part in content("<section><h2>A</h2><h2>B</h2></section>").parts] == ["h1", "h2"]


def test_a_layout_is_asked_for_with_the_widths_that_will_be_drawn() -> None:
    made = content(FEATURES)
    by_id = {element["id"]: element for element in made.elements}
    heading = by_id["s1-heading-1"]
    style = style_of(ElementClass.HEADING, made.section.canvas)
    assert style is not None
    wide = shipped_font().width("Why guests choose us", style)
    assert wide <= heading["characters"] * CHARACTER * style.size < wide + CHARACTER * style.size
    assert shipped_font().width("choose", style) < heading["min_width"] < shipped_font().width("choose", style) + 3
    assert (by_id["s1-list-1"]["items"], by_id["s1-list-1"]["parent"]) == (2, "s1-card-2")
    assert content(GALLERY).elements[2]["ratio"] == 1.0


def test_elements_with_nothing_to_show_are_left_out() -> None:
    made = content("<section><h2>A</h2><p> \u200b</p><div><p></p></div><ul><li></li><li>x</li></ul></section>")
    assert [(str(part.kind), part.lines) for part in made.parts] == [("heading", ("A",)), ("list", ("x",))]
    with pytest.raises(InvalidRequestError, match="section without text"):
        content("<section><div><p> </p></div></section>")


def test_elements_beyond_what_a_layout_takes_are_counted() -> None:
    made = content("<section>" + "<p>x</p>" * 40 + "</section>")
    assert (len(made.parts), made.left_out) == (32, 8)


@pytest.mark.parametrize("html", [FEATURES, GALLERY, CONTACT])
@pytest.mark.parametrize("width", [360, 800, 1280])
def test_every_text_fits_after_room_is_made_and_nothing_new_is_wrong(html: str, width: int) -> None:
    made = content(html, canvas=Canvas.of(width))
    before = flow_layout(made.section)
    boxes, grown = make_room(made.section, made.parts, before)
    for place, (part, box) in enumerate(zip(made.parts, boxes, strict=True)):
        assert room_for(part, box.width, made.section, place) <= box.height + 1e-6, part
        assert (box.x, box.width) == (before[place].x, before[place].width)
        assert part.kind in (ElementClass.CARD, ElementClass.FIGURE, ElementClass.FORM, ElementClass.NAV) or (
            box.height == before[place].height + grown.get(part.id, 0.0)
        )
    broken = {finding.check for finding in check_layout(made.section, boxes)}
    known = {finding.check for finding in check_layout(made.section, before)}
    assert broken <= known | {Check.EQUAL_GAPS}


@pytest.mark.parametrize("width", [240, 360, 1280])
def test_labels_that_are_too_long_for_one_line_of_the_canvas_are_broken_and_pass(width: int) -> None:
    label = "Order a wedding cake for more than two hundred hungry guests"
    button, link = f'<a class="button" href="#">{label}</a>', f'<a class="link" href="#">{label}</a>'
    html = f"<section><h2>Cakes</h2>{button}<div><p>All</p>{button}</div><nav>{link}{link}</nav></section>"
    for style in Style:
        made = content(html, canvas=Canvas.of(width), style=str(style))
        boxes, _ = make_room(made.section, made.parts, flow_layout(made.section))
        found = check_page([PlacedSection(content=made, boxes=tuple(boxes), kind="hero", brief="cakes")])
        assert passed(found), (style, found)


def test_what_is_below_moves_down_and_what_holds_it_grows() -> None:
    made = content(f"<section><div><h3>{'Long words ' * 12}</h3><p>Text</p></div><p>Below</p></section>")
    boxes = [Box(64, 48, 400, 96), Box(80, 64, 368, 28), Box(80, 100, 368, 24), Box(64, 160, 400, 24)]
    moved, grown = make_room(made.section, made.parts, boxes)
    more = grown["s1-subheading-1"]
    assert more > 0
    assert more % 8 == 0
    assert moved[0] == boxes[0]._replace(height=96 + more)
    assert moved[1] == boxes[1]._replace(height=28 + more)
    assert moved[2] == boxes[2]._replace(y=100 + more)
    assert moved[3] == boxes[3]._replace(y=160 + more)

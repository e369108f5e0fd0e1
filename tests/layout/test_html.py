"""Sections in HTML: what becomes which element, and what does not parse."""

from __future__ import annotations

from pathlib import Path

import pytest

from nereid.flow.errors import InvalidRequestError
from nereid.layout.html import Found, find_elements, read_html

from own_time import own_seconds
from sections import DESKTOP

SECTION = """
<section class="features">
  <h2>Why <em>riders</em> choose us</h2>
  <p>Your quick bike shop &amp; more</p>
  <div class="feature">
    <img src="a.jpg" alt="" width="800" height="600">
    <h3 id="own">City bikes</h3>
    <ul><li>One</li><li>Two words</li></ul>
  </div>
  <ol><li>Choose</li><li>Enjoy</li></ol>
  <div class="stat"><span>250</span><p>Riders</p></div>
  <form><label>Email <input name="email"></label><button class="button">Join</button></form>
  <nav><a class="link" href="#">Home</a></nav>
  <a class="button" href="#">Order now</a>
</section>
"""


def test_tags_become_elements_with_their_text_items_ratios_and_parents() -> None:
    made = read_html(SECTION, DESKTOP)
    found = [(element.id, str(element.kind), element.parent, element.characters) for element in made.elements]
    assert found == [
        ("heading-1", "heading", None, 20),
        ("paragraph-1", "paragraph", None, 27),
        ("card-1", "card", None, 0),
        ("image-1", "image", "card-1", 0),
        ("own", "subheading", "card-1", 10),
        ("list-1", "list", "card-1", 12),
        ("group-1", "group", None, 0),
        ("paragraph-2", "paragraph", "group-1", 6),
        ("paragraph-3", "paragraph", "group-1", 5),
        ("card-2", "card", None, 0),
        ("number-1", "number", "card-2", 3),
        ("paragraph-4", "paragraph", "card-2", 6),
        ("form-1", "form", None, 0),
        ("field-1", "field", "form-1", 5),
        ("button-1", "button", "form-1", 4),
        ("nav-1", "nav", None, 0),
        ("link-1", "link", "nav-1", 4),
        ("button-2", "button", None, 9),
    ]
    by_id = {element.id: element for element in made.elements}
    assert by_id["image-1"].ratio == pytest.approx(4 / 3)
    assert by_id["list-1"].items == 2
    assert by_id["heading-1"].min_width == pytest.approx(len("riders") * 0.55 * 40)


def test_the_section_that_the_documents_lay_out_is_one() -> None:
    document = (Path(__file__).parents[2] / "docs" / "layout.md").read_text()
    shown = document.partition("cat > section.html <<'END'\n")[2].partition("\nEND\n")[0]
    assert [str(element.kind) for element in read_html(shown, DESKTOP).elements] == ["heading", "paragraph", "image", "button"]


@pytest.mark.parametrize(
    ("html", "sentence"),
    [
        ("", "html: '' is not allowed; it must be a section with at least one element"),
        ("<section></section>", "a section with at least one element"),
        ("<p>alone</p>", "line 1 of html: '<p>' .* the section itself: one of article"),
        ("<section>\n<p>open</section>", "line 2 of html: '</section>' .* <p> is still open"),
        ("<section><p>open</p>", "line 1 of html: '<section>' .* closed"),
        ("<section><video></video></section>", "'<video>' is not allowed; it must be one of a, article"),
        ("<section>bare<p>a</p></section>", "'bare' .* inside an element"),
        ("<section><p>a</p></section><p>b</p>", "'<p>' .* inside the section, which ends before it"),
        ("<section>\n<div>bare<p>a</p></div></section>", "line 2 of html: 'text in <div>' .* in an element of its own"),
        ("<section>\n<p", "line 2 of html: '<p' is not allowed; it must be closed by >"),
        ("<section><p>a</p>\n</section", "line 2 of html: '</section' .* closed by >"),
        ("<section><p>a</p><!-- more", "line 1 of html: '<!-- more' .* closed by >"),
        ("<section><p><div></div></p></section>", "'<div> in <p>' .* inside a container"),
        ("<section></p></section>", "'</p>'"),
        ("<section>" + "<p>a</p>" * 33 + "</section>", "elements: 33 .* .paragraph-33 is one too many."),
        ("<section><p id='a'>a</p><p id='a'>b</p></section>", "elements.a.id"),
        (f"<section><h2>a</h2><p id='{'x' * 65}'>b</p></section>", "elements.1.id: 'xxx.* is not allowed; .* 1 to 64 characters"),
        ("<section><p>" + "x" * 4001 + "</p></section>", "characters of paragraph-1: 4001"),
        ("<section><ul>" + "<li>a</li>" * 51 + "</ul></section>", "items of list-1: 51 is not allowed; it must be at most 50"),
        ("x" * 100_001, "characters of html: 100001"),
        ("<section><p>a</p>\n<![else[x]]></section>", r"line 2 of html: '<!\[else\[x\]\]></section>' .* absent"),
        ("<section><p><![foo[x]]></p></section>", r"line 1 of html: '<!\[foo\[x.* absent"),
        ("<section><p><![CDATA[x]]></p></section>", r"line 1 of html: '<!\[CDATA.* absent"),
    ],
)
def test_html_that_does_not_parse_ends_in_one_sentence(html: str, sentence: str) -> None:
    with pytest.raises(InvalidRequestError, match=sentence):
        read_html(html, DESKTOP)


def test_given_ids_and_numbered_ones_do_not_meet() -> None:
    made = read_html('<section><p>a</p><p id="paragraph-1">b</p></section>', DESKTOP)
    assert [element.id for element in made.elements] == ["paragraph-2", "paragraph-1"]


def test_texts_in_very_many_divs_are_read_in_one_pass() -> None:
    found: list[Found] = []
    many = "<section>" + "<div>a</div>" * 8_000 + "</section>"
    # Each against all others takes twice that on a fast machine.
    assert own_seconds(lambda: found.extend(find_elements(many))) < 1
    assert len(found) == 8_000

"""Pages in a real Chromium: what is drawn is what was answered and measured, and nothing else happens."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from test_page_document import ATTACKS

from nereid.layout.canvas import Canvas
from nereid.layout.checks.finding import overlap
from nereid.layout.elements import Box
from nereid.page.content import INDENT, style_of
from nereid.page.document import PlacedSection, tops, write_page
from nereid.page.text import shipped_font
from nereid_client.browser import screenshot

from browser_page import browser, drawn
from page_forms import CONTACT, FEATURES, GALLERY, THEME, picture, placed

pytestmark = pytest.mark.browser

LONG = (
    '<section class="hero"><h1>Extraordinarily long headings, which break at spaces &amp; more</h1>'
    "<p>Täglich frisch: Ελληνικά, Кириллица, «quotes» — and 1 000 € for a loaf that is worth it, à la carte, œuvre.</p>"
    f"<p>{'word ' * 60}</p><ul><li>{'item ' * 30}</li><li>b</li></ul><p>{'m' * 300}</p></section>"
)


def same_boxes(found: Any, sections: list[PlacedSection]) -> None:
    """Every element is drawn within 1 px of its box, and no text leaves its own."""
    for top, section in zip(tops(sections), sections, strict=True):
        for part, box in zip(section.content.parts, section.boxes, strict=True):
            seen = found["elements"][part.id]
            for name in Box._fields:
                wanted = getattr(box, name) + (top if name == "y" else 0)
                assert seen[name] == pytest.approx(wanted, abs=1), (part.id, name)
            assert not seen["overflows"], part
            for line in seen["lines"]:
                assert seen["x"] - 1 <= line["x"], (part.id, line)
                assert line["x"] + line["width"] <= seen["x"] + seen["width"] + 1, (part.id, line)
                assert seen["y"] - 1 <= line["y"], (part.id, line)
                assert line["y"] + line["height"] <= seen["y"] + seen["height"] + 1, (part.id, line)


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_what_is_drawn_is_what_was_answered_and_every_line_as_wide_as_it_was_measured(width: int, tmp_path: Path) -> None:
    canvas = Canvas.of(width)
    sections = [
        placed(LONG, 1, "hero", canvas),
        placed(FEATURES, 2, "features", canvas),
        placed(GALLERY, 3, "gallery", canvas, pictures={"s3-image-1": picture()}),
        placed(CONTACT, 4, "footer", canvas),
    ]
    found = drawn(write_page("Bakery", canvas, THEME, sections), width, tmp_path)
    assert found["fonts"]
    assert set(found["fonts"]) == {"loaded"}
    assert found["style"] == "relative"
    assert found["pictures"] == [True]
    same_boxes(found, sections)
    parts = [part for section in sections for part in section.content.parts]
    lines = 0
    for part in parts:
        style = style_of(part.kind, canvas)
        for line in found["elements"][part.id]["lines"] if style is not None else ():
            lines += 1
            assert line["width"] == pytest.approx(shipped_font().width(line["text"], style), abs=0.5), (part.id, line)
    assert lines > 30
    for section in sections:
        for group in section.content.section.children:
            boxes = [found["elements"][section.content.parts[place].id] for place in group]
            seen = [Box(*(box[name] for name in Box._fields)) for box in boxes]
            assert all(min(overlap(first, second)) <= 1 for first, second in itertools.combinations(seen, 2))


@pytest.mark.parametrize("width", [360, 1280])
def test_texts_of_other_scripts_stay_in_their_elements(width: int, tmp_path: Path) -> None:
    """Whatever draws the characters that the font lacks; what is written from right to left begins there."""
    canvas = Canvas.of(width)
    chinese, thai = "我来自北京，今天天气不错。「你好」" * 6, "ยินดีต้อนรับสู่ร้านขนมปัง" * 6
    arabic, hebrew, persian = "أهلا وسهلا (بكم)! " * 8, "שלום, עולם. " * 8, "می\u200cخواهم نان تازه. " * 8
    emoji = "\U0001f469\u200d\U0001f373\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f44d\U0001f3fd" * 8
    texts = "".join(f"<p>{text}</p>" for text in (chinese, thai, persian, "नमस्ते दुनिया " * 8, emoji))
    lists = f"<ul><li>{arabic}</li><li>{hebrew}</li></ul><a class='button' href='#'>اطلب الآن</a>"
    sections = [placed(f"<section><h1>{hebrew}</h1>{texts}{lists}</section>", 1, "features", canvas)]
    found = drawn(write_page("مخبز", canvas, THEME, sections), width, tmp_path)
    same_boxes(found, sections)
    for name in ("s1-heading-1", "s1-list-1"):
        element = found["elements"][name]
        indent = 0 if name == "s1-heading-1" else INDENT
        for line in element["lines"]:
            assert line["x"] + line["width"] == pytest.approx(element["x"] + element["width"] - indent, abs=2), line


def test_nothing_runs_and_nothing_breaks_out_whatever_the_texts_are(tmp_path: Path) -> None:
    from html import escape

    texts = "".join(f"<p>{escape(text)} end</p>" for text in ATTACKS[:14])
    more = "".join(f"<h3>{escape(text)}</h3>" for text in ATTACKS[:8])
    labels = f'<a class="button" href="x">{escape(ATTACKS[3])}</a><ul><li>{escape(ATTACKS[0])}</li></ul>'
    figure = f'<figure><img alt="{escape(ATTACKS[3], quote=True)}" src="x"></figure>'
    sections = [
        placed(f"<section>{texts}{labels}</section>", 1, "hero"),
        placed(f"<section>{more}{figure}</section>", 2, ATTACKS[1], pictures={"s2-image-1": picture()}),
    ]
    page = write_page(ATTACKS[2], Canvas.of(1280), THEME, sections)
    found = drawn(page, 1280, tmp_path)
    assert (found["scripts"], found["handlers"], found["ran"]) == (0, 0, 0)
    assert not {"script", "svg", "iframe", "object", "link", "base"} & set(found["tags"])
    assert found["style"] == "relative"
    same_boxes(found, sections)


def test_the_policy_stops_what_would_be_smuggled_in(tmp_path: Path) -> None:
    """Were a text not escaped, it still could not run, load or restyle."""
    page = write_page("Bakery", Canvas.of(1280), THEME, [placed(FEATURES)])
    smuggled = '<script>parent.ran += 1</script><img src=x onerror="parent.ran += 1"><style>.page{position:fixed}</style>'
    broken = page.replace("</main>", f"{smuggled}</main>")
    assert drawn(broken, 1280, tmp_path)["ran"] == 0
    assert drawn(broken, 1280, tmp_path)["style"] == "relative"
    policy = page[page.index('<meta http-equiv="Content-Security-Policy"') : page.index('<meta name="viewport"')]
    unguarded = drawn(broken.replace(policy, ""), 1280, tmp_path)
    assert (unguarded["ran"], unguarded["style"]) == (2, "fixed")  # so the test would see it


def test_a_picture_of_a_page_has_its_size(tmp_path: Path) -> None:
    from PIL import Image

    section = placed(FEATURES)
    (tmp_path / "page.html").write_text(write_page("Bakery", Canvas.of(1280), THEME, [section]), encoding="utf-8")
    screenshot(tmp_path / "page.html", tmp_path / "page.png", 1280, section.height, browser())
    assert Image.open(tmp_path / "page.png").size == (1280, int(section.height))

"""The file of a page: complete in itself, and closed against whatever its texts hold."""

from __future__ import annotations

import base64
import hashlib
import html as unescaping
import re
from html.parser import HTMLParser

import pytest

from nereid.layout.checks.content import luminance
from nereid.page.checks import check_page, passed
from nereid.page.document import tops, write_page
from nereid.page.theme import THEMES, Theme

from page_forms import CONTACT, DESKTOP, FEATURES, GALLERY, THEME, picture, placed

TAGS = set(
    "html head meta title style body main section footer h1 h2 h3 p ul ol li a button label input img div figure figcaption form "
    "nav blockquote cite article".split()
)
ATTRIBUTES = set("lang charset http-equiv content name id class dir href type autocomplete alt src role aria-label".split())


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def seen(page: str) -> Seen:
    reader = Seen()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_a_page_is_one_file_that_loads_nothing() -> None:
    drawn = {"s1-image-1": picture(), "s1-image-2": picture(90)}
    page = write_page("Bakery", DESKTOP, THEME, [placed(GALLERY, pictures=drawn), placed(CONTACT, 2, "footer")])
    found = seen(page)
    assert {tag for tag, _ in found.tags} <= TAGS
    assert {name for _, attributes in found.tags for name in attributes} <= ATTRIBUTES
    sources = [attributes["src"] for tag, attributes in found.tags if tag == "img"]
    assert [base64.b64decode(str(source).removeprefix("data:image/png;base64,")) for source in sources] == list(drawn.values())
    assert not re.search(r"url\((?!\"data:font/woff2)|@import|https?:", page)
    assert {attributes["href"] for _, attributes in found.tags if "href" in attributes} <= {"#s1", "#s2"}


def test_the_files_policy_allows_its_own_style_and_nothing_else() -> None:
    page = write_page("Bakery", DESKTOP, THEME, [placed(FEATURES)])
    style = page.partition("<style>")[2].partition("</style>")[0]
    (policy,) = (attributes["content"] for _, attributes in seen(page).tags if attributes.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-{digest}'; img-src data:; font-src data:"
    )
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_boxes_are_css_pixels_from_what_holds_them() -> None:
    made = placed(FEATURES)
    page = write_page("Bakery", DESKTOP, THEME, [made, placed(GALLERY, 2)])
    rules = dict(re.findall(r"#(s\d[\w-]*) \{ (.*?) \}", page))
    place = {part.id: at for at, part in enumerate(made.content.parts)}
    card, title = made.boxes[place["s1-card-1"]], made.boxes[place["s1-subheading-1"]]
    assert rules["s1-card-1"] == f"left: {card.x:g}px; top: {card.y:g}px; width: {card.width:g}px; height: {card.height:g}px;"
    assert rules["s1-subheading-1"].startswith(f"left: {title.x - card.x:g}px; top: {title.y - card.y:g}px;")
    assert rules["s2"].startswith(f"top: {made.height:g}px;")
    assert tops([made, made]) == [0.0, made.height]


ATTACKS = (
    "</p><script>alert(1)</script>",
    "</style><script>alert(1)</script><style>",
    "</title><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "<!--",
    "--><svg onload=alert(1)>",
    "]]>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;",
    "javascript:alert(1)",
    "{{constructor}}",
    "}*{display:none}",
    "expression(alert(1))",
    "url(http://evil.example/)",
    "\u202egnp.exe",
    "<|im_end|>",
)


@pytest.mark.parametrize("text", ATTACKS)
def test_no_text_leaves_its_element(text: str) -> None:
    """As a model's text, an image's description, a section's kind and brief, and the page's title."""
    escaped = unescaping.escape(text, quote=True)
    source = (
        f'<section class="{escaped}"><h2 id="{escaped}">{escaped} end</h2><p onclick="{escaped}">{escaped} end</p>'
        f'<ul><li>{escaped} end</li></ul><a class="button" href="{escaped}">{escaped} end</a>'
        f'<a href="{escaped}">{escaped} end</a>'
        f'<form action="{escaped}"><label>{escaped} end<input name="{escaped}"></label></form>'
        f'<figure><img src="{escaped}" alt="{escaped}"><figcaption>{escaped} end</figcaption></figure></section>'
    )
    usual = seen(write_page("x", DESKTOP, THEME, [placed(source.replace(escaped, "x"))]))
    made = placed(source)
    hostile = placed(source, kind=text)
    for section in (made, hostile):
        page = write_page(text, DESKTOP, THEME, [section])
        found = seen(page)
        assert [tag for tag, _ in found.tags] == [tag for tag, _ in usual.tags]
        assert {name for _, attributes in found.tags for name in attributes} <= ATTRIBUTES
        assert all(str(attributes["href"]) == "#s1" for _, attributes in found.tags if "href" in attributes)
        assert page.count("<style>") == 1


def test_texts_from_right_to_left_are_told_to_be_so() -> None:
    """https://github.com/MoeraOrg/moera-issues/issues/246, https://github.com/tutao/tutanota/issues/2157"""
    page = write_page(
        "מאפייה", DESKTOP, THEME, [placed(FEATURES.replace("Sourdough", "שלום (אח).").replace("Butter", "خبز، زبدة!"))]
    )
    turned = [(tag, attributes["id"]) for tag, attributes in seen(page).tags if attributes.get("dir") == "auto"]
    assert turned == [("h3", "s1-subheading-1"), ("ul", "s1-list-1")]
    assert "dir=" not in write_page("Bakery", DESKTOP, THEME, [placed(FEATURES)])


@pytest.mark.parametrize("html", [FEATURES, GALLERY, CONTACT])
@pytest.mark.parametrize("theme", THEMES)
def test_a_page_by_rules_passes_its_checks_in_every_colour(html: str, theme: object) -> None:
    from dataclasses import replace

    from nereid.page.content import read_content

    for number in (1, 2):
        made = placed(html, number)
        own = read_content(html, number, made.content.section.canvas, theme, 1.0)  # type: ignore[arg-type]
        findings = check_page([replace(made, content=own)])
        assert passed(findings), findings


def test_a_link_goes_to_the_section_that_has_its_words_in_the_heading_or_is_of_that_kind() -> None:
    prices = placed(FEATURES.replace("Why guests choose us", "Prices"), 2, "pricing")
    gallery = placed(GALLERY, 3, "gallery")
    for words, target in (("Prices", "s2"), ("Gallery", "s3"), ("Careers", "s1")):
        page = write_page(
            "B", DESKTOP, THEME, [placed(FEATURES), prices, gallery, placed(CONTACT.replace("Prices", words), 4, "footer")]
        )
        (link,) = [attributes for tag, attributes in seen(page).tags if tag == "a" and "link" in (attributes["class"] or "")]
        assert link["href"] == f"#{target}", words


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.accent)
def test_the_edge_of_an_input_stands_out_from_what_it_is_drawn_on(theme: Theme) -> None:
    """By 3 to 1, WCAG 1.4.11."""
    page = write_page("B", DESKTOP, theme, [placed(CONTACT)])
    edge = re.search(r"\.field input \{[^}]*border: 1px solid (#[0-9a-f]{6})", page)
    assert edge
    for ground in (theme.card, theme.ground, theme.band):
        dark, light = sorted((luminance(edge[1]), luminance(ground)))
        assert (light + 0.05) / (dark + 0.05) >= 3.0


def test_what_is_wrong_with_a_page_is_told_by_element() -> None:
    from dataclasses import replace

    made = placed(GALLERY.replace("A look inside", "麦 inside"))
    low = [box._replace(height=20.0) if place == 0 else box for place, box in enumerate(made.boxes)]
    findings = {finding["check"]: finding for finding in check_page([replace(made, boxes=tuple(low))])}
    assert findings["text_overflow"]["elements"] == ["s1-heading-1"]
    assert findings["text_overflow"]["value"] == 20.0
    assert findings["glyphs"]["elements"] == ["s1-heading-1"]
    assert findings["picture"]["severity"] == "warning"
    assert not passed(list(findings.values()))

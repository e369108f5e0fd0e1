"""Texts of other scripts: how long they are, and where their lines may break."""

from __future__ import annotations

import pytest

from nereid.layout.canvas import Canvas
from nereid.layout.content import needed_height, needed_width
from nereid.layout.element_list import read_elements
from nereid.layout.html import read_html
from nereid.layout.words import length_of, longest_word, words_of

CANVAS = Canvas.of(1280)


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("", 0),
        ("Warm bread", 10),
        ("Größe – über “alles”", 20),
        # https://github.com/cathrynlavery/diagram-design/issues/115, https://github.com/tt-a1i/archify/issues/14
        ("我来自北京，今天天气不错", 22),
        ("안녕하세요", 10),
        ("ab漢字", 6),
        # https://github.com/1jehuang/mermaid-rs-renderer/issues/91: one emoji of several characters
        ("\U0001f469\u200d\U0001f373", 2),
        ("\U0001f44d\U0001f3fd", 2),
        ("e\u0301" * 20, 20),
        ("a\u200b\u00adb", 2),
    ],
)
def test_a_text_is_as_long_as_it_is_wide(text: str, length: int) -> None:
    assert length_of(text) == length


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("two  words", ["two", " words"]),
        # https://github.com/eigenpal/docx-editor/pull/540, https://github.com/tangrams/tangram-es/issues/1074
        ("我来自北京，好", ["我", "来", "自", "北", "京，", "好"]),
        ("say「漢字」。ok", ["say", "「漢", "字」。", "ok"]),
        ("テスト です", ["テ", "ス", "ト", " で", "す"]),
        ("チャット", ["チャッ", "ト"]),
        ("สวัสดีชาวโลกยินดี", ["สวัสดีชาวโลก", "ยินดี"]),
        ("long\u200bword\u00adhere", ["long", "word", "here"]),
        ("\U0001f469\u200d\U0001f373\U0001f44d\U0001f3fd", ["\U0001f469\u200d\U0001f373", "\U0001f44d\U0001f3fd"]),
        ("مرحبا بالعالم", ["مرحبا", " بالعالم"]),
    ],
)
def test_lines_break_where_a_script_has_it(text: str, words: list[str]) -> None:
    assert ["".join(word) for word in words_of(text)] == words
    assert longest_word(text) == max(length_of(word.strip()) for word in words)


def test_a_chinese_section_fits_its_canvas_and_is_as_high_as_its_text() -> None:
    said = "我来自北京，今天天气不错。" * 20
    section = read_html(f"<section><h1>{said[:26]}</h1><p>{said}</p><p>{'bread ' * 43}</p></section>", CANVAS)
    heading, chinese, english = section.elements
    assert all(needed_width(element, CANVAS) < 300 for element in section.elements)
    assert needed_height(chinese, 600, CANVAS) > 1.5 * needed_height(english, 600, CANVAS)  # of as many letters
    listed = read_elements([{"class": "paragraph", "text": said}], CANVAS).elements[0]
    assert listed.characters == chinese.characters == length_of(said)
    assert heading.min_width < 100


def test_a_word_may_say_where_it_breaks() -> None:
    parts = ("a" * 20, "b" * 20)
    broken = read_html(f"<section><p>{'<wbr>'.join(parts)}</p></section>", CANVAS).elements[0]
    whole = read_html(f"<section><p>{''.join(parts)}</p></section>", CANVAS).elements[0]
    assert (broken.characters, 2 * broken.min_width) == (whole.characters, whole.min_width)


def test_html_may_begin_with_a_mark_of_bytes_order() -> None:
    """https://github.com/arnauddri/npm-html2js/issues/12, https://github.com/Lommix/bevy_hui/issues/18"""
    assert len(read_html("\ufeff<section><p>x</p></section>", CANVAS).elements) == 1


def test_of_an_attribute_that_is_there_twice_the_first_counts() -> None:
    assert read_html("<section><p id=a id=b>x</p></section>", CANVAS).elements[0].id == "a"

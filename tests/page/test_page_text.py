"""Widths and lines of text: what the shipped font says, and that its pieces have what they say."""

from __future__ import annotations

import io
import itertools

import pytest

from nereid.page.text import FOLDER, SPARE, UNKNOWN, Style, break_lines, clean, longest_word, shipped_font

BODY, TITLE = Style(16, 24, False), Style(40, 48, True)


def test_a_text_is_as_wide_as_its_glyphs_advances() -> None:
    from fontTools.ttLib import TTFont

    for piece in shipped_font().pieces:
        font = TTFont(io.BytesIO((FOLDER / piece.file).read_bytes()))
        cmap, units = font.getBestCmap(), font["head"].unitsPerEm
        assert set(cmap) == piece.characters
        for character in piece.characters:
            style = Style(units, units, piece.bold)
            assert shipped_font().width(chr(character), style) == pytest.approx(font["hmtx"][cmap[character]][0])
        assert not {"GPOS", "GSUB", "kern"} & set(font.keys())


def test_lines_break_at_spaces_and_are_never_wider_than_there_is_room() -> None:
    text = "Baked before you wake, sold until noon, and gone by two in the afternoon"
    for width in (90.0, 200.0, 333.0, 2000.0):
        lines = break_lines(text, width, BODY)
        assert " ".join(lines) == text
        assert all(shipped_font().width(line, BODY) <= width - SPARE for line in lines)
    assert break_lines(text, 2000, BODY) == [text]
    assert break_lines("", 100, BODY) == [""]


def test_each_line_takes_all_the_words_that_fit() -> None:
    lines = break_lines("one two three four five six seven eight nine ten", 120, BODY)
    font = shipped_font()
    for line, following in itertools.pairwise(lines):
        assert font.width(f"{line} {following.split()[0]}", BODY) > 120 - SPARE


def test_a_word_that_is_wider_than_its_line_is_cut() -> None:
    lines = break_lines("a " + "w" * 100 + " b", 100, BODY)
    assert "".join(lines).replace(" ", "") == "a" + "w" * 100 + "b"
    assert all(shipped_font().width(line, BODY) <= 100 for line in lines)
    assert break_lines("ww", 1, TITLE) == ["w", "w"]


def test_characters_that_the_font_lacks_are_told_and_reckoned_wide() -> None:
    assert shipped_font().lacks("Brot 麦 🍞 麦") == "麦🍞"
    assert shipped_font().width("麦", BODY) == UNKNOWN * 16
    assert longest_word("a bb ccc", BODY) == shipped_font().width("ccc", BODY)


def test_only_the_pieces_that_a_text_needs_are_named() -> None:
    def names(*texts: tuple[str, bool]) -> list[str]:
        return [piece.file for piece in shipped_font().pieces_for(texts)]

    assert names(("Bread & more", False)) == ["regular-latin.woff2"]
    assert names(("Bread", False), ("Хлеб", True)) == ["regular-latin.woff2", "bold-cyrillic.woff2"]
    assert names() == []


def test_unseen_characters_and_turned_directions_do_not_reach_a_page() -> None:
    assert clean(" a\t b\n\n c ") == "a b c"
    assert clean("safe\u202eevil\u200b\x00\x1b[31m\ufeff\ue000") == "safeevil[31m"
    assert clean("e\u0301") == "é"
    assert clean("\u2028x\u2029") == "x"


def test_joiners_stay_where_they_mean_something() -> None:
    # https://github.com/diegosouzapw/OmniRoute/issues/12186, https://github.com/guillaumemeyer/watermarks-remover/issues/27
    for kept in (
        "\u0645\u06cc\u200c\u0631\u0648\u0645",
        "\u0915\u094d\u200d\u0937",
        "\U0001f469\u200d\U0001f373",
        "\u06dd\u0661",
    ):
        assert clean(kept) == kept
    assert clean("a" + 4000 * "\u200d" + "b " + 60_000 * "\u200c\u200d") == "ab"
    assert clean("by\u200dpass \u200cA\u200d \u0645\u200d") == "bypass A \u0645"
    font = shipped_font()
    assert font.width("\U0001f469\u200d\U0001f373", BODY) == 2 * UNKNOWN * 16
    assert font.lacks("\U0001f469\u200d\U0001f373") == "\U0001f469\U0001f373"


def test_lines_of_ideographs_are_filled() -> None:
    # https://github.com/eigenpal/docx-editor/pull/540
    text = "我来自北京，今天天气不错。" * 3 + " bread 「你好」"
    lines = break_lines(text, 200, BODY)
    font = shipped_font()
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(font.width(line, BODY) <= 200 - SPARE for line in lines)
    assert all(font.width(line, BODY) > 200 - 3 * UNKNOWN * 16 for line in lines[:4])
    assert not any(line.startswith(("，", "。", "」")) for line in lines)
    assert longest_word(text, BODY) < 60

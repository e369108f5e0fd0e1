"""How wide text is in the font that is shipped with a page, and where its lines break; a browser draws the same.

The font is DejaVu Sans (free to use, change and ship: fonts/LICENSE), as matplotlib has it, cut into pieces by
`nereid_zoo.page.fonts`. Pages draw it without kerning, ligatures and hinting, so a text is as wide as its glyphs' advances.
"""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from nereid.layout.words import words_of

FOLDER = Path(__file__).parent / "fonts"
UNKNOWN = 1.4
"""Em of a character that the font lacks; a reader's machine draws it, in at most this width."""
SPARE = 0.5
"""CSS pixels that a line leaves free: browsers round each glyph's place to 1/64 px."""
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode's categories of what is no text: controls, also those that turn the direction of writing, and what is unassigned."""


_JOINERS = "\u200c\u200d"
_RUN_OF_JOINERS = re.compile(f"[{_JOINERS}]{{3,}}")
_LONE_JOINERS = re.compile(f"(?<![^\x00-\x7f])[{_JOINERS}]+|[{_JOINERS}]+(?![^\x00-\x7f])")
"""What joins letters of Persian and of India's scripts, and emoji, or keeps them apart; of no width, and no use elsewhere."""
_SEEN_FORMATS = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u08e2")
"""Signs of Arabic and Syriac around numbers, controls by their category (Unicode's Prepended_Concatenation_Mark)."""


class Style(NamedTuple):
    """A font size and a line height in CSS pixels, and the weight."""

    size: int
    line: int
    bold: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one weight: a WOFF2 file, and the characters that are in it."""

    bold: bool
    file: str
    characters: frozenset[int]

    @property
    def unicode_range(self) -> str:
        """As CSS has it."""
        return ",".join(f"U+{first:X}-{last:X}" if last > first else f"U+{first:X}" for first, last in runs(self.characters))

    def data_uri(self) -> str:
        return f"data:font/woff2;base64,{base64.b64encode((FOLDER / self.file).read_bytes()).decode()}"


@dataclass(frozen=True, slots=True)
class Font:
    """Advances in em by character of the regular and the bold weight, and the pieces that have them."""

    advances: Mapping[bool, Mapping[str, float]]
    pieces: tuple[Piece, ...]

    def width(self, text: str, style: Style) -> float:
        """Of one line, in CSS pixels."""
        known = self.advances[style.bold]
        return style.size * sum(known.get(character, UNKNOWN) for character in text if character not in _JOINERS)

    def lacks(self, text: str) -> str:
        """The characters that it has not, each once."""
        return "".join(
            dict.fromkeys(character for character in text if character not in self.advances[False] and character not in _JOINERS)
        )

    def pieces_for(self, texts: Iterable[tuple[str, bool]]) -> list[Piece]:
        """Those that texts of these weights (bold or not) need."""
        used: dict[bool, set[int]] = {False: set(), True: set()}
        for text, bold in texts:
            used[bold].update(map(ord, text))
        return [piece for piece in self.pieces if used[piece.bold] & piece.characters]


@cache
def shipped_font() -> Font:
    """Read once from the files beside this module."""
    metrics = json.loads((FOLDER / "metrics.json").read_text(encoding="utf-8"))
    advances = {
        weight == "bold": {
            chr(first + place): advance / metrics["units_per_em"]
            for first, run in metrics["advances"][weight]
            for place, advance in enumerate(run)
        }
        for weight in ("regular", "bold")
    }
    pieces = tuple(
        Piece(piece["weight"] == "bold", piece["file"], _characters(piece["characters"])) for piece in metrics["pieces"]
    )
    return Font(advances, pieces)


def _characters(ranges: Iterable[tuple[int, int]]) -> frozenset[int]:
    return frozenset(character for first, last in ranges for character in range(first, last + 1))


def clean(text: str) -> str:
    """Text as it may stand in a page: single spaces, nothing that is unseen or turns the direction of writing."""
    seen = "".join(
        character
        for character in text
        if unicodedata.category(character) not in _UNSEEN
        or character.isspace()
        or character in _JOINERS
        or character in _SEEN_FORMATS
    )
    return " ".join(unicodedata.normalize("NFC", _LONE_JOINERS.sub("", _RUN_OF_JOINERS.sub("", seen))).split())


def turns(texts: Iterable[str]) -> bool:
    """Whether some of it is written from right to left, as Hebrew and Arabic are."""
    return any(unicodedata.bidirectional(character) in ("R", "AL") for text in texts for character in text)


def break_lines(text: str, width: float, style: Style) -> list[str]:
    """Lines of at most `width` CSS pixels, broken where words end, and inside one that alone is too wide; one of no text."""
    font, room = shipped_font(), width - SPARE
    space = font.width(" ", style)
    lines, line, used = [], "", 0.0
    for lead, word in words_of(text):
        wide = font.width(word, style)
        before = space if lead else 0.0
        if line and used + before + wide <= room:
            line, used = f"{line}{lead}{word}", used + before + wide
            continue
        if line:
            lines.append(line)
        *full, word = _cut(word, room, style) if wide > room else [word]
        lines += full
        line, used = word, font.width(word, style)
    return [*lines, line]


def _cut(word: str, room: float, style: Style) -> list[str]:
    """A word in parts, each as wide as there is room, of one character at least."""
    font, parts, used = shipped_font(), [""], 0.0
    for character in word:
        wide = font.width(character, style)
        if parts[-1] and used + wide > room:
            parts.append("")
            used = 0.0
        parts[-1] += character
        used += wide
    return parts


def longest_word(text: str, style: Style) -> float:
    """CSS pixels of the widest word."""
    font = shipped_font()
    return max((font.width(word, style) for _, word in words_of(text)), default=0.0)


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers as first and last of what follows each other."""
    made: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if made and made[-1][1] == number - 1:
            made[-1] = (made[-1][0], number)
        else:
            made.append((number, number))
    return made

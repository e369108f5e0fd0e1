"""How long texts of any script are, and where their lines may break; knows no element and no font.

Lengths are in average characters, 0.55 em: a Chinese one is 1 em wide (Unicode Standard Annex 11, East Asian Width), marks over
others and what joins emoji have no width. Lines break at spaces, between ideographs but not before closing and after opening
punctuation, and where a text says so itself (a part of Unicode Standard Annex 14). Thai and its like have no spaces, and browsers
look their words up: here a word has ten characters.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator

from nereid.layout.content import CHARACTER, WORD

_MARKS = ("Mn", "Me", "Cf", "Cc")
_MODIFIERS = re.compile("[\U0001f3fb-\U0001f3ff]")
"""Tones of skin, which change the emoji before them."""
_JOINER = "\u200d"
_BREAKS = re.compile("[\u200b\u00ad]")
"""A space without width, and a hyphen that is seen only where a line ends."""
_WITHOUT_SPACES = re.compile("[\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf]")
"""Thai, Lao, Burmese, Khmer, Tai Tham."""
_NEVER_FIRST = frozenset("、。，．：；！？・ー々〻ゝゞヽヾぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶ」』】）］｝〉》〕〗〙…")
_NEVER_LAST = frozenset("「『【（［｛〈《〔〖〘")


def length_of(text: str) -> int:
    """In average characters, rounded up; of a text of Latin letters as many as it has."""
    if text.isascii():
        return len(text)
    kinds = [_kind(character, before) for character, before in zip(text, ("", *text), strict=False)]
    return kinds.count("narrow") + math.ceil(kinds.count("wide") / CHARACTER)


def _kind(character: str, before: str) -> str:
    """How wide one is behind another."""
    if before == _JOINER or unicodedata.category(character) in _MARKS or _MODIFIERS.match(character):
        return "none"
    return "wide" if _is_wide(character) else "narrow"


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def words_of(text: str) -> Iterator[tuple[str, str]]:
    """What stays on one line, each with what stands before it on the same line: a space, or nothing."""
    for place, run in enumerate(text.split()):
        lead = " " if place else ""
        for word in (run,) if run.isascii() else _parts(run):
            yield lead, word
            lead = ""


def _parts(run: str) -> Iterator[str]:
    for piece in filter(None, _BREAKS.split(run)):
        start, thai = 0, 0
        for at in range(1, len(piece)):
            before, here = piece[at - 1], piece[at]
            if unicodedata.category(here) in _MARKS or before == _JOINER or _MODIFIERS.match(here):
                continue
            thai = thai + 1 if _WITHOUT_SPACES.match(before) and _WITHOUT_SPACES.match(here) else 0
            ideographs = _is_wide(before) or _is_wide(here)
            if thai == WORD or (ideographs and here not in _NEVER_FIRST and before not in _NEVER_LAST):
                yield piece[start:at]
                start, thai = at, 0
        yield piece[start:]


def longest_word(text: str) -> int:
    """The length of the longest word, in average characters."""
    return max((length_of(word) for _, word in words_of(text)), default=0)

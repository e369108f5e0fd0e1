"""Training layouts: a random arrangement of a section, solved, and taken only if it passes every check."""

from __future__ import annotations

from random import Random

from nereid.layout.arrange import Arrangement, arrange
from nereid.layout.canvas import Breakpoint, Canvas, Density, Style
from nereid.layout.checks import check_layout
from nereid.layout.elements import Box, Section

TRIES = 20
"""Arrangements that are tried before a section counts as one that has none on this canvas."""
_INNER_GAPS = {Density.COMPACT: (8, 16), Density.NORMAL: (16,), Density.SPACIOUS: (16, 24)}
_SCALES = {Density.COMPACT: (8, 16), Density.NORMAL: (16, 24), Density.SPACIOUS: (24, 32)}


def sample_layout(section: Section, rng: Random) -> list[Box] | None:
    """Boxes in the section's order that pass every check, warnings included; None where no arrangement tried does."""
    for _ in range(TRIES):
        boxes = arrange(section, sample_arrangement(section.canvas, rng))
        if not check_layout(section, boxes):
            return boxes
    return None


def sample_arrangement(canvas: Canvas, rng: Random) -> Arrangement:
    """Random within the canvas' style and density."""
    narrow = canvas.breakpoint is Breakpoint.MOBILE
    small, large = _SCALES[canvas.density]
    style, columns = canvas.style, canvas.columns
    share = rng.choice((1 / 2, 2 / 3, 3 / 4, 1))
    intro = 0
    if not narrow and style is Style.SPLIT:
        intro = columns * rng.choice((4, 5, 6)) // 12
    if not narrow and style is Style.SIDEBAR:
        intro = max(2, columns * rng.choice((3, 4)) // 12)
    return Arrangement(
        top=rng.choice((small, large, 2 * large, 3 * large)),
        gap=rng.choice((small, large) if canvas.density is not Density.SPACIOUS else (small,)),
        section_gap=rng.choice((large, large + 8, 2 * large)),
        intro_columns=intro,
        text_columns=columns if narrow else max(1, round(columns * share)),
        media_columns=columns if narrow else max(1, round(columns * rng.choice((1 / 2, 2 / 3, 1)))),
        centered=style is Style.CENTERED,
        item_columns=_item_columns(canvas, rng),
        item_gap=rng.choice((small, large)),
        padding=rng.choice((24, 32) if style is Style.CARDS else (16, 24)),
        inner_gap=rng.choice(_INNER_GAPS[canvas.density]),
        media_beside=style in (Style.STACKED, Style.SIDEBAR) and rng.random() < 0.5,
        field_columns=1 if narrow else rng.choice((1, 2)),
        links_in_row=rng.random() < 0.7,
        wide_buttons=rng.random() < 0.4,
    )


def _item_columns(canvas: Canvas, rng: Random) -> int:
    if canvas.breakpoint is Breakpoint.MOBILE:
        return rng.choice((1, 1, 2)) if canvas.style in (Style.GRID, Style.CARDS) else 1
    wide = canvas.breakpoint is Breakpoint.DESKTOP
    return rng.choice(
        {
            Style.STACKED: (1,),
            Style.CENTERED: (2, 3) if wide else (1, 2),
            Style.GRID: (3, 4, 6) if wide else (2, 3),
            Style.CARDS: (2, 3) if wide else (1, 2),
            Style.SPLIT: (1, 2) if wide else (1,),
            Style.SIDEBAR: (2, 3) if wide else (1, 2),
        }[canvas.style]
    )

"""The rule-based layout: what a plain style sheet would do, the same every time; what is answered where no model draws."""

from __future__ import annotations

from nereid.layout.arrange import Arrangement, arrange
from nereid.layout.canvas import Breakpoint, Canvas, Density, Style
from nereid.layout.elements import Box, Section
from nereid.layout.repair import repair

_SCALE = {Density.COMPACT: 1, Density.NORMAL: 2, Density.SPACIOUS: 3}
_ITEMS = {Style.STACKED: 1, Style.CENTERED: 3, Style.GRID: 4, Style.CARDS: 3, Style.SPLIT: 2, Style.SIDEBAR: 3}


def flow_layout(section: Section) -> list[Box]:
    """One box for each element, in the section's order; fixed fields are kept, and what they are in the way of moves."""
    return repair(section, arrange(section, usual_arrangement(section.canvas))).boxes


def usual_arrangement(canvas: Canvas) -> Arrangement:
    """By style, density and width alone."""
    scale, columns, style = _SCALE[canvas.density], canvas.columns, canvas.style
    narrow = canvas.breakpoint is Breakpoint.MOBILE
    items = 1 if narrow else min(_ITEMS[style], 2 if canvas.breakpoint is Breakpoint.TABLET else 4)
    intro = {Style.SPLIT: columns // 2, Style.SIDEBAR: columns // 3}.get(style, 0)
    return Arrangement(
        top=24 * scale,
        gap=8 * scale,
        section_gap=16 * scale,
        intro_columns=0 if narrow else intro,
        text_columns=columns if narrow else max(1, columns * 2 // 3),
        media_columns=columns if narrow else max(1, columns * 2 // 3),
        centered=style is Style.CENTERED,
        item_columns=items,
        item_gap=16 if narrow else 8 + 8 * scale,
        padding=24 if style is Style.CARDS else 16,
        field_columns=1 if narrow or style is Style.STACKED else 2,
    )

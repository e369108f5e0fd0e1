"""Boxes for a section by an arrangement: every element's place follows from what is before it, in one pass.

What holds between boxes are difference constraints (beside, below, inside, with a gap) whose graph has no cycle; a pass in
reading order solves them. All edges are multiples of 8 px. Knows nothing of how an arrangement is chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from nereid.layout.canvas import UNIT
from nereid.layout.content import needed_height, needed_width
from nereid.layout.elements import CONTAINERS, HEADINGS, TEXTS, Box, ElementClass, Section

SLACK_SHARE, SLACK = 0.96, 6.0
"""Text gets the height that it would need in 96% of its width, and 6 px beyond: what is drawn near a box still holds its text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """How a section is arranged. Gaps and paddings are CSS pixels and multiples of 8; columns are the canvas grid's.

    `intro_columns` is the width of the heading, its text and buttons beside the rest, 0 where the rest is below; `text_columns`
    and `media_columns` bound texts, and forms and images, that stand alone; `item_columns` and `field_columns` are how many
    cards or figures, and fields, stand side by side.
    """

    top: int = 48
    gap: int = 16
    section_gap: int = 32
    intro_columns: int = 0
    text_columns: int = 12
    media_columns: int = 12
    centered: bool = False
    item_columns: int = 1
    item_gap: int = 24
    padding: int = 16
    inner_gap: int = 8
    media_beside: bool = False
    """In cards: the image left of the rest."""
    field_columns: int = 1
    links_in_row: bool = True
    wide_buttons: bool = False
    """In cards and forms: buttons as wide as what is above them."""


class _Span(NamedTuple):
    x: int
    width: int


def arrange(section: Section, how: Arrangement) -> list[Box]:
    """One box for each element, in the section's order. A canvas too narrow for a label or an image breaks the minimum size."""
    return _Arranger(section, how).canvas()


def round_up(value: float) -> int:
    """To the next multiple of 8."""
    return math.ceil(value / UNIT) * UNIT


def round_down(value: float) -> int:
    return int(value // UNIT) * UNIT


class _Arranger:
    def __init__(self, section: Section, how: Arrangement) -> None:
        self.section, self.how = section, how
        self.boxes: list[Box] = [Box(0, 0, 0, 0)] * len(section)

    def canvas(self) -> list[Box]:
        grid, how = self.section.canvas.grid, self.how
        blocks = self.blocks(self.section.children[-1])
        intro = 0
        while intro < len(blocks) and self.is_intro(blocks[intro]):
            intro += 1
        beside = how.intro_columns and self.enough(tuple(place for block in blocks[:intro] for place in block), how.intro_columns)
        if 0 < intro < len(blocks) and 0 < beside <= 2 * grid.count // 3:
            left = _Span(grid.margin, grid.span(beside))
            self.stack(blocks[:intro], left, how.top, how.gap, centered=False)
            self.region(blocks[intro:], beside, how.top)
        else:
            self.region(blocks, 0, how.top)
        return self.boxes

    def region(self, blocks: list[tuple[int, ...]], first: int, y: int) -> None:
        """Blocks below each other in the grid's columns from `first` on."""
        grid, how = self.section.canvas.grid, self.how
        free = grid.count - first
        for number, block in enumerate(blocks):
            kind = self.kind(block)
            if number:
                intro = self.is_intro(block) and self.is_intro(blocks[number - 1])
                y += how.gap if intro else how.section_gap
            if self.repeats(block):
                y = self.item_grid(block, first, free, y)
                continue
            wanted = how.text_columns if kind in TEXTS or kind in HEADINGS else how.media_columns
            taken = min(wanted, free) if kind is not ElementClass.BUTTON else free
            taken = self.enough(block, taken, free)
            before = 0
            if how.centered:
                taken = min(taken + (free - taken) % 2, free)
                before = (free - taken) // 2
            y = self.block(block, _Span(grid.start(first + before), grid.span(taken)), y, centered=how.centered)

    def enough(self, block: tuple[int, ...], taken: int, free: int | None = None) -> int:
        """More columns, where the block's own least width needs them."""
        grid, elements = self.section.canvas.grid, self.section.elements
        free = grid.count if free is None else free
        need = max((needed_width(elements[place], self.section.canvas) for place in block), default=0.0)
        if block and self.kind(block) in CONTAINERS:
            need = max(need, 240.0)
        while taken < free and grid.span(taken) * SLACK_SHARE < need + SLACK:
            taken += 1
        return taken

    # --- blocks: what stands together among siblings ---

    def blocks(self, group: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Runs of buttons, of links, of fields, and of cards or figures; every other element is alone."""
        made: list[list[int]] = []
        for place in group:
            kind = self.section.elements[place].kind
            joins = kind in _RUNS and made and self.section.elements[made[-1][0]].kind is kind
            made[-1].append(place) if joins else made.append([place])
        return [tuple(block) for block in made]

    def kind(self, block: tuple[int, ...]) -> ElementClass:
        return self.section.elements[block[0]].kind

    def repeats(self, block: tuple[int, ...]) -> bool:
        return len(block) > 1 and self.kind(block) in CONTAINERS

    def is_intro(self, block: tuple[int, ...]) -> bool:
        kind = self.kind(block)
        return kind in HEADINGS or kind in TEXTS or kind is ElementClass.BUTTON

    def item_grid(self, block: tuple[int, ...], first: int, free: int, y: int) -> int:
        """Cards or figures in rows of equal height on the grid's columns."""
        grid, how = self.section.canvas.grid, self.how
        count = max(1, min(how.item_columns, len(block), free))
        each = free // count
        before = (free - each * count) // 2 if how.centered and (free - each * count) % 2 == 0 else 0
        starts = [grid.start(first + before + each * number) for number in range(count)]
        return self.rows(block, [_Span(x, grid.span(each)) for x in starts], y, how.item_gap)

    def rows(self, block: tuple[int, ...], spans: list[_Span], y: int, gap: int) -> int:
        for at in range(0, len(block), len(spans)):
            row = block[at : at + len(spans)]
            y += gap if at else 0
            bottoms = [self.block((place,), span, y, centered=False) for place, span in zip(row, spans, strict=False)]
            for place in row:
                self.boxes[place] = self.boxes[place]._replace(height=max(bottoms) - y)
            y = max(bottoms)
        return y

    def block(self, block: tuple[int, ...], span: _Span, y: int, *, centered: bool) -> int:
        """Place a block in a span; returns its bottom."""
        kind = self.kind(block)
        if kind is ElementClass.BUTTON or (kind is ElementClass.LINK and self.how.links_in_row):
            return self.flow(block, span, y, centered)
        if kind is ElementClass.FIELD and self.how.field_columns > 1 and len(block) > 1:
            return self.rows(block, self.split(span, self.how.field_columns, self.how.gap), y, self.how.gap)
        if self.repeats(block):
            return self.rows(block, self.split(span, self.how.item_columns, self.how.item_gap), y, self.how.item_gap)
        for number, place in enumerate(block):
            y += self.how.inner_gap if number else 0
            y = self.single(place, span, y)
        return y

    def split(self, span: _Span, count: int, gap: int) -> list[_Span]:
        while count > 1 and (span.width - (count - 1) * gap) / count < 160:
            count -= 1
        width = round_down((span.width - (count - 1) * gap) / count)
        return [_Span(span.x + number * (width + gap), width) for number in range(count)]

    def flow(self, block: tuple[int, ...], span: _Span, y: int, centered: bool) -> int:
        """Labels side by side as long as there is room, then in the next row; 48 px high."""
        gap = self.how.gap
        rows: list[list[tuple[int, int]]] = [[]]
        used = 0
        for place in block:
            width = min(round_up(needed_width(self.section.elements[place], self.section.canvas) + 2 * UNIT), span.width)
            if rows[-1] and used + gap + width > span.width:
                rows.append([])
            used = (used + gap if rows[-1] else 0) + width
            rows[-1].append((place, width))
        for number, row in enumerate(rows):
            y += gap if number else 0
            x = span.x
            if centered:
                free = span.width - sum(width for _, width in row) - gap * (len(row) - 1)
                if free % (2 * UNIT) and len(row) == 1:  # so that its centre is the span's and its edges are multiples of 8
                    row, free = [(row[0][0], row[0][1] + UNIT)], free - UNIT
                x += round_down(free / 2)
            for place, width in row:
                self.boxes[place] = Box(x, y, width, 48)
                x += width + gap
            y += 48
        return y

    def stack(self, blocks: list[tuple[int, ...]], span: _Span, y: int, gap: int, *, centered: bool) -> int:
        for number, block in enumerate(blocks):
            y += gap if number else 0
            y = self.block(block, span, y, centered=centered)
        return y

    # --- single elements ---

    def single(self, place: int, span: _Span, y: int) -> int:
        element = self.section.elements[place]
        if element.kind in CONTAINERS:
            return self.container(place, span, y)
        width = span.width
        if element.kind in _LABELS:
            own = round_up(needed_width(element, self.section.canvas) + 2 * UNIT)
            width = width if self.how.wide_buttons else min(own, width)
            height = 48
        elif element.ratio is not None:
            height = max(UNIT, UNIT * round(width / element.ratio / UNIT))
        elif element.kind is ElementClass.IMAGE:
            height = UNIT * round(width * 0.625 / UNIT)
        elif element.kind is ElementClass.FIELD:
            height = 72
        else:
            height = round_up(needed_height(element, SLACK_SHARE * width, self.section.canvas) + SLACK)
        height = max(height, round_up(element.min_height + SLACK) if element.min_height else 0)
        self.boxes[place] = Box(span.x, y, width, height)
        return y + height

    def container(self, place: int, span: _Span, y: int) -> int:
        """Padding, its children, padding; a card's image may stand left of the rest."""
        kind = self.section.elements[place].kind
        group = self.section.children[place]
        padding = self.how.padding if kind in (ElementClass.CARD, ElementClass.FORM) else 2 * UNIT
        inner = _Span(span.x + padding, span.width - 2 * padding)
        blocks = self.blocks(group)
        bottom = y + padding + (0 if blocks else UNIT)
        beside = self.how.media_beside and len(blocks) > 1 and self.kind(blocks[0]) is ElementClass.IMAGE and inner.width >= 320
        if beside:
            left, right = _Span(inner.x, round_down(0.4 * inner.width)), round_down(0.4 * inner.width) + 16
            media = self.block(blocks[0], left, y + padding, centered=False)
            rest = _Span(inner.x + right, inner.width - right)
            bottom = max(media, self.stack(blocks[1:], rest, y + padding, self.how.inner_gap, centered=False))
        elif blocks:
            gap = self.how.gap if kind in (ElementClass.FORM, ElementClass.GROUP) else self.how.inner_gap
            bottom = self.stack(blocks, inner, y + padding, gap, centered=False)
        self.boxes[place] = Box(span.x, y, span.width, bottom + padding - y)
        return bottom + padding


_RUNS = frozenset({ElementClass.BUTTON, ElementClass.LINK, ElementClass.FIELD, *CONTAINERS})
_LABELS = frozenset({ElementClass.BUTTON, ElementClass.LINK})

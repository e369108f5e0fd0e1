"""Checks of boxes against the reading order: no sibling before an earlier one, headings above their text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from nereid.layout.checks.finding import TOLERANCE, Boxes, Check, Finding, overlap, sibling_pairs
from nereid.layout.elements import HEADINGS, TEXTS, Box, Section


def backwards(first: Box, second: Box) -> float:
    """By how many CSS pixels `second`, which is to be read later, stands before `first`; 0 where it does not.

    Above it where they share columns; left of it where they share rows; above and left of it where they share neither. A later
    one further up in a column to the right is read later, as in a newspaper.
    """
    across, down = overlap(first, second)
    above, left = first.y - second.y - second.height, first.x - second.x - second.width
    if across > TOLERANCE and down > TOLERANCE:  # overlapping: what is wrong is another check's
        return 0.0
    if across > TOLERANCE:
        return max(above + TOLERANCE, 0.0) if first.y > second.y else 0.0
    if down > TOLERANCE:
        return max(left + TOLERANCE, 0.0) if first.x > second.x else 0.0
    return max(min(above, left) + TOLERANCE, 0.0) if first.y > second.y and first.x > second.x else 0.0


def reading_order(section: Section, boxes: Boxes) -> Iterator[Finding]:
    """No pair of siblings stands in the wrong order (`backwards`); value is by how much."""
    for first, second in sibling_pairs(section):
        if (wrong := backwards(boxes[first], boxes[second])) > 0:
            yield Finding(Check.READING_ORDER, (section.elements[first].id, section.elements[second].id), wrong, 0.0)


def kendall_tau(section: Section, boxes: Boxes) -> float:
    """1 - 2 x inverted pairs / pairs of siblings (Kendall, 1938): 1 where all are read in order, -1 where none are."""
    pairs = list(sibling_pairs(section))
    wrong = sum(backwards(boxes[first], boxes[second]) > 0 for first, second in pairs)
    return 1 - 2 * wrong / len(pairs) if pairs else 1.0


def heading_above(section: Section, boxes: Boxes) -> Iterator[Finding]:
    """heading bottom <= top of the text that follows it among its siblings; value is by how much the text is above that."""
    for group in section.children:
        for first, second in itertools.pairwise(group):
            heading, text = section.elements[first], section.elements[second]
            if heading.kind in HEADINGS and text.kind in TEXTS:
                wrong = boxes[first].bottom - boxes[second].y
                if wrong > TOLERANCE:
                    yield Finding(Check.HEADING_ABOVE, (heading.id, text.id), wrong, 0.0)

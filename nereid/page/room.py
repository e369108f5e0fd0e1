"""Room for text that is longer, as it is drawn, than a layout has reckoned with; all else moves down and nothing else changes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nereid.layout.canvas import UNIT
from nereid.layout.elements import CONTAINERS, Box, Section
from nereid.page.content import Part, room_for

_NEAR = 0.5
"""CSS pixels within which edges are one."""


def make_room(section: Section, parts: Sequence[Part], boxes: Sequence[Box]) -> tuple[list[Box], dict[str, float]]:
    """Boxes in which every text fits, and by how many CSS pixels an element has grown for that.

    A box that is too low grows by a multiple of 8 px. Space of that height is inserted along a line at its foot: what begins
    below the line moves down, what holds others and reaches across grows. So nothing comes to overlap that did not before.
    """
    made, grown = list(boxes), {}
    for place in sorted(range(len(parts)), key=lambda place: boxes[place].y):
        lack = room_for(parts[place], made[place].width, section, place) - made[place].height
        if parts[place].kind in CONTAINERS or lack <= 1e-6:
            continue
        more = float(UNIT * math.ceil(lack / UNIT))
        grown[parts[place].id] = more
        made = _inserted(section, made, place, more)
    return made, grown


def _inserted(section: Section, boxes: Sequence[Box], place: int, more: float) -> list[Box]:
    line = boxes[place].bottom - _NEAR
    made = []
    for other, box in enumerate(boxes):
        if other == place:
            box = box._replace(height=box.height + more)
        elif box.y >= line:
            box = box._replace(y=box.y + more)
        elif section.elements[other].kind in CONTAINERS and box.bottom > line:
            box = box._replace(height=box.height + more)
        made.append(box)
    return made

"""`nereid calibrate-layout --adaptive`: which steps, and which width, sections deserve by their complexity.

Sections are drawn with each number of steps by the whole transformer and, where a model has slices, with dynamic width. Each
class of complexity is given the quickest way that costs it next to no layouts that pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from nereid.layout.complexity import classes_of, complexity
from nereid.layout.elements import Section
from nereid_export.kept_figures import KeptFigures
from nereid_export.layout_drawing import LayoutDrawer
from nereid_export.layout_samples import Passed, passed_each, passed_shares
from nereid_protocol.layout_fields import WIDTHS

ADAPTIVE_BOUND = 1.0
"""Points of a class's layouts that pass, before or after repair, that a quicker way may cost it."""
CLASSES = 4
"""Of sections, by their complexity."""
FULL, DYNAMIC = WIDTHS


class Way(NamedTuple):
    """A number of steps, and the width that computes them."""

    steps: int
    width: str = FULL


def adaptive_steps(
    drawer: LayoutDrawer,
    sections: Sequence[Section],
    asked: Sequence[int],
    figures: KeptFigures,
    told: Callable[[str], None],
) -> dict[str, Any]:
    """Of each class of sections, the fewest steps with which as many layouts pass as with the model's own number of them, before
    and after repair; the same with dynamic width, and which of both takes less time."""
    scheduler, most = drawer.model.facts.scheduler, drawer.model.limits.default_steps
    counts = (*sorted({count for count in asked if count < most}), most)
    widths = (FULL,) if drawer.model.facts.widths is None else (FULL, DYNAMIC)
    measured = {
        way: figures.get(f"adaptive, {way.steps} steps, {way.width}", partial(_measured, drawer, sections, way, told))
        for way in (Way(count, width) for width in widths for count in counts)
    }
    seconds = {way: taken for way, (taken, _) in measured.items()}
    classes, low = [], -math.inf
    for bound in classes_of(sections, CLASSES):
        places = [place for place, its in enumerate(sections) if low < complexity(its) <= bound]
        shares = {way: passed_shares([its[place] for place in places]) for way, (_, its) in measured.items()}
        classes.append(
            {"up_to": None if math.isinf(bound) else bound, "briefs": len(places), **_chosen(shares, seconds, Way(most))}
        )
        low = bound
    return {"scheduler": str(scheduler), "whole": most, "classes": classes}


def _chosen(shares: Mapping[Way, tuple[float, float]], seconds: Mapping[Way, float], whole: Way) -> dict[str, Any]:
    """Of one class: fewest steps of either width that cost it nothing, and the width that takes less time."""
    good = [
        way for way in shares if all(most - own <= ADAPTIVE_BOUND for most, own in zip(shares[whole], shares[way], strict=True))
    ]
    fewest = {width: min((way for way in good if way.width == width), default=None) for width in (FULL, DYNAMIC)}
    full, dynamic = fewest[FULL] or whole, fewest[DYNAMIC]
    chosen = full if dynamic is None or seconds[full] <= seconds[dynamic] else dynamic
    made: dict[str, Any] = {"steps": full.steps}
    if any(way.width == DYNAMIC for way in shares):
        made |= {"dynamic_steps": None if dynamic is None else dynamic.steps, "width": chosen.width}
    return {
        **made,
        **dict(zip(("passed_before", "passed"), shares[chosen], strict=True)),
        **dict(zip(("passed_before_whole", "passed_whole"), shares[whole], strict=True)),
    }


def _measured(
    drawer: LayoutDrawer, sections: Sequence[Section], way: Way, told: Callable[[str], None]
) -> tuple[float, Sequence[Passed]]:
    """Seconds that all sections take, and whether each one's layout passes, before and after repair."""
    told(f"{way.steps} steps, {way.width}")
    table = drawer.table(drawer.model.facts.scheduler, way.steps)
    widths = drawer.model.facts.widths if way.width == DYNAMIC else None
    began = time.monotonic()
    drawn = drawer.draw(sections, list(range(len(sections))), table, widths=widths)
    return time.monotonic() - began, passed_each(sections, drawn)

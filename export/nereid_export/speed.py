"""How long an engine's calls take; chooses nothing."""

from __future__ import annotations

from collections.abc import Sequence

from nereid_export.components import Component, sizes_at
from nereid_export.engines.base import Target
from nereid_export.engines.check import Run, random_inputs
from nereid_export.timing import median_milliseconds

_SECONDS = 1.0
_RUNS = 9
_LONG_SECONDS = 3.0
"""A call that takes longer is measured once: its first and second run differ by little."""
_LONGEST_SECONDS = 10.0
"""Calls of more rows than one that takes longer are not made."""


def usual_rows(component: Component) -> int:
    """Of a call for one picture, guided."""
    return 2 if component.denoises else 1


def milliseconds(component: Component, run: Run, target: Target, rows: int) -> float:
    """Of a call at the usual size: the median of a few, of which the first does not count; a second's worth, or three."""
    sizes = sizes_at(component, target.default_side, target.scale)
    inputs = {name: value.numpy() for name, value in random_inputs(component, rows, sizes, 1).items()}
    names = [spec.name for spec in component.outputs]
    return round(median_milliseconds(lambda: run(inputs, names), _SECONDS, _RUNS, once_above=_LONG_SECONDS), 3)


def milliseconds_by_rows(component: Component, run: Run, target: Target, expected: Sequence[int]) -> dict[int, float]:
    """The same for one row, the usual and the expected numbers of rows; the larger ones up to one that takes long."""
    made: dict[int, float] = {}
    always = max(usual_rows(component), min(expected))
    for count in sorted({1, usual_rows(component), *expected}):
        if count > always and max(made.values()) > 1000 * _LONGEST_SECONDS:
            break
        made[count] = milliseconds(component, run, target, count)
    return made

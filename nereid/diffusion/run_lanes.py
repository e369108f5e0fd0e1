"""Which runs can share a call: by their shape, and by the engine that is next; and whose turn a lane has by its priority."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import lru_cache

from nereid.diffusion.loop_task import LoopTask
from nereid.diffusion.state import ImageRun
from nereid.flow.tickets import aged

Lane = tuple[object, ...]
Member = tuple[LoopTask, ImageRun]


def shape_of(run: ImageRun) -> Lane:
    """What can share calls; a suspect has a lane of its own."""
    return (run.shape, id(run) if run.deaths else 0)


def lane_of(run: ImageRun) -> Lane:
    """What can share the next call."""
    return (*shape_of(run), run.variant)


def key_of(lane: Lane) -> str:
    """A lane's name in the table of costs."""
    shape, _, variant = lane
    return cost_key(variant, shape)


@lru_cache(maxsize=4096)  # asked several times a step, and long to write
def cost_key(variant: object, shape: object) -> str:
    """The same of an engine and a shape."""
    return f"{variant} {shape}"


def priority_of(task: LoopTask, run: ImageRun) -> int:
    """Better, the longer it has waited."""
    return aged(task.request.priority, time.monotonic() - run.waits_since)


def with_priority(lanes: Mapping[Lane, Mapping[Lane, list[Member]]], best: int) -> dict[Lane, dict[Lane, list[Member]]]:
    """The lanes in which somebody has the best priority, by shape."""
    found: dict[Lane, dict[Lane, list[Member]]] = {}
    for shape, its in lanes.items():
        for lane, members in its.items():
            if any(priority_of(*member) <= best for member in members):
                found.setdefault(shape, {})[lane] = members
    return found


def earliest_due(lanes: Mapping[Lane, Mapping[Lane, list[Member]]], best: int) -> tuple[Lane, Lane]:
    """Shape and lane of the run that is due first: at its goal, or once it has taken `latency_target` times as long as alone.

    Only those of priority `best` count: another one would lend its place to mates that are due later than others of theirs.

    Where lanes take turns, all of them end late; so the one that came first ends first, a short run goes before a long one that
    came shortly before it, and as what is due stays due, none starves (EDF; Liu and Layland, 1973).
    """
    return min(
        ((shape, lane) for shape, its in lanes.items() for lane in its),
        key=lambda place: min(_due(*member) for member in lanes[place[0]][place[1]] if priority_of(*member) <= best),
    )


def _due(task: LoopTask, run: ImageRun) -> float:
    """Where nobody knows yet how long it takes alone, it goes by how long it has waited."""
    return run.waits_since if math.isinf(task.due) else task.due

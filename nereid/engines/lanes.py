"""Which lane's call comes next, and how many rows it takes: pure policy over costs and due times; knows no images, no engines.

A lane is what can share a call (shape, engine variant). Lanes share the engine's time fairly: start-time fair queueing (Goyal
et al., 1996), so that a lane of small steps waits for one large step and then has its share back. Within a lane the number of
rows is the one that lets most rows end in time; where all or none do, the one that ends soonest, which is the largest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True, eq=False)
class FairClock(Generic[K]):
    """Virtual time: who has had least of the engine goes next; a lane that was away does not save its time up."""

    now: float = 0.0
    _finished: dict[K, float] = field(default_factory=dict)

    def next(self, lanes: Iterable[K]) -> K:
        """The lane whose turn it is; the first of those that are level."""
        return min(lanes, key=lambda lane: max(self._finished.get(lane, 0.0), self.now))

    def charge(self, lane: K, seconds: float) -> None:
        """The lane has begun a call of so many seconds."""
        start = max(self._finished.get(lane, 0.0), self.now)
        self.now = start
        self._finished[lane] = start + seconds

    def forget(self, kept: Iterable[K]) -> None:
        """Lanes that nobody is in any more."""
        lanes = set(kept)
        self._finished = {lane: time for lane, time in self._finished.items() if lane in lanes or time > self.now}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row that wants a step: how many it has left, engine rows of one, and when (on the caller's clock) it is due."""

    steps_left: int
    rows: int
    due: float = math.inf
    passed_over: int = 0

    @property
    def urgency(self) -> float:
        """Lower goes first: fewest steps left, less a step for every four calls it was passed over, so that none starves."""
        return self.steps_left - self.passed_over / 4


def order(candidates: Sequence[Candidate]) -> list[int]:
    """Indices, the most urgent first."""
    return sorted(range(len(candidates)), key=lambda index: candidates[index].urgency)


def rows_to_take(
    candidates: Sequence[Candidate], behind: Sequence[Candidate], most: int, seconds: Callable[[int], float], now: float
) -> int:
    """How many candidates (in order of urgency) the next call should take, at most `most` engine rows.

    `behind` wait to join and are late, too, if those before them dawdle. `seconds` says what a call of so many engine rows
    costs; NaN where that is not known yet, and then all go that fit.
    """
    fitting = _fitting(candidates, most)
    if math.isnan(seconds(1)) or fitting <= 1:
        return fitting
    best, best_score = fitting, (-1, -math.inf)
    for count in _sizes(fitting):
        score = _foresee([*candidates, *behind], count, seconds, now)
        if score > best_score:
            best, best_score = count, score
    return best


def _fitting(candidates: Sequence[Candidate], most: int) -> int:
    rows = 0
    for count, candidate in enumerate(candidates):
        rows += candidate.rows
        if rows > most:
            return max(count, 1)
    return len(candidates)


def _sizes(fitting: int) -> list[int]:
    """The largest first: of equally good ones it wins."""
    sizes = {fitting, *(2**power for power in range(fitting.bit_length()))}
    return sorted((size for size in sizes if size <= fitting), reverse=True)


def _foresee(candidates: Sequence[Candidate], count: int, seconds: Callable[[int], float], now: float) -> tuple[int, float]:
    """If calls took `count` rows, group after group: how many would end in time, and (negated) when the last would end."""
    clock, in_time = now, 0
    for start in range(0, len(candidates), count):
        group = candidates[start : start + count]
        step = seconds(sum(candidate.rows for candidate in group))
        in_time += sum(clock + candidate.steps_left * step <= candidate.due for candidate in group)
        clock += max(candidate.steps_left for candidate in group) * step
    return in_time, -clock

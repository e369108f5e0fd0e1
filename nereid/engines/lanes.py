"""Which lane's call comes next, and how many rows it takes: pure policy over costs and due times; knows no images, no engines.

A lane is what can share a call (shape, engine variant). Lanes share the engine's time fairly: start-time fair queueing (Goyal
et al., 1996), so that a lane of small steps waits for one large step and then has its share back. Within a lane the number of
rows is the one that lets most rows end in time, among those that waste little; where all or none do, the one that ends soonest.
Rows whose goal is lost go behind the others: with more work than the engine can do, all goals would be missed else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_BETTER = 0.97
"""Costs are measured, not exact: a smaller call is preferred only where all would end clearly sooner."""

_WASTE = 0.1
"""What a row may cost more in a smaller call than in the largest: where rows are cheaper together, small calls would save those
who are inside at the cost of all who come. Simulated over loads and cost lines (Poisson arrivals of 10, 20 and 30 steps): with
a third of it calls have room for those who are late, and far fewer are in time; with more, fewer end in a second."""

PATIENCE = 128
"""Calls that a late row may be passed over before it goes with those that can end in time: none starves."""

_SHARED = 0.1
"""By how much others may make a call longer that has rows of a better priority."""

_LOOK_AGAIN = 16
"""After so many smaller calls of a lane one takes all that fit: the cost of a size that is never called is never learned, and one
that was thought dear for a chance delay would be avoided for ever."""


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

    steps_left: float
    rows: int
    due: float = math.inf
    passed_over: int = 0
    priority: int = 0
    pressing: bool = False
    """Whether it misses a goal that it was given unless it is taken now."""
    late: bool = False
    """Whether its goal is lost, so that it goes behind the others."""

    @property
    def urgency(self) -> float:
        """Lower goes first: fewest steps left, less a step for every four calls it was passed over, so that none starves."""
        return self.steps_left - self.passed_over / 4


def is_late(left: float, steps: float, step: float, passed_over: int) -> bool:
    """Whether so many steps of `step` seconds, NaN where not known, take longer than the `left` seconds even alone."""
    return passed_over < PATIENCE and steps * step > left


def order(candidates: Sequence[Candidate]) -> list[int]:
    """Indices: the best priority first; of equal ones those that are not late, those that are pressing, and the most urgent."""

    def turn(index: int) -> tuple[int, bool, bool, float]:
        candidate = candidates[index]
        return candidate.priority, candidate.late, not candidate.pressing, candidate.urgency

    return sorted(range(len(candidates)), key=turn)


def rows_for_the_best(ranked: Sequence[Candidate], most: int, seconds: Callable[[int], float]) -> int:
    """Engine rows of a call that those of the best priority share with others: no more than leave it about as short.

    `ranked` by `order`. As many as `most` where there are no others, or costs are not known.
    """
    best = sum(candidate.rows for candidate in ranked if candidate.priority == ranked[0].priority)
    if best == sum(candidate.rows for candidate in ranked) or best >= most or math.isnan(seconds(best)):
        return most
    longest = (1 + _SHARED) * seconds(best)
    return max((rows for rows in range(best, most + 1) if seconds(rows) <= longest), default=best)


def rows_to_take(
    candidates: Sequence[Candidate], behind: Sequence[Candidate], most: int, seconds: Callable[[int], float], now: float
) -> int:
    """How many candidates (in order of urgency) the next call should take, at most `most` engine rows.

    `behind` wait to join and are late, too, if those before them dawdle. `seconds` says what a call of so many engine rows
    costs; NaN where that is not known yet of the smallest or the largest that is possible, and then all go that fit.
    """
    fitting = _fitting(candidates, most)
    if fitting <= 1 or any(math.isnan(_seconds_per_row(candidates[:count], seconds)) for count in (1, fitting)):
        return fitting
    everybody = [*candidates, *behind]
    thrifty = (1 + _WASTE) * _seconds_per_row(candidates[:fitting], seconds)
    best, most_in_time, soonest = fitting, -1, math.inf
    for count in _sizes(fitting, sum(not candidate.late for candidate in candidates[:fitting])):
        if _seconds_per_row(candidates[:count], seconds) > thrifty:
            break
        in_time, end = _foresee(everybody, count, seconds, now)
        if in_time > most_in_time or (in_time == most_in_time and end - now < _BETTER * (soonest - now)):
            best, most_in_time, soonest = count, in_time, end
    return best


@dataclass(slots=True, eq=False)
class CallSizes(Generic[K]):
    """`rows_to_take` for lanes whose costs are learned from the very calls that it decides on.

    Where nothing is known of what many cost, a call takes one, and then twice as many as the largest before: everybody else
    waits for it, however long it takes.
    """

    _smaller: dict[K, int] = field(default_factory=dict)
    _largest: dict[K, int] = field(default_factory=dict)

    def take(
        self,
        lane: K,
        candidates: Sequence[Candidate],
        behind: Sequence[Candidate],
        most: int,
        seconds: Callable[[int], float],
        now: float,
    ) -> int:
        """As `rows_to_take`, but now and then all that fit."""
        fitting, smaller = _fitting(candidates, most), self._smaller.pop(lane, 0)
        if smaller >= _LOOK_AGAIN:
            return fitting
        count = rows_to_take(candidates, behind, most, seconds, now)
        if math.isnan(_seconds_per_row(candidates[:count], seconds)):
            count = min(count, max(2 * self._largest.get(lane, 0), 1))
        self._largest[lane] = max(self._largest.get(lane, 0), count)
        if count < fitting:
            self._smaller[lane] = smaller + 1
        return count

    def forget(self, kept: Iterable[K]) -> None:
        """Lanes that nobody is in any more."""
        lanes = set(kept)
        self._smaller = {lane: count for lane, count in self._smaller.items() if lane in lanes}
        self._largest = {lane: count for lane, count in self._largest.items() if lane in lanes}


def _seconds_per_row(candidates: Sequence[Candidate], seconds: Callable[[int], float]) -> float:
    rows = sum(candidate.rows for candidate in candidates)
    return seconds(rows) / rows


def _fitting(candidates: Sequence[Candidate], most: int) -> int:
    rows = 0
    for count, candidate in enumerate(candidates):
        rows += candidate.rows
        if rows > most:
            return max(count, 1)
    return len(candidates)


def _sizes(fitting: int, in_time: int) -> list[int]:
    """The largest first: of equally good ones it wins. All, those that are not late, and powers of two."""
    sizes = {fitting, in_time, *(2**power for power in range(fitting.bit_length()))}
    return sorted((size for size in sizes if 1 <= size <= fitting), reverse=True)


def _foresee(candidates: Sequence[Candidate], count: int, seconds: Callable[[int], float], now: float) -> tuple[int, float]:
    """If calls took `count` rows, group after group: how many would end in time, and when the last would end."""
    clock, in_time = now, 0
    for start in range(0, len(candidates), count):
        group = candidates[start : start + count]
        step = seconds(sum(candidate.rows for candidate in group))
        in_time += sum(clock + candidate.steps_left * step <= candidate.due for candidate in group)
        clock += max(candidate.steps_left for candidate in group) * step
    return in_time, clock

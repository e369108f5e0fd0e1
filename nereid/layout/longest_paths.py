"""Difference constraints along one axis, solved as longest paths; knows nothing of elements or canvases."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Line:
    """Intervals along one axis in an order in which each constraint leads from an earlier one to a later one.

    `after[j]` lists (i, gap): start[j] >= start[i] + size[i] + gap. `low` and `high` bound all intervals; `pinned` are starts
    that must not move.
    """

    sizes: list[float]
    wanted: list[float]
    low: float
    high: float
    pinned: dict[int, float]
    after: list[list[tuple[int, float]]]

    def earliest(self) -> list[float]:
        """The least starts: the longest path to each interval from `low`."""
        found: list[float] = []
        for index in range(len(self.sizes)):
            reach = max((found[before] + self.sizes[before] + gap for before, gap in self.after[index]), default=self.low)
            found.append(self.pinned.get(index, max(reach, self.low)))
        return found

    def latest(self) -> list[float]:
        """The greatest starts: the longest path from each interval to `high`."""
        found = [self.pinned.get(index, self.high - size) for index, size in enumerate(self.sizes)]
        for index in reversed(range(len(self.sizes))):
            for before, gap in self.after[index]:
                if before not in self.pinned:
                    found[before] = min(found[before], found[index] - gap - self.sizes[before])
        return found

    def solve(self) -> list[float]:
        """Starts as near to what is wanted as one pass allows: each at its wanted place, or the nearest that leaves room for what
        is before and after it. Where there is no room, what is later is beyond `high`."""
        latest = self.latest()
        found: list[float] = []
        for index, wanted in enumerate(self.wanted):
            if index in self.pinned:
                found.append(self.pinned[index])
                continue
            reach = max((found[before] + self.sizes[before] + gap for before, gap in self.after[index]), default=self.low)
            found.append(max(min(wanted, latest[index]), reach, self.low))
        return found

    def excess(self) -> int | None:
        """The first interval whose longest path does not fit; None where all do."""
        earliest, latest = self.earliest(), self.latest()
        for index, (start, end) in enumerate(zip(earliest, latest, strict=True)):
            if start > end + 0.01:
                return index
        return None

    def beyond(self, index: int) -> float:
        """By how much the longest path through an interval is longer than from `low` to `high`."""
        return self.earliest()[index] - self.latest()[index]

    def path(self, index: int) -> list[int]:
        """The intervals on the longest path through one, in their order; each follows the one before by a constraint."""
        earliest, latest = self.earliest(), self.latest()
        before, here = [index], index
        while self.after[here]:
            here = max(self.after[here], key=lambda edge: earliest[edge[0]] + self.sizes[edge[0]] + edge[1])[0]
            before.append(here)
        found = before[::-1]
        while True:
            slack = {
                number: latest[number] - gap - self.sizes[found[-1]] - latest[found[-1]]
                for number, edges in enumerate(self.after)
                for earlier, gap in edges
                if earlier == found[-1]
            }
            following = min(slack, key=slack.__getitem__, default=None)
            if following is None or slack[following] > 0.01:
                return found
            found.append(following)

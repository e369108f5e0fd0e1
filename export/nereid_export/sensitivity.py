"""Which parts of a quantised graph to put back into higher precision, by what each does to the output for real inputs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from nereid_export.engines.check import Run

MOST_PARTS = 48
"""Parts that are tried apart, each with a graph of its own; layers beyond are taken together by their blocks."""


class QuantisedGraph(Protocol):
    """A graph with rounded activations, each of which can be put back as it was."""

    @property
    def rounded(self) -> Sequence[str]:
        """What is rounded, each named by the path of the node that reads it first, with dots."""
        ...

    def without(self, names: Collection[str]) -> Run:
        """The graph with these, of `rounded`, put back."""
        ...


class Excess(Protocol):
    """What was measured of a graph."""

    @property
    def excess(self) -> float:
        """Its error over the bound: 1 at most where it may be published, NaN where it computes nothing."""
        ...


E = TypeVar("E", bound=Excess)


@dataclass(frozen=True, slots=True)
class Search(Generic[E]):
    """Parts put back, largest effect first, and what is rounded in them; what was measured with all rounded, and so."""

    parts: int
    kept: tuple[str, ...]
    names: tuple[str, ...]
    rounded: E
    found: E


def search(
    graph: QuantisedGraph, measure: Callable[[Run], E], alone: Callable[[Run], float], told: Callable[[str], None]
) -> Search[E]:
    """The fewest parts whose rounding must go until the graph is within its bound; all of them where it never is.

    Their order is by the error (`alone`) that each makes where nothing else is rounded: beside the others' errors its own
    would hardly be seen.
    """
    rounded = graph.rounded
    grouped = parts(rounded)
    whole = measure(graph.without(()))
    if whole.excess <= 1:
        return Search(len(grouped), (), (), whole, whole)
    errors = {}
    for number, (part, names) in enumerate(grouped.items()):
        told(f"part {number + 1} of {len(grouped)} rounded alone")
        errors[part] = alone(graph.without(set(rounded) - set(names)))
    # What computes nothing is worst, and no number is before or after NaN.
    ordered = sorted(grouped, key=lambda part: -math.inf if math.isnan(errors[part]) else -errors[part])

    def names_of(count: int) -> tuple[str, ...]:
        return tuple(name for part in ordered[:count] for name in grouped[part])

    def within(count: int) -> bool:
        told(f"{count} of {len(grouped)} parts in higher precision")
        found[count] = measure(graph.without(names_of(count)))
        return found[count].excess <= 1

    found: dict[int, E] = {}
    least, most = 0, 1
    while not within(most) and most < len(ordered):
        least, most = most, min(2 * most, len(ordered))
    while found[most].excess <= 1 and most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if within(middle) else (middle, most)
    return Search(len(grouped), tuple(ordered[:most]), names_of(most), whole, found[most])


def parts(names: Sequence[str]) -> dict[str, list[str]]:
    """Names by the module that they belong to, as deep in the tree as `MOST_PARTS` allows."""
    paths = {name: name.rpartition(".")[0] or name for name in names}
    depth = max((path.count(".") + 1 for path in paths.values()), default=1)
    while True:
        grouped: dict[str, list[str]] = defaultdict(list)
        for name, path in sorted(paths.items()):
            grouped[".".join(path.split(".")[:depth])].append(name)
        if len(grouped) <= MOST_PARTS or depth == 1:
            return dict(grouped)
        depth -= 1


def dotted(node: str) -> str:
    """An ONNX node's or tensor's name as a path with dots."""
    return node.strip("/").replace("/", ".")

"""Which parts of a quantised graph to put back into higher precision, by what each does to the output for real inputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from nereid_export.engines.check import Reference, Run, aggregate_error

MOST_PARTS = 48
"""Parts that are tried apart, each with a graph of its own; layers beyond are taken together by their blocks."""
INPUTS = 4
"""Inputs of the check that each part is tried on."""


class QuantisedGraph(Protocol):
    """A graph with rounded activations, each of which can be put back as it was."""

    @property
    def rounded(self) -> Sequence[str]:
        """What is rounded, each named by the path of the module that makes or reads it, with dots."""
        ...

    def without(self, names: Collection[str]) -> Run:
        """The graph with these, of `rounded`, put back."""
        ...


@dataclass(frozen=True, slots=True)
class Search:
    """Parts put back, largest effect first, and what is rounded in them; the error with all rounded, and with these put back."""

    parts: int
    kept: tuple[str, ...]
    names: tuple[str, ...]
    error_without_kept: float
    error: float


def search(graph: QuantisedGraph, checks: Sequence[Reference], bound: float, told: Callable[[str], None]) -> Search:
    """The fewest parts whose rounding must go until the error is within the bound; all of them where it never is."""
    grouped = parts(graph.rounded)
    whole = aggregate_error(checks, graph.without(()))
    if whole <= bound:
        return Search(len(grouped), (), (), whole, whole)
    chosen = checks[:: max(1, len(checks) // INPUTS)][:INPUTS]
    errors = {}
    for number, (part, names) in enumerate(grouped.items()):
        told(f"part {number + 1} of {len(grouped)} in higher precision")
        errors[part] = aggregate_error(chosen, graph.without(names))
    ordered = sorted(grouped, key=lambda part: errors[part])

    def names_of(count: int) -> tuple[str, ...]:
        return tuple(name for part in ordered[:count] for name in grouped[part])

    def within(count: int) -> bool:
        told(f"{count} of {len(grouped)} parts in higher precision")
        found[count] = aggregate_error(checks, graph.without(names_of(count)))
        return found[count] <= bound

    found: dict[int, float] = {}
    least, most = 0, 1
    while not within(most) and most < len(ordered):
        least, most = most, min(2 * most, len(ordered))
    while found[most] <= bound and most - least > 1:
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

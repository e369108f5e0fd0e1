"""The fewest parts are put back into higher precision that bring a graph within its bound."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pytest

pytest.importorskip("torch")
from nereid_export.engines.check import Reference, Run
from nereid_export.sensitivity import MOST_PARTS, parts, search

CHECKS = [Reference(1, {}, {"x": np.full((1, 4), 10.0)}, {"y": np.full((1, 4), 10.0)}) for _ in range(6)]


class Errors:
    """A graph whose parts add errors of their own to the output, relative to it."""

    def __init__(self, **errors: float) -> None:
        self.errors = errors
        self.tried: list[tuple[str, ...]] = []

    @property
    def rounded(self) -> list[str]:
        return [f"{name}.conv" for name in self.errors]

    def without(self, names: Collection[str]) -> Run:
        self.tried.append(tuple(names))
        left = sum(error for name, error in self.errors.items() if f"{name}.conv" not in names)
        return lambda inputs, outputs: {"y": inputs["x"] * (1 + left)}


def test_a_graph_within_its_bound_keeps_nothing_and_is_run_once() -> None:
    graph = Errors(a=0.03, b=0.04)
    found = search(graph, CHECKS, 0.1, lambda text: None)
    assert (found.kept, found.parts, graph.tried) == ((), 2, [()])
    assert found.error == found.error_without_kept == pytest.approx(0.07)


@pytest.mark.parametrize(
    ("bound", "kept"),
    [(0.2, ("b",)), (0.16, ("b", "d")), (0.1, ("b", "d", "a")), (0.04, ("b", "d", "a", "e")), (0.005, ("b", "d", "a", "e", "c"))],
)
def test_the_parts_of_largest_effect_are_put_back_and_no_more(bound: float, kept: tuple[str, ...]) -> None:
    graph = Errors(a=0.07, b=0.3, c=0.01, d=0.05, e=0.04)
    graph.errors["d"] = 0.075
    found = search(graph, CHECKS, bound, lambda text: None)
    assert found.kept == kept
    assert found.names == tuple(f"{part}.conv" for part in kept)
    assert found.error_without_kept == pytest.approx(0.495)
    assert found.error <= bound


def test_no_number_of_parts_is_tried_below_one_that_was_too_few() -> None:
    graph = Errors(a=0.07, b=0.3, c=0.01, d=0.075, e=0.04)
    search(graph, CHECKS, 0.005, lambda text: None)
    assert [len(names) for names in graph.tried] == [0, *[1] * 5, 1, 2, 4, 5]


def test_where_nothing_helps_all_is_put_back_and_the_error_is_told() -> None:
    class Stubborn(Errors):
        def without(self, names: Collection[str]) -> Run:
            return lambda inputs, outputs: {"y": inputs["x"] * 1.5}

    found = search(Stubborn(a=0.1, b=0.1, c=0.1), CHECKS, 0.1, lambda text: None)
    assert (set(found.kept), found.error) == ({"a", "b", "c"}, pytest.approx(0.5))


def test_layers_are_taken_together_by_blocks_where_there_are_many() -> None:
    names = [f"unet.block.{block}.layer.{layer}.Conv" for block in range(12) for layer in range(9)]
    grouped = parts(names)
    assert sorted(grouped) == sorted(f"unet.block.{block}.layer" for block in range(12))
    assert all(len(held) == 9 for held in grouped.values())
    assert len(parts(names[:MOST_PARTS])) == MOST_PARTS
    # What a module rounds itself is not what its parts round.
    assert parts(["Cast", "unet.Cast", "unet.conv.Conv"]) == {
        "Cast": ["Cast"],
        "unet": ["unet.Cast"],
        "unet.conv": ["unet.conv.Conv"],
    }

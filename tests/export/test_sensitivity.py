"""The fewest parts are put back into higher precision that bring a graph within its bound."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("torch")
from nereid_export.engines.check import Run
from nereid_export.sensitivity import MOST_PARTS, Search, parts, search


@dataclass(frozen=True)
class Error:
    value: float
    bound: float

    @property
    def excess(self) -> float:
        return self.value / self.bound


class Errors:
    """A graph whose parts add errors of their own to the output."""

    def __init__(self, **errors: float) -> None:
        self.errors = errors
        self.tried: list[tuple[str, ...]] = []

    @property
    def rounded(self) -> list[str]:
        return [f"{name}.conv" for name in self.errors]

    def error(self, rounded: Collection[str]) -> float:
        return sum(self.errors[name] for name in rounded)

    def without(self, names: Collection[str]) -> Run:
        self.tried.append(tuple(sorted(name.removesuffix(".conv") for name in names)))
        left = [name for name in self.errors if f"{name}.conv" not in names]
        return lambda inputs, outputs: {"y": np.full(1, self.error(left))}

    def searched(self, bound: float) -> Search[Error]:
        def value(run: Run) -> float:
            return float(run({}, ["y"])["y"][0])

        return search(self, lambda run: Error(value(run), bound), value, lambda text: None)


def test_a_graph_within_its_bound_keeps_nothing_and_is_run_once() -> None:
    graph = Errors(a=0.03, b=0.04)
    found = graph.searched(0.1)
    assert (found.kept, found.parts, graph.tried) == ((), 2, [()])
    assert found.found == found.rounded == Error(pytest.approx(0.07), 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bound", "kept"),
    [(0.2, ("b",)), (0.16, ("b", "d")), (0.1, ("b", "d", "a")), (0.04, ("b", "d", "a", "e")), (0.005, ("b", "d", "a", "e", "c"))],
)
def test_the_parts_of_largest_effect_are_put_back_and_no_more(bound: float, kept: tuple[str, ...]) -> None:
    found = Errors(a=0.07, b=0.3, c=0.01, d=0.075, e=0.04).searched(bound)
    assert found.kept == kept
    assert found.names == tuple(f"{part}.conv" for part in kept)
    assert found.rounded.value == pytest.approx(0.495)
    assert found.found.value <= bound


def test_a_part_is_judged_by_what_it_does_where_nothing_else_is_rounded() -> None:
    """Beside a part whose error is the most there can be, no other seems to do anything."""

    class Saturated(Errors):
        def error(self, rounded: Collection[str]) -> float:
            return min(0.3, super().error(rounded))

    found = Saturated(a=0.05, b=0.4, c=0.2, d=0.02).searched(0.1)
    assert found.kept == ("b", "c")


def test_a_part_without_a_number_for_an_error_is_put_back_first() -> None:
    """Latents that overflow where it alone is rounded."""

    class Overflowing(Errors):
        def error(self, rounded: Collection[str]) -> float:
            return float("nan") if "c" in rounded else super().error(rounded)

    found = Overflowing(a=0.02, b=0.07, c=0.0, d=0.3, e=0.04).searched(0.1)
    assert found.kept == ("c", "d", "b")
    assert found.found.value <= 0.1


def test_no_number_of_parts_is_tried_below_one_that_was_too_few() -> None:
    graph = Errors(a=0.07, b=0.3, c=0.01, d=0.075, e=0.04)
    graph.searched(0.005)
    assert [len(names) for names in graph.tried] == [0, *[4] * 5, 1, 2, 4, 5]


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_where_nothing_helps_all_is_put_back_and_the_error_is_told(error: float) -> None:
    class Stubborn(Errors):
        def error(self, rounded: Collection[str]) -> float:
            return error

    found = Stubborn(a=0.1, b=0.1, c=0.1).searched(0.1)
    assert set(found.kept) == {"a", "b", "c"}
    assert found.found.value == pytest.approx(error, nan_ok=True)


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

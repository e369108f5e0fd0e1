"""Outlying channels move from a layer norm to the weights behind it, and the module computes what it did."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from small_module import Small, component

from nereid_export.engines.check import aggregate_error, random_inputs, references_of, torch_run
from nereid_export.observed import observe
from nereid_export.smoothing import smooth

pytestmark = pytest.mark.torch


def calls(count: int) -> list[dict[str, object]]:
    part = component(Small())
    return [
        {name: value.numpy() for name, value in random_inputs(part, 2, {"height": 5, "width": 6}, seed).items()}
        for seed in range(count)
    ]


def test_ranges_are_those_of_all_calls_a_channel() -> None:
    module = Small()
    found = observe(component(module), module, calls(3))  # type: ignore[arg-type]
    assert set(found) == {"conv", "query", "key", "out"}
    inputs = torch.cat([torch.from_numpy(call["sample"]) for call in calls(3)])  # type: ignore[arg-type]
    assert torch.equal(found["conv"].low, inputs.amin((0, 2, 3)))
    assert torch.equal(found["conv"].high, inputs.amax((0, 2, 3)))
    assert {name: layer.norm for name, layer in found.items()} == {"conv": None, "query": "norm", "key": "norm", "out": None}


def test_smoothing_narrows_the_range_and_leaves_the_output() -> None:
    module = Small()
    part, inputs = component(module), calls(3)
    checks = references_of(part, module, inputs)  # type: ignore[arg-type]
    before = observe(part, module, inputs)  # type: ignore[arg-type]
    after = observe(part, module, inputs)  # type: ignore[arg-type]
    assert smooth(part, module, after, checks) == 1

    def spread(layer: object) -> float:
        largest = torch.maximum(layer.low.abs(), layer.high.abs())  # type: ignore[attr-defined]
        return float(largest.max() / largest.median())

    assert spread(before["query"]) > 20
    assert spread(after["query"]) < 8
    assert aggregate_error(checks, torch_run(part, module)) < 1e-6
    again = observe(part, module, inputs)  # type: ignore[arg-type]
    torch.testing.assert_close(again["query"].high, after["query"].high)


def test_a_norm_that_something_else_reads_stays_as_it_was() -> None:
    module = Small(reused=True)
    part, inputs = component(module), calls(2)
    checks = references_of(part, module, inputs)  # type: ignore[arg-type]
    assert smooth(part, module, observe(part, module, inputs), checks) == 0  # type: ignore[arg-type]
    assert aggregate_error(checks, torch_run(part, module)) < 1e-6
    assert float(module.norm.weight[3].detach()) == pytest.approx(40.0)

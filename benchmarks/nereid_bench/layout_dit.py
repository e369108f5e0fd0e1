"""The ways that save something, on a random transformer of DiT-XL/2's sizes: time and FLOPs of whole runs, and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from nereid.diffusion.branch_cache import BranchEngine
from nereid.diffusion.dynamic_width import WidthEngine
from nereid.layout.elements import Section
from nereid.layout.tokens import BUCKETS
from nereid_bench.layout_ways import LayoutPlan, Way, row_of
from nereid_bench.random_dit import DitSizes, Share, StepCost, skipping_cost, step_costs
from nereid_zoo.layout.dynamic import load_dynamic


def dit_rows(plan: LayoutPlan, sizes: DitSizes, found: Sequence[Way], sections: Sequence[Section]) -> list[dict[str, Any]]:
    """A row for each way, and one of a run whose MLPs pass over tokens, which no exported model does."""
    costs = step_costs(sizes, shares_of(plan))
    skipping = Way(name=f"MLPs of {plan.kept_tokens:.0%} of the tokens", steps=plan.steps)
    skipped: dict[StrEnum, StepCost] = {BranchEngine.COMPUTED: skipping_cost(sizes, plan.kept_tokens)}
    return [*(_row(sizes, way, sections, costs) for way in found), _row(sizes, skipping, sections, skipped)]


def shares_of(plan: LayoutPlan) -> dict[WidthEngine, list[Share]]:
    """Of each slice, what its blocks have of the transformer's heads and MLP channels."""
    if not plan.dynamic:
        return {}
    network = load_dynamic(plan.checkpoint)
    return {
        engine: [
            (len(heads) / network.heads, len(groups) / network.groups)
            for heads, groups in zip(width.heads, width.groups, strict=True)
        ]
        for engine, width in network.named_widths().items()
    }


def _row(sizes: DitSizes, way: Way, sections: Sequence[Section], costs: Mapping[StrEnum, StepCost]) -> dict[str, Any]:
    """Of a whole run, the mean over these sections' runs: what a step of each kind costs, times the steps of its kind."""
    flops = {engine: dict.fromkeys(BUCKETS, cost.flops) for engine, cost in costs.items()}
    taken = [
        sum(costs[engine].milliseconds * times for engine, times in way.engines(way.steps_of(section)).items())
        for section in sections
    ]
    return row_of(sizes.name, way, sections, flops) | {"ms": statistics.mean(taken)}

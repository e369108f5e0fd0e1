"""The ways that save something, on a random transformer of DiT-XL/2's sizes: time and FLOPs of whole runs, and nothing else."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from nereid.diffusion.branch_cache import BranchEngine
from nereid.diffusion.dynamic_width import TokenEngine
from nereid.layout.elements import Section
from nereid.layout.tokens import BUCKETS
from nereid_bench.kept_tokens import KeptTokens
from nereid_bench.layout_ways import LayoutPlan, Way, row_of
from nereid_bench.random_dit import DitSizes, Part, StepCost, part_cost, step_costs
from nereid_zoo.layout.dynamic import load_dynamic


def dit_rows(
    plan: LayoutPlan, sizes: DitSizes, found: Sequence[Way], sections: Sequence[Section], kept: KeptTokens
) -> list[dict[str, Any]]:
    """A row for each way, and one of a run whose MLPs pass over tokens by themselves; where ways have them do that, blocks keep
    the shares of tokens that the layout transformer's have `kept`."""
    parts = parts_of(plan, kept)
    costs = step_costs(sizes, parts)
    skipping = Way(name=f"MLPs of {plan.kept_tokens:.0%} of the tokens", steps=plan.steps)
    part = Part([(1.0, 1.0)], [plan.kept_tokens])
    rows = [_row(sizes, way, sections, costs) | {"tokens": _percent(way, parts)} for way in found]
    return [*rows, _row(sizes, skipping, sections, {BranchEngine.COMPUTED: part_cost(sizes, part)}) | _tokens(part)]


def parts_of(plan: LayoutPlan, kept: KeptTokens) -> dict[StrEnum, Part]:
    """Of each slice, what its blocks have of the transformer's heads and MLP channels, and the tokens that MLPs have kept."""
    if not plan.dynamic:
        return {}
    network, parts = load_dynamic(plan.checkpoint), dict[StrEnum, Part]()
    for engine, width in network.named_widths().items():
        parts[engine] = Part(
            [
                (len(heads) / network.heads, len(groups) / network.groups)
                for heads, groups in zip(width.heads, width.groups, strict=True)
            ]
        )
    if plan.tokens:
        for passing in TokenEngine:
            if passing.width is None or passing.width in parts:
                shares = [(1.0, 1.0)] * network.layers if passing.width is None else parts[passing.width].shares
                parts[passing] = Part(shares, kept.shares(passing))
    return parts


def _percent(way: Way, parts: Mapping[StrEnum, Part]) -> float:
    """Of the tokens at MLPs of the way's steps, those that they are computed for."""
    steps = way.engines(way.steps)
    return sum(_tokens(parts.get(engine))["tokens"] * times for engine, times in steps.items()) / sum(steps.values())


def _tokens(part: Part | None) -> dict[str, float]:
    return {"tokens": 100.0 if part is None or part.tokens is None else 100 * statistics.mean(part.tokens)}


def _row(sizes: DitSizes, way: Way, sections: Sequence[Section], costs: Mapping[StrEnum, StepCost]) -> dict[str, Any]:
    """Of a whole run, the mean over these sections' runs: what a step of each kind costs, times the steps of its kind."""
    flops = {engine: dict.fromkeys(BUCKETS, cost.flops) for engine, cost in costs.items()}
    taken = [
        sum(costs[engine].milliseconds * times for engine, times in way.of(section).engines(way.steps_of(section)).items())
        for section in sections
    ]
    return row_of(sizes.name, way, sections, flops) | {"ms": statistics.mean(taken)}

"""What computing less of the layout transformer saves, beside fewer steps: FLOPs, time, pass rate, and a server under load.

Every way is measured on the same held-out briefs with the same seeds, by the engines of one repository. FLOPs are counted in the
transformer's graph as PyTorch runs it, at the number of tokens that a section is padded to; where MLPs pass over tokens, theirs
are those of the tokens that the engines say they have kept. A transformer of 3 M parameters on 32 tokens hides what such methods
bring, so the same schedules are also timed on a random one of DiT-XL/2's sizes: its weights mean nothing, nor would a pass rate.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Any

from nereid.flow.noise import derived_seed
from nereid.layout.elements import Box, Section
from nereid.layout.tokens import bucket_of
from nereid_bench.compare import Say
from nereid_bench.kept_tokens import KeptTokens, pass_over_all, token_flops
from nereid_bench.layout_dit import dit_rows
from nereid_bench.layout_exports import engine_megabytes, exported, exported_w4a8
from nereid_bench.layout_load import alone, arriving, asked_for, sustained
from nereid_bench.layout_ways import SERVED, LayoutPlan, Way, draw, require_plan, row_of, ways, ways_w4a8
from nereid_bench.random_dit import count_flops
from nereid_bench.servers import serving
from nereid_bench.turns import turned
from nereid_client import Client
from nereid_export.components import Component
from nereid_export.engines.check import random_inputs
from nereid_export.layout_drawing import LayoutDrawer
from nereid_zoo.layout.component import PLACES, TOKENS, branch_components, token_components, width_components
from nereid_zoo.layout.score import LayoutScore, held_out_sections, score_layouts

LAYOUT = "layout"
"""What the rows of the checkpoint call it."""


def layout(plan: LayoutPlan, say: Say) -> list[dict[str, Any]]:
    """A row for each way and transformer; raises ExportError, ServingError, NereidError."""
    require_plan(plan)
    repository = exported(plan, say)
    drawer = LayoutDrawer.of(repository / LAYOUT)
    sections = held_out_sections(plan.briefs).sections
    found = ways(plan, drawer)
    small = exported_w4a8(plan, say) if plan.w4a8 else None
    quantised = [] if small is None else ways_w4a8(plan, LayoutDrawer.of(small / LAYOUT))
    found += quantised
    parts = components(plan)
    say(f"counting FLOPs of {len(parts)} kinds of steps")
    flops, each = layout_flops(parts, {bucket_of(len(section)) for section in sections})
    rows: dict[str, dict[str, Any]] = {}
    every = KeptTokens()
    for way in found:
        say(f"{way.name}: drawing {len(sections)} held-out sections")
        score, kept = quality(drawer, way, sections, say)
        row = rows[way.name] = row_of(LAYOUT, way, sections, flops) | _scored(score)
        row["gflops"] += kept.flops(each) / len(sections) / 1e9
        row |= {"tokens": kept.percent, "mb": engine_megabytes(way.drawer or drawer)}
        every.add(kept)
    for name, milliseconds in timed(plan, drawer, found, sections[: plan.timed], say).items():
        rows[name]["ms"] = milliseconds
    plain = [way for way in found if way not in quantised]
    if plan.served:
        for folder, own in ((repository, plain), *([] if small is None else [(small, quantised)])):
            its_ways = [way for way in own if not plan.served_ways or way.name in plan.served_ways]
            if not its_ways:
                continue
            with serving(folder) as (client, _):
                for name, its in loaded(plan, client, its_ways, sections, say).items():
                    rows[name] |= its
    if plan.dit is not None:
        say(f"{plan.dit.name}: timing {len(parts) + 1} kinds of steps")
        # Not those in w4a8: the random transformer is PyTorch's, in float32.
        rows |= {f"{plan.dit.name}: {row['method']}": row for row in dit_rows(plan, plan.dit, plain, sections, every)}
    columns = list(rows[found[0].name])
    return [{column: row.get(column) for column in columns} for row in rows.values()]


# --- quality, arithmetic, and time in this process ---


def quality(drawer: LayoutDrawer, way: Way, sections: Sequence[Section], say: Say) -> tuple[LayoutScore, KeptTokens]:
    """As `nereid zoo score layout` scores, of one seed a section; and the tokens that MLPs have kept."""
    kept = KeptTokens()

    def drawn(places: Sequence[int], seed: int) -> list[list[Box]]:
        return draw(drawer, way, [sections[place] for place in places], [derived_seed(place, seed) for place in places], kept)

    said = f"of {len(sections)} sections"
    return score_layouts(drawn, sections, lambda done: say(f"{way.name}: {done} {said}"), seeds=1), kept


def _scored(score: LayoutScore) -> dict[str, Any]:
    return {
        "passed_before": score.passed_before,
        "passed_after": score.passed_after,
        "move_px": score.median_move,
    }


def components(plan: LayoutPlan) -> dict[StrEnum, Component]:
    """What the kinds of steps call: the engines that reuse branches, the slices, and those that pass over tokens."""
    found = dict[StrEnum, Component](branch_components(plan.checkpoint).items())
    if plan.dynamic:
        found.update(width_components(plan.checkpoint)[0].items())
    if plan.tokens:
        found.update(token_components(plan.checkpoint, widths=True).items())
    return found


def layout_flops(
    parts: Mapping[StrEnum, Component], tokens: Collection[int]
) -> tuple[dict[StrEnum, dict[int, float]], dict[StrEnum, list[float]]]:
    """Of a step of each kind with each of these numbers of tokens, without MLPs that may pass over some; and of those, block by
    block, for one token."""
    flops, each = dict[StrEnum, dict[int, float]](), dict[StrEnum, list[float]]()
    sizes = {count: {TOKENS: count, PLACES: 1 + count} for count in tokens}
    for engine, part in parts.items():
        module = part.load()
        each[engine] = [token_flops(block) for block in pass_over_all(module)]
        flops[engine] = {
            count: count_flops(module, tuple(random_inputs(part, 1, its, 1).values())) for count, its in sizes.items()
        }
    return flops, each


def timed(
    plan: LayoutPlan, drawer: LayoutDrawer, found: Sequence[Way], sections: Sequence[Section], say: Say
) -> dict[str, float]:
    """Milliseconds of one layout, drawn alone in this process: the median of all rounds, and of that the mean of all sections."""
    taken: dict[tuple[str, int], list[float]] = {}
    for turn in range(plan.rounds + 1):
        for way in turned(found, turn):
            say(f"in this process, round {turn} of {plan.rounds}: {way.name}")
            for number, section in enumerate(sections):
                start = time.perf_counter()
                draw(drawer, way, [section], [number])
                if turn:  # the first does not count
                    taken.setdefault((way.name, number), []).append(1000 * (time.perf_counter() - start))
    return {
        way.name: statistics.mean(statistics.median(taken[way.name, number]) for number in range(len(sections))) for way in found
    }


# --- a server under load ---


def loaded(
    plan: LayoutPlan, client: Client, found: Sequence[Way], sections: Sequence[Section], say: Say
) -> dict[str, dict[str, float]]:
    """By way: latencies of requests alone and at `rate`, and requests a second that are answered with `at_once` in flight."""
    asked = [asked_for(section) for section in sections]

    def send(way: Way, number: int) -> None:
        elements, canvas = asked[number % len(asked)]
        client.generate_layout(elements, canvas, seed=number, **way.asked)

    taken: dict[str, list[dict[str, float]]] = {way.name: [] for way in found}
    for turn in range(plan.rounds):
        for way in turned(found, turn):
            sending = partial(send, way)
            say(f"served, round {turn + 1} of {plan.rounds}: {way.name}, alone")
            sending(0)
            lone = alone(sending, plan.timed)
            seconds = plan.poisson_seconds or plan.seconds
            say(f"served, round {turn + 1} of {plan.rounds}: {way.name}, {plan.rate:g} a second for {seconds:g} s")
            load = arriving(sending, plan.rate, seconds, seed=turn)
            say(f"served, round {turn + 1} of {plan.rounds}: {way.name}, {plan.at_once} in flight for {plan.seconds:g} s")
            most = sustained(sending, plan.at_once, plan.seconds)
            figures = (lone.p50, lone.p95, load.p50, load.p95, most)
            taken[way.name].append(dict(zip(SERVED, figures, strict=True)))
    return {
        name: {column: statistics.median(its[column] for its in rounds) for column in SERVED} for name, rounds in taken.items()
    }


def title_of(plan: LayoutPlan) -> str:
    """Of the table; says what its figures are not."""
    load = f"load: {plan.rate:g} requests a second, then {plan.at_once} in flight" if plan.served else "not served"
    random = "" if plan.dit is None else "; of the DiT, whose weights are random, time and FLOPs alone mean something"
    return f"layouts of {plan.briefs} held-out briefs, {plan.steps} steps where nothing is said; {load}{random}"

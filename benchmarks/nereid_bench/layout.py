"""What computing less of the layout transformer saves, beside fewer steps: FLOPs, time, pass rate, and a server under load.

Every way is measured on the same held-out briefs with the same seeds, by the engines of one repository. FLOPs are counted in the
transformer's graph as PyTorch runs it, at the number of tokens that a section is padded to. A transformer of 3 M parameters on 32
tokens hides what such methods bring, so the same schedules are also timed on a random one of DiT-XL/2's sizes: its weights mean
nothing, and neither would a pass rate. That one's MLPs pass over tokens as well, which no exported model does.
"""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from nereid.diffusion.branch_cache import BranchEngine, KeptBranches, Plans
from nereid.diffusion.dynamic_width import WidthEngine, WidthTable
from nereid.diffusion.feature_cache import Level
from nereid.flow.noise import derived_seed
from nereid.layout.complexity import AdaptiveSteps
from nereid.layout.elements import Box, Section
from nereid.layout.tokens import BUCKETS, bucket_of
from nereid_bench.compare import Say
from nereid_bench.layout_load import alone, arriving, asked_for, sustained
from nereid_bench.layout_w4a8 import engine_megabytes, exported_w4a8
from nereid_bench.random_dit import DitSizes, Share, StepCost, count_flops, skipping_cost, step_costs
from nereid_bench.servers import serving
from nereid_bench.turns import turned
from nereid_client import Client
from nereid_export.bar import progress_bar
from nereid_export.components import Component
from nereid_export.engines import Engine
from nereid_export.engines.check import random_inputs
from nereid_export.layout import LayoutCheckpoint, LayoutExportOptions, export_layout
from nereid_export.layout_calibrate import CalibrateLayoutOptions, calibrate_layout
from nereid_export.layout_drawing import LayoutDrawer
from nereid_export.resume import VERSIONED, Record, resume_key
from nereid_zoo.layout.component import PLACES, TOKENS, branch_components, width_components
from nereid_zoo.layout.draw import DYNAMIC
from nereid_zoo.layout.dynamic import load_dynamic
from nereid_zoo.layout.score import CHECKPOINT, LayoutScore, held_out_sections, score_layouts

LAYOUT = "layout"
"""What the rows of the checkpoint call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutPlan:
    """What is measured. `fewer` are the step counts that reuse at `steps` has to beat; `rate` is in requests a second."""

    checkpoint: Path = CHECKPOINT
    work: Path = Path("build/bench-layout")
    engine: Engine = Engine.ONNXRUNTIME
    threads: int = 1
    steps: int = 16
    """Twice what is served by default: fewer steps are the yardstick of all that saves something else."""
    fewer: tuple[int, ...] = (12, 10, 8, 6, 4)
    briefs: int = 1000
    calibration_briefs: int = 200
    timed: int = 40
    """Sections that are drawn one by one, in this process and by the server."""
    rate: float = 8.0
    at_once: int = 16
    seconds: float = 30.0
    """Of each load."""
    rounds: int = 3
    """In which all ways take turns; medians are told."""
    served: bool = True
    dit: DitSizes | None = field(default_factory=DitSizes)
    kept_tokens: float = 0.63
    """Share of the tokens that an MLP has where it passes over the others."""

    @property
    def dynamic(self) -> bool:
        """Whether the checkpoint has a transformer with dynamic width, too."""
        return (self.checkpoint / DYNAMIC).is_dir()

    w4a8: bool = True
    """Whether the same transformer is measured in w4a8, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to draw: steps, which may go by a section's complexity, and what of a transformer is reused between them, or which
    slice of it computes them, by their timesteps."""

    name: str
    steps: int
    cache: str = "off"
    plans: Plans | None = None
    adaptive: AdaptiveSteps | None = None
    widths: WidthTable | None = None
    timesteps: Callable[[int], Iterable[float]] = lambda steps: ()
    """Of a run of so many steps."""
    drawer: LayoutDrawer | None = None
    """Of another repository, with engines of its own."""

    def steps_of(self, section: Section) -> int:
        return self.steps if self.adaptive is None else self.adaptive.steps(section)

    @property
    def asked(self) -> dict[str, Any]:
        """Options of a request."""
        asked: dict[str, Any] = {"num_inference_steps": self.steps, "cache": self.cache}
        if self.adaptive is not None:
            asked = {"effort": "adaptive"}
        return asked if self.widths is None else {**asked, "transformer_width": "dynamic"}

    def engines(self, steps: int) -> Counter[StrEnum]:
        """Of so many steps, how many each engine takes; the whole transformer counts as the one that computes everything."""
        if self.widths is not None:
            return Counter(self.widths.engine(float(timestep)) for timestep in self.timesteps(steps))
        if self.plans is None:
            return Counter({BranchEngine.COMPUTED: steps})
        return Counter(
            {BranchEngine(name): count for name, count in KeptBranches(self.plans, 1).steps_left(0, self.steps).items()}
        )

    @property
    def reused(self) -> float:
        """Percent of all branches of all steps."""
        engines = self.engines(self.steps).items()
        reused = sum(len(engine.reused) * count for engine, count in engines if isinstance(engine, BranchEngine))
        return 100 * reused / (2 * self.steps)


def layout(plan: LayoutPlan, say: Say) -> list[dict[str, Any]]:
    """A row for each way and transformer; raises ExportError, ServingError, NereidError."""
    repository = exported(plan, say)
    drawer = LayoutDrawer.of(repository / LAYOUT)
    sections = held_out_sections(plan.briefs).sections
    found = ways(plan, drawer)
    small = exported_w4a8(plan.checkpoint, plan.work, plan.threads, say) if plan.w4a8 else None
    quantised = [] if small is None else ways_w4a8(plan, LayoutDrawer.of(small / LAYOUT))
    found += quantised
    parts = components(plan)
    say(f"counting FLOPs of {len(parts)} kinds of steps")
    flops = layout_flops(parts, {bucket_of(len(section)) for section in sections})
    rows: dict[str, dict[str, Any]] = {}
    for way in found:
        say(f"{way.name}: drawing {len(sections)} held-out sections")
        rows[way.name] = _row(LAYOUT, way, sections, flops) | _scored(quality(drawer, way, sections, say))
        rows[way.name]["mb"] = engine_megabytes(way.drawer or drawer)
    for name, milliseconds in timed(plan, drawer, found, sections[: plan.timed], say).items():
        rows[name]["ms"] = milliseconds
    if plan.served:
        plain = [way for way in found if way not in quantised]
        for folder, its_ways in ((repository, plain), *([] if small is None else [(small, quantised)])):
            with serving(folder) as (client, _):
                for name, its in loaded(plan, client, its_ways, sections, say).items():
                    rows[name] |= its
    if plan.dit is not None:
        say(f"{plan.dit.name}: timing {len(parts) + 1} kinds of steps")
        costs = step_costs(plan.dit, shares_of(plan))
        skipping = Way(name=f"MLPs of {plan.kept_tokens:.0%} of the tokens", steps=plan.steps)
        for way in found:
            if way in quantised:
                continue  # the random transformer is PyTorch's, in float32
            rows[f"{plan.dit.name}: {way.name}"] = dit_row(plan.dit, way, sections, costs)
        skipped: dict[StrEnum, StepCost] = {BranchEngine.COMPUTED: skipping_cost(plan.dit, plan.kept_tokens)}
        rows[f"{plan.dit.name}: {skipping.name}"] = dit_row(plan.dit, skipping, sections, skipped)
    columns = list(rows[found[0].name])
    return [{column: row.get(column) for column in columns} for row in rows.values()]


# --- what is drawn, and by what ---


def exported(plan: LayoutPlan, say: Say) -> Path:
    """A repository with engines that reuse branches, and slices where the checkpoint has them, exported and calibrated unless an
    earlier run has done so."""
    options = LayoutExportOptions(
        checkpoint=plan.checkpoint,
        out=plan.work / "repository",
        engine=plan.engine,
        threads=plan.threads,
        cache=True,
        widths=plan.dynamic,
    )
    packages = [*VERSIONED, *(name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name))]
    key = resume_key(options, LayoutCheckpoint.open(plan.checkpoint).digest(), packages, without_effect=("checkpoint", "out"))
    record = Record(plan.work / "done.json", key | {"steps": plan.steps, "briefs": plan.calibration_briefs})
    if record.read() is not None and options.out.is_dir():
        return options.out
    record.file.unlink(missing_ok=True)
    shutil.rmtree(options.out, ignore_errors=True)
    plan.work.mkdir(parents=True, exist_ok=True)
    say(f"exporting {options.out}")
    with progress_bar() as bar:
        export_layout(options, bar)
    say(f"calibrating {options.out}")
    with progress_bar() as bar:
        calibrate_layout(
            CalibrateLayoutOptions(
                repository=options.out, steps=(plan.steps,), adaptive=plan.fewer, briefs=plan.calibration_briefs
            ),
            bar,
        )
    record.write({})
    return options.out


def ways(plan: LayoutPlan, drawer: LayoutDrawer) -> list[Way]:
    """All off, fewer steps, each calibrated level at all steps, steps by complexity, and dynamic width, with fewer steps, too."""
    facts = drawer.model.facts
    branches = facts.branches
    assert branches is not None
    calibration = next(its for its in branches.calibrations if its.steps == plan.steps)
    found = [Way(name="off", steps=plan.steps)]
    found += [Way(name=f"{steps} steps", steps=steps) for steps in plan.fewer]
    found += [Way(name=f"cache {level}", steps=plan.steps, cache=str(level), plans=calibration.plans(level)) for level in Level]
    if (adaptive := facts.adaptive) is not None:
        found.append(Way(name="adaptive steps", steps=plan.steps, adaptive=adaptive))
    if facts.widths is not None:
        for steps in (plan.steps, *plan.fewer):
            name = "dynamic width" if steps == plan.steps else f"dynamic width, {steps} steps"
            found.append(Way(name=name, steps=steps, widths=facts.widths, timesteps=partial(_timesteps, drawer)))
    return found


def _timesteps(drawer: LayoutDrawer, steps: int) -> list[float]:
    made: list[float] = drawer.table(drawer.model.facts.scheduler, steps).timesteps.tolist()
    return made


def ways_w4a8(plan: LayoutPlan, drawer: LayoutDrawer) -> list[Way]:
    """Weights of 4 bits and products of 8, at all steps and at fewer."""
    names = {steps: "w4a8" if steps == plan.steps else f"w4a8, {steps} steps" for steps in (plan.steps, *plan.fewer)}
    return [Way(name=name, steps=steps, drawer=drawer) for steps, name in names.items()]


def _draw(drawer: LayoutDrawer, way: Way, sections: Sequence[Section], seeds: Sequence[int]) -> list[list[Box]]:
    made: list[list[Box]] = [[]] * len(sections)
    drawer = way.drawer or drawer
    for steps in {way.steps_of(section) for section in sections}:
        places = [place for place, section in enumerate(sections) if way.steps_of(section) == steps]
        table = drawer.table(drawer.model.facts.scheduler, steps)
        own, numbers = [sections[place] for place in places], [seeds[place] for place in places]
        drawn = drawer.draw(own, numbers, table, way.plans, widths=way.widths)
        for place, boxes in zip(places, drawn, strict=True):
            made[place] = boxes
    return made


# --- quality, arithmetic, and time in this process ---


def quality(drawer: LayoutDrawer, way: Way, sections: Sequence[Section], say: Say) -> LayoutScore:
    """As `nereid zoo score layout` scores, of one seed a section."""

    def drawn(places: Sequence[int], seed: int) -> list[list[Box]]:
        return _draw(drawer, way, [sections[place] for place in places], [derived_seed(place, seed) for place in places])

    return score_layouts(drawn, sections, lambda done: say(f"{way.name}: {done} of {len(sections)} sections"), seeds=1)


def _scored(score: LayoutScore) -> dict[str, Any]:
    return {
        "passed_before": score.passed_before,
        "passed_after": score.passed_after,
        "move_px": score.median_move,
    }


def components(plan: LayoutPlan) -> dict[StrEnum, Component]:
    """What the kinds of steps call: the engines that reuse branches, and the slices."""
    found = dict[StrEnum, Component](branch_components(plan.checkpoint).items())
    if plan.dynamic:
        found.update(width_components(plan.checkpoint)[0].items())
    return found


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


def layout_flops(parts: Mapping[StrEnum, Component], tokens: Collection[int]) -> dict[StrEnum, dict[int, float]]:
    """Of a step of each kind with each of these numbers of tokens."""

    def counted(component: Component) -> dict[int, float]:
        module, sizes = component.load(), {count: {TOKENS: count, PLACES: 1 + count} for count in tokens}
        return {count: count_flops(module, tuple(random_inputs(component, 1, its, 1).values())) for count, its in sizes.items()}

    return {engine: counted(part) for engine, part in parts.items()}


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
                _draw(drawer, way, [section], [number])
                if turn:  # the first does not count
                    taken.setdefault((way.name, number), []).append(1000 * (time.perf_counter() - start))
    return {
        way.name: statistics.mean(statistics.median(taken[way.name, number]) for number in range(len(sections))) for way in found
    }


def _row(model: str, way: Way, sections: Sequence[Section], flops: Mapping[StrEnum, Mapping[int, float]]) -> dict[str, Any]:
    steps = [way.steps_of(section) for section in sections]
    taken = [
        sum(flops[engine][bucket_of(len(section))] * times for engine, times in way.engines(count).items())
        for section, count in zip(sections, steps, strict=True)
    ]
    return {
        "model": model,
        "method": way.name,
        "steps": statistics.mean(steps),
        "reused": way.reused,
        "gflops": statistics.mean(taken) / 1e9,
        "mb": None,
        "ms": None,
        **dict.fromkeys(_SERVED),
    }


def dit_row(sizes: DitSizes, way: Way, sections: Sequence[Section], costs: Mapping[StrEnum, StepCost]) -> dict[str, Any]:
    """Of a whole run, the mean over these sections' runs: what a step of each kind costs, times the steps of its kind."""
    flops = {engine: dict.fromkeys(BUCKETS, cost.flops) for engine, cost in costs.items()}
    taken = [
        sum(costs[engine].milliseconds * times for engine, times in way.engines(way.steps_of(section)).items())
        for section in sections
    ]
    return _row(sizes.name, way, sections, flops) | {"ms": statistics.mean(taken)}


# --- a server under load ---

_SERVED = ("p50_ms", "p95_ms", "load_p50_ms", "load_p95_ms", "requests_s")


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
            say(f"served, round {turn + 1} of {plan.rounds}: {way.name}, {plan.rate:g} a second for {plan.seconds:g} s")
            load = arriving(sending, plan.rate, plan.seconds, seed=turn)
            say(f"served, round {turn + 1} of {plan.rounds}: {way.name}, {plan.at_once} in flight for {plan.seconds:g} s")
            most = sustained(sending, plan.at_once, plan.seconds)
            figures = (lone.p50, lone.p95, load.p50, load.p95, most)
            taken[way.name].append(dict(zip(_SERVED, figures, strict=True)))
    return {
        name: {column: statistics.median(its[column] for its in rounds) for column in _SERVED} for name, rounds in taken.items()
    }


def title_of(plan: LayoutPlan) -> str:
    """Of the table; says what its figures are not."""
    load = f"load: {plan.rate:g} requests a second, then {plan.at_once} in flight" if plan.served else "not served"
    random = "" if plan.dit is None else "; of the DiT, whose weights are random, time and FLOPs alone mean something"
    return f"layouts of {plan.briefs} held-out briefs, {plan.steps} steps where nothing is said; {load}{random}"

"""What is measured of layouts: the plan, the ways to draw them, how each draws, and its row before anything is measured."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from nereid.diffusion.branch_cache import BranchEngine, KeptBranches, Plans
from nereid.diffusion.dynamic_width import WHOLE_WITH_TOKENS, TokenEngine, WidthTable
from nereid.diffusion.feature_cache import Level
from nereid.layout.complexity import AdaptiveSteps
from nereid.layout.elements import Box, Section
from nereid.layout.settings import LayoutLimits
from nereid.layout.tokens import bucket_of
from nereid_bench.kept_tokens import KeptTokens, has_token_routers
from nereid_bench.random_dit import DitSizes
from nereid_export.engines import Engine
from nereid_export.errors import ExportError
from nereid_export.layout_drawing import LayoutDrawer
from nereid_zoo.layout.draw import DYNAMIC
from nereid_zoo.layout.score import CHECKPOINT

SERVED = ("p50_ms", "p95_ms", "load_p50_ms", "load_p95_ms", "requests_s")
"""Columns of what a server is measured by."""
_ADAPTIVE_WIDTH = "adaptive steps and width"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutPlan:
    """What is measured. `fewer` are the step counts that reuse at `steps` has to beat; `rate` is in requests a second."""

    checkpoint: Path = CHECKPOINT
    work: Path = Path("build/bench-layout")
    engine: Engine = Engine.ONNXRUNTIME
    threads: int = 2
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
    poisson_seconds: float | None = None
    """Of the Poisson load, where it is another's."""
    rounds: int = 3
    """In which all ways take turns; medians are told."""
    served: bool = True
    served_ways: tuple[str, ...] = ()
    """Names of the ways that a server is put under load with; all where empty."""
    dit: DitSizes | None = field(default_factory=DitSizes)
    kept_tokens: float = 0.63
    """Share of the tokens that an MLP has where it passes over the others."""
    w4a8: bool = True
    """Whether the same transformer is measured in w4a8, too."""

    @property
    def dynamic(self) -> bool:
        """Whether the checkpoint has a transformer with dynamic width, too."""
        return (self.checkpoint / DYNAMIC).is_dir()

    @property
    def tokens(self) -> bool:
        """Whether that has routers of tokens."""
        return self.dynamic and has_token_routers(self.checkpoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to draw: steps, which may go by a section's complexity, and what of a transformer is reused between them, or which
    slice of it computes them, by their timesteps, where MLPs may pass over tokens."""

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
    chosen: bool = False
    """Whether the slices are for those sections alone that are quicker with them, as the calibration by complexity has found."""

    def of(self, section: Section) -> Way:
        """As this section is drawn."""
        if not self.chosen or self.adaptive is None or self.adaptive.prefers_dynamic(section):
            return self
        return replace(self, widths=None)

    def steps_of(self, section: Section) -> int:
        if self.adaptive is None:
            return self.steps
        widths = self.of(section).widths
        return self.adaptive.steps(section, dynamic=widths is not None and widths.is_dynamic)

    @property
    def asked(self) -> dict[str, Any]:
        """Options of a request."""
        if self.chosen:
            return {"effort": "adaptive"}
        asked: dict[str, Any] = {"num_inference_steps": self.steps, "cache": self.cache}
        if self.adaptive is not None:
            asked = {"effort": "adaptive", "transformer_width": "full"}
        engines = () if self.widths is None else self.widths.engines
        if self.widths is not None and self.widths.is_dynamic:
            asked["transformer_width"] = "dynamic"
        if any(isinstance(its, TokenEngine) for its in engines):
            asked["transformer_tokens"] = "dynamic"
        return asked

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


def require_plan(plan: LayoutPlan) -> None:
    """Raise ExportError for what no export would make right, before there is one."""
    if unknown := set(plan.served_ways) - set(names := way_names(plan)):
        raise ExportError(f"--served-ways: {min(unknown)} is not allowed; each must be one of {', '.join(names)}")
    most = LayoutLimits().max_steps
    for option, counts in (("--steps", (plan.steps,)), ("--fewer", plan.fewer)):
        if plan.served and max(counts, default=0) > most:
            raise ExportError(f"{option}: {max(counts)} is not allowed; the server takes {most} steps at most")


def way_names(plan: LayoutPlan) -> list[str]:
    """Of `ways` and of `ways_w4a8`, in their order."""
    found = ["off", *(f"{steps} steps" for steps in plan.fewer), *(f"cache {level}" for level in Level)]
    adaptive = bool(plan.fewer)
    found += ["adaptive steps"] * adaptive
    tables = ["dynamic width"] * plan.dynamic + ["dynamic tokens", "dynamic width and tokens"] * plan.tokens
    for name in tables:
        found += [_with_steps(plan, name, steps) for steps in (plan.steps, *plan.fewer)]
    found += [_ADAPTIVE_WIDTH] * (adaptive and plan.dynamic)
    if tables and adaptive:
        found.append(_all_on(tables[-1]))
    if plan.w4a8:
        found += [_with_steps(plan, "w4a8", steps) for steps in (plan.steps, *plan.fewer)]
        found += [_all_on("w4a8")] * adaptive
    return found


def _with_steps(plan: LayoutPlan, name: str, steps: int) -> str:
    return name if steps == plan.steps else f"{name}, {steps} steps"


def _all_on(name: str) -> str:
    return f"all on: {name}, adaptive steps"


def ways(plan: LayoutPlan, drawer: LayoutDrawer) -> list[Way]:
    """All off, fewer steps, each calibrated level at all steps, steps by complexity; dynamic width, dynamic tokens and both, with
    fewer steps, too; steps and width by complexity.

    Last is all of it that goes together.
    """
    facts = drawer.model.facts
    branches = facts.branches
    assert branches is not None
    calibration = next(its for its in branches.calibrations if its.steps == plan.steps)
    found = [Way(name="off", steps=plan.steps)]
    found += [Way(name=f"{steps} steps", steps=steps) for steps in plan.fewer]
    found += [Way(name=f"cache {level}", steps=plan.steps, cache=str(level), plans=calibration.plans(level)) for level in Level]
    if (adaptive := facts.adaptive) is not None:
        found.append(Way(name="adaptive steps", steps=plan.steps, adaptive=adaptive))
    tables = {} if facts.widths is None else {"dynamic width": facts.widths}
    if facts.tokens:
        tables["dynamic tokens"] = WHOLE_WITH_TOKENS
    if facts.tokens and facts.widths is not None:
        tables["dynamic width and tokens"] = facts.widths.passing_over_tokens()
    slices = partial(Way, timesteps=partial(_timesteps, drawer))
    for name, table in tables.items():
        for steps in (plan.steps, *plan.fewer):
            found.append(slices(name=_with_steps(plan, name, steps), steps=steps, widths=table))
    if adaptive is not None and adaptive.dynamic:
        found.append(slices(name=_ADAPTIVE_WIDTH, steps=plan.steps, adaptive=adaptive, widths=facts.widths, chosen=True))
    if tables and adaptive is not None:
        name, table = [*tables.items()][-1]
        found.append(slices(name=_all_on(name), steps=plan.steps, adaptive=adaptive, widths=table))
    return found


def _timesteps(drawer: LayoutDrawer, steps: int) -> list[float]:
    made: list[float] = drawer.table(drawer.model.facts.scheduler, steps).timesteps.tolist()
    return made


def ways_w4a8(plan: LayoutPlan, drawer: LayoutDrawer) -> list[Way]:
    """Weights of 4 bits and products of 8, at all steps and at fewer, and by complexity: nothing else goes with them."""
    counts = dict.fromkeys((plan.steps, *plan.fewer))
    found = [Way(name=_with_steps(plan, "w4a8", steps), steps=steps, drawer=drawer) for steps in counts]
    if (adaptive := drawer.model.facts.adaptive) is not None:
        found.append(Way(name=_all_on("w4a8"), steps=plan.steps, adaptive=adaptive, drawer=drawer))
    return found


def draw(
    drawer: LayoutDrawer, way: Way, sections: Sequence[Section], seeds: Sequence[int], kept: KeptTokens | None = None
) -> list[list[Box]]:
    """Boxes of each section as they are drawn, by the way's own drawer where it has one; tokens that MLPs keep go to `kept`."""
    made: list[list[Box]] = [[]] * len(sections)
    drawer, kept = way.drawer or drawer, kept or KeptTokens()
    taken = [(way.steps_of(section), way.of(section).widths) for section in sections]
    for steps, widths in dict.fromkeys(taken):
        places = [place for place, its in enumerate(taken) if its == (steps, widths)]
        table = drawer.table(drawer.model.facts.scheduler, steps)
        own, numbers = [sections[place] for place in places], [seeds[place] for place in places]
        drawn = drawer.draw(own, numbers, table, way.plans, kept.take, widths=widths)
        for place, boxes in zip(places, drawn, strict=True):
            made[place] = boxes
    return made


def row_of(model: str, way: Way, sections: Sequence[Section], flops: Mapping[StrEnum, Mapping[int, float]]) -> dict[str, Any]:
    """`flops` are those of a step of each kind, by the number of tokens, all MLPs included but those that pass over some."""
    steps = [way.steps_of(section) for section in sections]
    taken = [
        sum(flops[engine][bucket_of(len(section))] * times for engine, times in way.of(section).engines(count).items())
        for section, count in zip(sections, steps, strict=True)
    ]
    return {
        "model": model,
        "method": way.name,
        "steps": statistics.mean(steps),
        "reused": way.reused,
        "tokens": 100.0,
        "gflops": statistics.mean(taken) / 1e9,
        "mb": None,
        "ms": None,
        **dict.fromkeys(SERVED),
    }

"""`nereid calibrate-layout`: how a transformer's branches change from step to step, and which thresholds deserve a name.

As `nereid calibrate` does it for UNets (nereid_export.calibrate): the engines of a published model draw sections in this process,
of briefs such as it was trained on, with the served solver. The error curves (SmoothCache, Liu et al., 2024) and what each name
costs go into the model, with the digest of the very engines that were measured.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.branch_cache import LONGEST_REUSE, Branch, Plans, greedy_plans
from nereid.diffusion.feature_cache import Level
from nereid.diffusion.plan import EngineCall
from nereid.diffusion.solvers import ScheduleError, SchedulerName
from nereid.layout.elements import Box, Section
from nereid.layout.settings import LAYOUT_FILE, adaptive_digest, engines_digest
from nereid_export.configs import prefixed
from nereid_export.edited import Manifest, damage_named, edited
from nereid_export.errors import ExportError
from nereid_export.frame import Progress
from nereid_export.kept_figures import KeptFigures
from nereid_export.kept_plans import Curves, quickest
from nereid_export.layout import HOME
from nereid_export.layout_adaptive import adaptive_steps
from nereid_export.layout_checkpoint import architecture
from nereid_export.layout_drawing import LayoutDrawer
from nereid_export.layout_samples import off_pixels, passed_each, passed_shares, sample_sections
from nereid_export.scheduler_option import scheduler_named

OFF_BOUNDS: Mapping[Level, float] = {Level.LIGHT: 1.0, Level.BALANCED: 2.0, Level.AGGRESSIVE: 4.0}
"""CSS pixels that boxes may be off from those without: of a section the mean over its boxes' four numbers, of all the median."""
PASS_BOUNDS: Mapping[Level, float] = {Level.LIGHT: 0.5, Level.BALANCED: 1.0, Level.AGGRESSIVE: 2.0}
"""Points of the share of layouts that pass all error checks after repair that a level may cost."""
BRIEFS = 200
"""Sections that levels are measured on."""
CURVES = 32
"""Of them, those that curves are measured on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateLayoutOptions:
    """What `nereid calibrate-layout` may be asked for; the model's own scheduler and steps where they are empty."""

    repository: Path
    name: str = ""
    schedulers: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    adaptive: tuple[int, ...] = ()
    """Numbers of steps that a section may be given by its complexity; none where that is not wanted."""
    briefs: int = BRIEFS


def calibrate_layout(options: CalibrateLayoutOptions, progress: Progress) -> list[dict[str, Any]]:
    """Measure, choose and publish; returns the calibrations. Raises ExportError, after which the repository is as before.

    What was measured before an interruption is not measured again.
    """
    if options.briefs < 1:
        raise ExportError(f"--briefs: {options.briefs} is not allowed; it must be 1 or more")
    home = prefixed(HOME, options.name)
    copied = edited(
        options.repository, progress, "calibrated", lambda manifest: home in manifest["models"], f"as the layout model {home}"
    )
    with copied as (beside, homes):
        ((place, manifest),) = homes.items()
        with damage_named(options.repository / place):
            calibrating = _Calibrating.of(options, beside, home, manifest)
            found = calibrating.all(progress)
    calibrating.figures.forget()
    return found


@dataclass(frozen=True, slots=True)
class _Calibrating:
    """A model's folder that is changed here, its manifest, and what draws its layouts."""

    folder: Path
    manifest: Manifest
    drawer: LayoutDrawer
    sections: Sequence[Section]
    settings: Sequence[tuple[SchedulerName, int]]
    """Scheduler and steps of each calibration."""
    adaptive: Sequence[int]
    figures: KeptFigures

    @classmethod
    def of(cls, options: CalibrateLayoutOptions, repository: Path, home: str, manifest: Manifest) -> _Calibrating:
        drawer = LayoutDrawer.of(repository / home)
        facts, limits = drawer.model.facts, drawer.model.limits
        if facts.branches is None and not options.adaptive:
            raise ExportError(f"{options.repository}: there is nothing to calibrate; {home} was exported without --cache")
        settings = [
            (scheduler_named(name), steps)
            for name in options.schedulers or (str(facts.scheduler),)
            for steps in (options.steps or (limits.default_steps,) if facts.branches is not None else ())
        ]
        settings = list(dict.fromkeys(settings))
        for scheduler, steps in settings:
            _require(drawer, scheduler, steps)
        for steps in options.adaptive:
            _require(drawer, facts.scheduler, steps, "--adaptive", 1)
        things = {"files": manifest["files"], "model": home, "briefs": options.briefs, "version": manifest["version"]}
        figures = KeptFigures.open(repository.with_name(f"{repository.name}.json"), things)
        with architecture("nereid calibrate-layout"):
            sections = sample_sections(options.briefs, 11)
        return cls(repository / home, manifest, drawer, sections, settings, options.adaptive, figures)

    def all(self, progress: Progress) -> list[dict[str, Any]]:
        """Every calibration, written into the copy; those of other schedulers and steps stay as they are."""
        progress.total(2 * len(self.settings) + bool(self.adaptive) + 1)
        made = []
        for scheduler, steps in self.settings:
            said = f"{scheduler}, {steps} steps"
            progress.step(f"{said}: measuring changes")
            curves = self.figures.get(f"{said}: curves", partial(self._curves, scheduler, steps, progress.detail))
            progress.step(f"{said}: measuring levels")
            levels = self._levels(scheduler, steps, curves, progress.detail)
            made.append({"scheduler": str(scheduler), "steps": steps, **levels})
        file = self.folder / "1" / LAYOUT_FILE
        facts = json.loads(file.read_text())
        if self.settings:
            new = {(str(scheduler), steps) for scheduler, steps in self.settings}
            kept = [its for its in facts["branches"]["calibrations"] if (its["scheduler"], its["steps"]) not in new]
            facts["branches"] |= {"calibrations": [*kept, *made], "calibrated": engines_digest(self.folder / "1")}
            shown = [{name: value for name, value in its.items() if name != "curves"} for its in [*kept, *made]]
            self.manifest.setdefault("calibrations", {})["cache"] = shown
        if self.adaptive:
            progress.step("steps by complexity")
            found = adaptive_steps(self.drawer, self.sections, self.adaptive, self.figures, progress.detail)
            slices = self.drawer.model.facts.widths is not None
            facts["adaptive"] = {**found, "calibrated": adaptive_digest(self.folder / "1", dynamic=slices)}
            self.manifest.setdefault("calibrations", {})["adaptive"] = found
            made.append({"adaptive": found})
        file.write_text(json.dumps(facts, indent=1))
        return made

    def _curves(self, scheduler: SchedulerName, steps: int, told: Callable[[str], None]) -> dict[str, Curves]:
        """Mean relative change (L1) of what each block's branch gives over 1 to LONGEST_REUSE steps, from each step on."""
        longest = min(LONGEST_REUSE, steps - 1)
        sums = {branch: np.zeros((longest, steps)) for branch in Branch}
        sections = self.sections[:CURVES]
        for number, section in enumerate(sections):
            told(f"section {number + 1} of {len(sections)}")
            seen: list[dict[Branch, NDArray[np.float32]]] = []

            def note(
                places: Sequence[int],
                call: EngineCall,
                outputs: Mapping[str, NDArray],
                seen: list = seen,
                own: int = len(section),
            ) -> None:
                seen.append({branch: outputs[branch][0, :, : 1 + own].copy() for branch in Branch})

            self.drawer.draw([section], [number], self.drawer.table(scheduler, steps), stepped=note, watched=True)
            for branch in Branch:
                for over in range(1, longest + 1):
                    for step in range(steps - over):
                        before, after = seen[step][branch], seen[step + over][branch]
                        change, size = np.abs(before - after).sum((1, 2)), np.abs(after).sum((1, 2))
                        sums[branch][over - 1, step] += float((change / np.maximum(size, 1e-12)).mean())
        return {
            str(branch): tuple(tuple(float(f"{value:.5g}") for value in curve) for curve in its / len(sections))
            for branch, its in sums.items()
        }

    def _levels(
        self, scheduler: SchedulerName, steps: int, curves: Mapping[str, Curves], told: Callable[[str], None]
    ) -> dict[str, Any]:
        """The quickest plans of each level within its bounds, and what they cost."""
        named = {branch: curves[branch] for branch in Branch}
        plans = plans_by_threshold(named, steps)
        table, seeds = self.drawer.table(scheduler, steps), list(range(len(self.sections)))
        plain: list[list[Box]] = []

        def drawn_plain() -> list[list[Box]]:
            if not plain:
                told("layouts of runs that keep nothing")
                plain.extend(self.drawer.draw(self.sections, seeds, table))
            return plain

        def measured(threshold: float) -> tuple[float, float]:
            before = drawn_plain()
            told(said(threshold))
            boxes = self.drawer.draw(self.sections, seeds, table, plans[threshold])
            return round(statistics.median(off_pixels(boxes, before)), 3), passed(boxes)

        def passed(layouts: Sequence[Sequence[Box]]) -> float:
            return passed_shares(passed_each(self.sections, layouts))[1]

        def said(threshold: float) -> str:
            counts = (f"{branch} computed in {len(plan.full or ())}" for branch, plan in plans[threshold].items())
            return f"{', '.join(counts)} of {steps} steps"

        def cost(threshold: float) -> tuple[float, float]:
            return self.figures.get(f"{scheduler}, {said(threshold)}", partial(measured, threshold))

        whole = self.figures.get(f"{scheduler}, {steps} steps: passed", lambda: passed(drawn_plain()))

        def good(level: Level, threshold: float) -> bool:
            off, own = cost(threshold)
            return off <= OFF_BOUNDS[level] and whole - own <= PASS_BOUNDS[level]

        levels = {}
        for level in Level:
            threshold = quickest(list(plans), partial(good, level))
            off, own = cost(threshold)
            computed = {str(branch): len(plan.full or ()) for branch, plan in plans[threshold].items()}
            levels[str(level)] = {"threshold": threshold, "computed": computed, "off_px": off, "passed": own}
        return {"briefs": len(self.sections), "passed": whole, "curves": curves, "levels": levels}


def plans_by_threshold(curves: Mapping[Branch, Curves], steps: int) -> dict[float, Plans]:
    """By rising thresholds, the smallest that make them, each computing fewer branches; the first reuses nothing."""

    def count(plans: Plans) -> int:
        return sum(len(plan.full or ()) for plan in plans.values())

    found = {0.0: greedy_plans(curves, 0.0, steps)}
    fewest = count(found[0.0])
    for threshold in sorted({value for curve in chain(*curves.values()) for value in curve if 0 < value <= 1}):
        plans = greedy_plans(curves, threshold, steps)
        if (computed := count(plans)) < fewest:
            found[threshold], fewest = plans, computed
    return found


def _require(drawer: LayoutDrawer, scheduler: SchedulerName, steps: int, option: str = "--steps", fewest: int = 3) -> None:
    if steps < fewest:
        why = ", since the first and the last step are whole" if fewest > 1 else ""
        raise ExportError(f"{option}: {steps} is not allowed; it must be {fewest} at least{why}")
    try:
        drawer.table(scheduler, steps)
    except ScheduleError as error:
        raise ExportError(f"{option}: {steps} is not allowed with {scheduler}: {error}") from None

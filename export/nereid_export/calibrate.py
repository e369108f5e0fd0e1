"""`nereid calibrate`: how features and guidance change from step to step, and which thresholds deserve a name.

The engines of a published pipeline draw pictures in this process, with the served scheduler, solver and guidance. The curves and
what each name costs go into the pipeline; nothing is guessed for schedulers or numbers of steps that were not measured.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.feature_cache import CalibratedLevel, Level
from nereid.diffusion.plan import EngineCall
from nereid.diffusion.settings import PIPELINE_FILE, Pipeline
from nereid.diffusion.solvers import ScheduleError, SchedulerName, build_table
from nereid.diffusion.state import ImageRun
from nereid_export.calibration import PROMPTS, drawn_prompts, read_prompts
from nereid_export.checkpoint import Checkpoint, understood
from nereid_export.clip_tokenizers import read_tokenizers
from nereid_export.components import components_of
from nereid_export.configs import prefixed
from nereid_export.drawing import Drawer, psnr, refusals_told
from nereid_export.edited import Manifest, damage_named, edited, rewrite_facts
from nereid_export.errors import ExportError
from nereid_export.frame import Progress
from nereid_export.gate import score
from nereid_export.kept_figures import KeptFigures
from nereid_export.kept_kinds import KEPT_FEATURES, KEPT_GUIDANCE, Kind
from nereid_export.kept_plans import Curves, plans_of, quickest
from nereid_export.lora import Lora
from nereid_export.published import load_published
from nereid_export.scheduler_option import scheduler_named
from nereid_export.scorers import Scorer, scorer_for
from nereid_export.tiny_vae import TinyVae

PSNR_BOUNDS: Mapping[Level, float] = {Level.LIGHT: 30.0, Level.BALANCED: 25.0, Level.AGGRESSIVE: 20.0}
"""Smallest median PSNR in dB, against the uncached pictures of the same seeds, that a level's threshold may have."""
SCORE_BOUNDS: Mapping[Level, float] = {Level.LIGHT: 1.0, Level.BALANCED: 2.0, Level.AGGRESSIVE: 5.0}
"""Points of the checkpoint's score, where it has a scorer, that a level may cost."""
LONGEST_REUSE = 9
"""Steps that features are compared over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateOptions:
    """What `nereid calibrate` may be asked for; the pipeline's own scheduler and steps where they are empty."""

    repository: Path
    checkpoint: Path
    name: str = ""
    lora: tuple[Lora, ...] = ()
    tiny_vae: TinyVae | None = None
    schedulers: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    prompts: Path | None = None


def calibrate(options: CalibrateOptions, progress: Progress) -> list[dict[str, Any]]:
    """Measure, choose and publish; returns the calibrations. Raises ExportError, after which the repository is as before.

    What was measured before an interruption is not measured again.
    """
    home = prefixed("text_to_image", options.name)
    copied = edited(
        options.repository, progress, "calibrated", lambda manifest: home in manifest["models"], f"as the pipeline {home}"
    )
    with copied as (beside, homes):
        ((place, manifest),) = homes.items()
        with damage_named(options.repository / place):
            calibrating = _Calibrating.of(options, beside, manifest)
            found = calibrating.all(progress)
    calibrating.figures.forget()
    return found


@dataclass(frozen=True, slots=True)
class _Calibrating:
    """A copy of the repository that is changed here, the pipeline's manifest, and what draws its pictures."""

    repository: Path
    manifest: Manifest
    facts: dict[str, Any]
    drawer: Drawer
    scorer: Scorer | None
    prompts: tuple[str, ...]
    settings: Sequence[tuple[str, int]]
    """Scheduler and steps of each calibration."""
    figures: KeptFigures
    plain: dict[tuple[str, int], list[NDArray[np.uint8]]] = field(default_factory=dict)

    @classmethod
    def of(cls, options: CalibrateOptions, repository: Path, manifest: Manifest) -> _Calibrating:
        denoise = repository / prefixed("denoise", options.name) / "1" / PIPELINE_FILE
        text = denoise.read_text()
        facts, pipeline = json.loads(text), Pipeline.from_json(text)
        branch = None if pipeline.cache is None else pipeline.cache.branch
        if branch is None and not _guided(pipeline):
            raise ExportError(
                f"{options.repository}: there is nothing to calibrate; its UNet was exported without --cache-branch, and is not "
                "guided by an unconditional half"
            )
        checkpoint = Checkpoint.open(options.checkpoint, options.lora, cache_branch=branch, tiny_vae=options.tiny_vae)
        if checkpoint.digest() != manifest["source"]["sha256"]:
            raise ExportError(
                f"--checkpoint: {options.checkpoint} is not allowed; its digest is not that of {manifest['source']['name']}, "
                "which these engines were made from (LoRA weights and a tiny VAE are to be named as at export)"
            )
        with understood(checkpoint.folder):
            tokenizers = read_tokenizers(checkpoint)
            parts = components_of(checkpoint)
        scorer = scorer_for(checkpoint.folder)
        if options.prompts is not None:
            prompts = read_prompts(options.prompts)
        else:
            prompts = tuple(scorer.prompts(PROMPTS)) if scorer else drawn_prompts(next(iter(tokenizers.values())))
        settings = [
            (str(scheduler_named(name)), steps)
            for name in options.schedulers or (str(pipeline.default_scheduler),)
            for steps in options.steps or (pipeline.default_steps,)
        ]
        settings = list(dict.fromkeys(settings))
        for name, steps in settings:
            _require(pipeline, name, steps)
        runs = {part.name: load_published(part, repository, manifest, options.name) for part in parts}
        things = {
            "files": manifest["files"],
            "scorer": scorer and scorer.name,
            "prompts": prompts,
            "version": manifest["version"],
        }
        figures = KeptFigures.open(repository.with_name(f"{repository.name}.json"), things)
        return cls(repository, manifest, facts, Drawer(pipeline, tokenizers, runs), scorer, prompts, settings, figures)

    def all(self, progress: Progress) -> list[dict[str, Any]]:
        """Every calibration, written into the copy; those of other schedulers and steps stay as they are."""
        pipeline = self.drawer.pipeline
        kinds = [*([KEPT_FEATURES] if pipeline.cache else []), *([KEPT_GUIDANCE] if _guided(pipeline) else [])]
        progress.total(2 * len(self.settings) * len(kinds) + 1)
        made: dict[str, list[dict[str, Any]]] = {kind.field: [] for kind in kinds}
        for scheduler, steps in self.settings:
            for kind in kinds:
                said = f"{kind.field}, {scheduler}, {steps} steps"
                progress.step(f"{said}: measuring changes")
                curves = self.figures.get(f"{said}: curves", partial(self._curves, kind, scheduler, steps, progress.detail))
                progress.step(f"{said}: measuring levels")
                levels = self._levels(kind, scheduler, steps, curves, progress.detail)
                made[kind.field].append({"scheduler": scheduler, "steps": steps, **levels})
        new = {(scheduler, steps) for scheduler, steps in self.settings}
        for kind in kinds:
            kept = [its for its in kind.known(self.facts) if (its["scheduler"], its["steps"]) not in new]
            known = [*kept, *made[kind.field]]
            rewrite_facts(self.repository, self.manifest, **kind.written(self.facts, known))
            shown = [{name: value for name, value in its.items() if name != "curves"} for its in known]
            self.manifest.setdefault("calibrations", {})[kind.field] = shown
        return [{"field": kind, **its} for kind, found in made.items() for its in found]

    def _curves(self, kind: Kind, scheduler: str, steps: int, told: Callable[[str], None]) -> Curves:
        """Mean relative change of what is kept over 1 to LONGEST_REUSE steps, from each step on."""
        calls = SchedulerName(scheduler).calls(steps)
        longest = min(LONGEST_REUSE, calls - 1)
        sums = np.zeros((longest, calls))
        drawer = self._asked(scheduler, steps)
        for number, prompt in enumerate(self.prompts):
            told(f"picture {number + 1} of {len(self.prompts)}")
            seen: list[NDArray[np.float32]] = []

            def note(runs: Sequence[ImageRun], call: EngineCall, outputs: Mapping[str, NDArray], seen: list = seen) -> None:
                seen.append(kind.of(call, outputs))

            request = drawer.request([prompt], [number], steps=steps)
            with refusals_told():
                drawer.denoise(request, note, kind.outputs)
            for over in range(1, longest + 1):
                for step in range(calls - over):
                    before, after = seen[step], seen[step + over]
                    sums[over - 1, step] += np.abs(before - after).sum() / max(float(np.abs(after).sum()), 1e-12)
        return tuple(tuple(float(f"{value:.5g}") for value in curve) for curve in sums / len(self.prompts))

    def _levels(self, kind: Kind, scheduler: str, steps: int, curves: Curves, told: Callable[[str], None]) -> dict[str, Any]:
        """The quickest plan of each level within its bounds, and what it costs."""
        calls = SchedulerName(scheduler).calls(steps)
        plans = plans_of(curves, calls)
        whole = self._score_without(scheduler, steps, told)

        def said(threshold: float) -> str:
            return f"{len(plans[threshold].full or ())} of {calls} steps whole"

        def measured(threshold: float) -> float:
            plain = self._pictures_without(scheduler, steps, told)
            told(said(threshold))
            pairs = zip(self._pictures(self._with(kind, scheduler, steps, curves, threshold), steps), plain, strict=True)
            return round(statistics.median(psnr(one, other) for one, other in pairs), 2)

        def likeness(threshold: float) -> float:
            return self.figures.get(f"{kind.field}, {scheduler}, {said(threshold)}: PSNR", partial(measured, threshold))

        def within(bound: float, threshold: float) -> bool:
            return likeness(threshold) >= bound

        def loss(threshold: float) -> float:
            if whole is None:
                return 0.0
            drawer = self._with(kind, scheduler, steps, curves, threshold)
            scored = partial(self._score, drawer, said(threshold), told)
            return whole - self.figures.get(f"{kind.field}, {scheduler}, {said(threshold)}: score", scored)

        levels, rising = {}, list(plans)
        for level in Level:
            threshold = quickest(rising, partial(within, PSNR_BOUNDS[level]))
            while threshold > 0 and loss(threshold) > SCORE_BOUNDS[level]:
                threshold = max((one for one in plans if one < threshold), default=0.0)
            found = CalibratedLevel(
                threshold=threshold, psnr=likeness(threshold), score=None if whole is None else whole - loss(threshold)
            )
            levels[level] = {**asdict(found), "whole_steps": len(plans[threshold].full or ())}
        return {
            "prompts": len(self.prompts),
            **({} if self.scorer is None else {"scored_by": self.scorer.name, "score_uncached": whole}),
            "curves": curves,
            "levels": levels,
        }

    def _pictures_without(self, scheduler: str, steps: int, told: Callable[[str], None]) -> list[NDArray[np.uint8]]:
        """Of runs that keep nothing; drawn once for all kinds."""
        if (scheduler, steps) not in self.plain:
            told("pictures of runs that keep nothing")
            self.plain[scheduler, steps] = self._pictures(self._asked(scheduler, steps), steps)
        return self.plain[scheduler, steps]

    def _score_without(self, scheduler: str, steps: int, told: Callable[[str], None]) -> float | None:
        """Of runs that keep nothing; None where nothing scores them."""
        if self.scorer is None:
            return None
        measure = partial(self._score, self._asked(scheduler, steps), "keeping nothing", told)
        return self.figures.get(f"{scheduler}, {steps} steps: score", measure)

    def _asked(self, scheduler: str, steps: int, **more: Any) -> Drawer:
        return replace(self.drawer, asked={"scheduler": scheduler, "num_inference_steps": steps, **more})

    def _with(self, kind: Kind, scheduler: str, steps: int, curves: Curves, threshold: float) -> Drawer:
        """A drawer that keeps by this threshold."""
        level = {"threshold": threshold, "psnr": None}
        found = {"scheduler": scheduler, "steps": steps, "curves": curves, "levels": dict.fromkeys(Level, level)}
        pipeline = Pipeline.from_json(json.dumps({**self.facts, **kind.written(self.facts, [found])}))
        return replace(self._asked(scheduler, steps, **{kind.field: str(Level.LIGHT)}), pipeline=pipeline)

    def _pictures(self, drawer: Drawer, steps: int) -> list[NDArray[np.uint8]]:
        return [drawer.draw([prompt], [seed], steps=steps)[0] for seed, prompt in enumerate(self.prompts)]

    def _score(self, drawer: Drawer, said: str, told: Callable[[str], None]) -> float:
        assert self.scorer is not None
        return round(score(drawer, self.scorer, said, told), 1)


def _guided(pipeline: Pipeline) -> bool:
    """Whether a request that names nothing has an unconditional half."""
    return pipeline.default_guidance > 1 and pipeline.time_cond_proj_dim is None


def _require(pipeline: Pipeline, name: str, steps: int) -> None:
    if steps < 3:
        raise ExportError(f"--steps: {steps} is not allowed; it must be 3 at least, since the first and the last step are whole")
    try:
        build_table(SchedulerName(name), pipeline.scheduler, steps)
    except ScheduleError as error:
        raise ExportError(f"--steps: {steps} is not allowed with {name}: {error}") from None

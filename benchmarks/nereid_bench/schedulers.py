"""Every scheduler, step count and variation of a checkpoint, served: time, PSNR against a long run, score, memory."""

from __future__ import annotations

import contextlib
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.settings import PIPELINE_FILE, Limits, Pipeline
from nereid.diffusion.solvers import SCHEDULERS
from nereid.engines.digests import DigestError, fingerprint_of, own_version, version_digest
from nereid.serving.errors import ServingError
from nereid_bench.scheduler_choice import PSNR, SCORE, Measured, best, cheapest, pareto_front
from nereid_bench.scheduler_pictures import (
    Asked,
    Draw,
    Drawn,
    KeptPictures,
    asked_for,
    draw_missing,
    served,
    short_digest,
)
from nereid_bench.scheduler_settings import REFERENCE_STEPS, REFERENCE_WHY, VARIATIONS, Setting, reference_of, settings_of
from nereid_bench.server_memory import MEMORY
from nereid_export.configs import prefixed, read_config
from nereid_export.drawing import psnr
from nereid_export.scorers import Scorer

PROMPTS = (
    "a photograph of an astronaut riding a horse",
    "a watercolour of a harbour at dawn",
    "a bowl of fruit on a wooden table",
    "a portrait of an old sailor, oil on canvas",
    "a city street in the rain at night",
    "a mountain lake in autumn",
    "a cat asleep on a red sofa",
    "the interior of a library, wide angle",
)
"""Drawn in turn, each time with another seed, where nobody knows what a checkpoint's captions are."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulersPlan:
    """What to measure; `prompts` where there is no scorer, or other captions than its own are wanted."""

    repository: Path
    name: str = ""
    scorer: Scorer | None = None
    prompts: tuple[str, ...] = ()
    schedulers: tuple[str, ...] = tuple(map(str, SCHEDULERS))
    steps: tuple[int, ...] = (5, 10, 20, 30)
    variations: tuple[str, ...] = VARIATIONS
    captions: int = 48
    seeds: int = 1
    guidance: float | None = None
    """The checkpoint's where None."""
    work: Path = Path("build/bench/schedulers")
    fresh: bool = False
    """Whether what an earlier run has left is thrown away."""

    @property
    def more(self) -> dict[str, Any]:
        """Fields of every request."""
        return {} if self.guidance is None else {"guidance_scale": self.guidance}

    def asked(self) -> list[Asked]:
        """All pictures that a setting draws."""
        if self.scorer is not None:
            texts = self.scorer.scored(self.captions)
        else:
            known = self.prompts or PROMPTS
            texts = [known[number % len(known)] for number in range(self.captions)]
        return asked_for(texts, self.seeds)


@dataclass(frozen=True)
class Exported:
    """A pipeline of a repository, as its export has written it down."""

    repository: Path
    name: str

    @cached_property
    def _denoise(self) -> Path:
        folder = self.repository / prefixed("denoise", self.name)
        if not (folder / "1" / PIPELINE_FILE).is_file():
            raise ServingError(f"{self.repository} has no {folder.name}; `make export` puts it there")
        return folder

    @cached_property
    def pipeline(self) -> Pipeline:
        return Pipeline.read(self._denoise / "1")

    @cached_property
    def max_steps(self) -> int:
        """Most steps of a request."""
        told = read_config(self._denoise / "config.pbtxt").parameters
        return int(told["max_steps"].string_value) if "max_steps" in told else Limits().max_steps

    def digest(self) -> str:
        """One word for all that was exported with it, and the version that serves it; raises ServingError."""
        try:
            if version_digest(self._denoise / "1") is None:
                raise DigestError(f"{self._denoise} is in no manifest; export the model again")
            return fingerprint_of(self._denoise, own_version())
        except DigestError as error:
            raise ServingError(str(error)) from None


@dataclass(slots=True)
class Schedulers:
    """One measurement: pictures first (`draw`), then what they come to (`report`)."""

    plan: SchedulersPlan
    say: Say
    exported: Exported = field(init=False)
    settings: list[Setting] = field(init=False)
    reference: Setting = field(init=False)
    half: Setting = field(init=False)
    """The reference's solver with half the steps: how near the reference is to where it goes."""
    asked: list[Asked] = field(init=False)
    kept: KeptPictures = field(init=False)
    left_out: list[str] = field(init=False)

    def __post_init__(self) -> None:
        plan = self.plan
        self.exported = Exported(plan.repository, plan.name)
        config = self.exported.pipeline.scheduler
        if beyond := [steps for steps in plan.steps if not 1 <= steps <= self.exported.max_steps]:
            raise ServingError(
                f"--steps: {beyond[0]} is not allowed; it must be 1 to {self.exported.max_steps}, the server's max_steps"
            )
        self.left_out = []
        self.settings = settings_of(config, plan.schedulers, plan.steps, plan.variations, self._leave_out)
        if not self.settings:
            raise ServingError("nothing that was asked for can be measured; --schedulers, --steps and --variations leave nothing")
        most = min(REFERENCE_STEPS, self.exported.max_steps, config.num_train_timesteps)
        if most < REFERENCE_STEPS:
            self.say(f"the reference has {most} steps instead of {REFERENCE_STEPS}, which is the most that the server takes")
        self.reference, self.half = reference_of(config, most), reference_of(config, max(most // 2, 1))
        if self.exported.pipeline.few_step:
            self.say("this checkpoint was distilled to few steps, which no longer near one picture: PSNR says little of it")
        self.asked = plan.asked()
        key = short_digest([self.exported.digest(), plan.name, plan.more])
        self.kept = KeptPictures(plan.work / key)
        if plan.fresh:
            shutil.rmtree(self.kept.folder, ignore_errors=True)

    def _leave_out(self, sentence: str) -> None:
        self.left_out.append(sentence)
        self.say(sentence)

    @property
    def _all(self) -> list[Setting]:
        """Every setting whose pictures are needed, once."""
        return list({short_digest(dict(one.fields)): one for one in (self.reference, self.half, *self.settings)}.values())

    @property
    def pictures(self) -> int:
        """How many there are to draw, those that are kept included."""
        return len(self.asked) * len(self._all)

    def draw(
        self, told: Callable[[str], None], drawer: Callable[[], contextlib.AbstractContextManager[Draw]] | None = None
    ) -> int:
        """Draw what is missing with a real Triton, or with another `drawer`; returns how many pictures that were."""
        plan = self.plan
        return draw_missing(
            self._all, self.asked, self.kept, drawer or (lambda: served(plan.repository, plan.name, plan.more)), told
        )

    def report(self, drawn: int) -> tuple[dict[str, Any], list[Measured]]:
        """All that is told, and each row's figures; `drawn` pictures are of this run."""
        references = [self._read(asked, self.reference).pixels for asked in self.asked]
        nearness, _ = self._psnr(self._drawn(self.half), references)
        rows, measured = [], []
        for setting in self.settings:
            row, figures = self._row(setting, references)
            rows.append(row)
            measured.append(figures)
        kinds = [PSNR] if self.plan.scorer is None else [SCORE, PSNR]
        fronts = {kind: {one.label for one in pareto_front(measured, kind)} for kind in kinds}
        for row, one in zip(rows, measured, strict=True):
            row["front"] = ", ".join(kind for kind in kinds if one.label in fronts[kind])
        return {
            "repository": str(self.plan.repository),
            "captions": self.plan.captions,
            "seeds": self.plan.seeds,
            "guidance_scale": self.exported.pipeline.default_guidance if self.plan.guidance is None else self.plan.guidance,
            "scored_by": None if self.plan.scorer is None else self.plan.scorer.name,
            "pictures": self.pictures,
            "kept_of_earlier_runs": self.pictures - drawn,
            "reference": {**self.reference.fields, "why": REFERENCE_WHY, "psnr_of_half_the_steps": nearness},
            "memory": MEMORY,
            "left_out": self.left_out,
            "rows": rows,
        }, measured

    def _row(self, setting: Setting, references: Sequence[NDArray[np.uint8]]) -> tuple[dict[str, Any], Measured]:
        drawn = self._drawn(setting)
        median, lowest = self._psnr(drawn, references)
        figures = Measured(
            label=setting.label,
            calls=setting.calls,
            seconds=statistics.median(one.seconds for one in drawn),
            psnr=median,
            score=self._score(drawn),
        )
        scored = {} if figures.score is None else {"score": figures.score}
        return {
            "scheduler": setting.scheduler,
            "variation": setting.variation,
            "steps": setting.steps,
            "seconds": figures.seconds,
            **scored,
            "psnr": median,
            "psnr_lowest": lowest,
            "peak_megabytes": statistics.median(one.peak_bytes for one in drawn) / 1e6,
            "noise": "yes" if setting.noise else "",
        }, figures

    def _drawn(self, setting: Setting) -> list[Drawn]:
        return [self._read(asked, setting) for asked in self.asked]

    def _read(self, asked: Asked, setting: Setting) -> Drawn:
        found = self.kept.read(asked, setting)
        if found is None:
            raise ServingError(f"a picture of {setting.label} has gone from {self.kept.folder}; the same command draws it again")
        return found

    @staticmethod
    def _psnr(drawn: Sequence[Drawn], references: Sequence[NDArray[np.uint8]]) -> tuple[float, float]:
        """Median and lowest, in dB."""
        found = [psnr(one.pixels, other) for one, other in zip(drawn, references, strict=True)]
        return statistics.median(found), min(found)

    def _score(self, drawn: Sequence[Drawn]) -> float | None:
        """Percent, the mean of all seeds; the scorer sees the very pictures that were timed."""
        scorer, count = self.plan.scorer, self.plan.captions
        if scorer is None:
            return None
        found = []
        for seed in range(self.plan.seeds):
            part = drawn[seed * count : (seed + 1) * count]

            def given(texts: list[str], seeds: list[int], part: Sequence[Drawn] = part) -> Iterator[NDArray[np.uint8]]:
                return (one.pixels for one in part)

            found.append(scorer.score(given, count, lambda done: None))
        return statistics.mean(found)

    def recommended(self, measured: Sequence[Measured], bounds: dict[str, float]) -> dict[str, Any]:
        """The cheapest setting that reaches the bounds, and how it is asked for; raises ServingError where none does."""
        units = {SCORE: "%", PSNR: " dB"}
        wanted = " and ".join(f"{kind} {bound:g}{units[kind]}" for kind, bound in bounds.items())
        chosen = cheapest(measured, bounds)
        if chosen is None:
            tops = ", and ".join(
                f"{top.label} has the best {kind}, {top.quality(kind):.1f}{units[kind]}"
                for kind, top in ((kind, best(measured, kind)) for kind in bounds)
            )
            raise ServingError(f"no setting that was measured reaches {wanted}; {tops}")
        setting = self.settings[list(measured).index(chosen)]
        return {
            "wanted": wanted,
            "setting": chosen.label,
            "seconds": chosen.seconds,
            **({} if chosen.score is None else {"score": chosen.score}),
            "psnr": chosen.psnr,
            "fields": {**setting.fields, **self.plan.more},
            "sdk": setting.sdk(self.plan.more),
            "command": setting.command(self.plan.more) + (f" --name {self.plan.name}" if self.plan.name else ""),
        }

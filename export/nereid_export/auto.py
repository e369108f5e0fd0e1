"""`--engine auto`: every candidate of a component is built and checked like any engine, and enters a contest if it passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nereid.engines.memory import available_bytes
from nereid_export.built import Built, build
from nereid_export.calibration import Calibration
from nereid_export.candidates import STEP_ROWS, UNGUIDED_STEP_ROWS, USUAL, Candidate, candidates_of, expected_rows
from nereid_export.choice import Row, label
from nereid_export.components import Component
from nereid_export.contest import Contest, Entrant
from nereid_export.engines import Engine
from nereid_export.engines.base import Target
from nereid_export.engines.plan_options import option
from nereid_export.engines.precision import PSNR_BOUNDS, Precision
from nereid_export.errors import ExportError
from nereid_export.frame import Device, Progress
from nereid_export.options import ExportOptions
from nereid_export.speed import usual_rows


def require_auto(options: ExportOptions) -> None:
    """Raise ExportError for options that need `--engine auto`, or that it does not have."""
    if options.engine is not Engine.AUTO:
        for name in options.auto.asked():
            raise ExportError(
                f"{option(name)} is not allowed with --engine {options.engine}; it must be left out, or the engine be auto"
            )
        if options.precision.auto:
            raise ExportError(f"--precision: auto is not allowed with --engine {options.engine}; the engine must be auto")
    elif options.device is not Device.CPU:
        raise ExportError(
            f"--device: {options.device} is not allowed with --engine auto, which measures engines of the processor; "
            "it must be cpu"
        )
    elif options.auto.max_engine_mib < 0:
        raise ExportError(f"--max-engine-mib: {options.auto.max_engine_mib} is not allowed; it must be 0 or more")
    elif any(rows > options.engine_rows("unet") for rows in options.auto.step_rows):
        raise ExportError(
            f"--step-rows: {max(options.auto.step_rows)} is not allowed; it must be {options.engine_rows('unet')} or less, "
            "twice --max-batch-size"
        )


def memory_bound(max_engine_mib: int) -> int:
    """Bytes that one engine and its runs may take: as asked, or what is free."""
    return max_engine_mib * 2**20 or available_bytes()


@dataclass(slots=True)
class Auto:
    """The contests of all components, and the engines that were built for them."""

    options: ExportOptions
    candidates: dict[str, tuple[Candidate, ...]]
    contests: dict[str, Contest]
    built: dict[tuple[str, str], Built]
    """By component and label."""

    @classmethod
    def of(cls, options: ExportOptions, parts: dict[str, Component], targets: dict[str, Target], *, guided: bool) -> Auto:
        """What is to be built; raises ExportError where a component has no candidate that can be.

        A `guided` image has two rows of the UNet.
        """
        engines = options.auto.candidates or USUAL
        made = {name: candidates_of(part, targets[name], engines, options.precision) for name, part in parts.items()}
        for name, candidates in made.items():
            if all(candidate.refused for candidate in candidates):
                reasons = "; ".join(dict.fromkeys(candidate.refused for candidate in candidates))
                raise ExportError(f"{name}: --engine auto has no candidate here: {reasons}")
        contests = {}
        for name, part in parts.items():
            expected = expected_rows(part, targets[name], options.auto.step_rows or (STEP_ROWS if guided else UNGUIDED_STEP_ROWS))
            refused = [_dropped(part, candidate, candidate.refused) for candidate in made[name] if candidate.refused]
            contests[name] = Contest(part, expected, {}, refused)
        return cls(options, made, contests, {})

    @property
    def targets(self) -> list[tuple[Component, Target]]:
        """Of all that will be built."""
        return [
            (self.contests[name].component, candidate.target)
            for name, candidates in self.candidates.items()
            for candidate in candidates
            if not candidate.refused
        ]

    def build(self, source: str, staging: Path, calibration: Calibration, progress: Progress) -> None:
        """Build and check all candidates; one that fails leaves its reason in the table."""
        for name, candidates in self.candidates.items():
            contest = self.contests[name]
            for candidate in candidates:
                if candidate.refused:
                    continue
                labelled = label(candidate.engine, candidate.target.of(contest.component))
                folder = staging / "candidates" / name / labelled
                named = _Named(progress, labelled)
                try:
                    built = build(
                        contest.component, candidate.engine, candidate.target, source, self.options, folder, calibration, named
                    )
                except ExportError as error:
                    named.finish()
                    reason = str(error).removesuffix("; nothing was published")
                    contest.rows.append(_dropped(contest.component, candidate, reason))
                    continue
                self.built[name, labelled] = built
                contest.entrants[labelled] = Entrant(
                    engine=built.engine,
                    target=built.target,
                    folder=folder,
                    error=max(check.relative_error for check in built.checks),
                    memory=built.memory,
                )

    def measure(self, progress: Progress) -> None:
        """Run what was built, component by component."""
        bound = memory_bound(self.options.auto.max_engine_mib)
        for name, contest in self.contests.items():
            progress.step(f"{name}: measuring {len(contest.entrants)} engines")
            contest.measure(bound, progress.detail)
            for row in contest.rows:
                if not row.dropped and not row.threads:  # that was found when it was built
                    row.invariant_from, row.compared = self.built[name, row.label].invariant_from, True

    def elect(self, told: Callable[[str], None]) -> list[Built]:
        """The engine of every component, by its table."""
        chosen = []
        for name, contest in self.contests.items():
            row = contest.elect(told)
            chosen.append(
                replace(
                    self.built[name, row.label],
                    target=contest.target(row),
                    milliseconds=row.milliseconds[usual_rows(contest.component)],
                    invariant_from=row.invariant_from,
                )
            )
        return chosen

    def drop_coarsest(self, chosen: Sequence[Built], reason: str) -> None:
        """After pictures that were refused: what is of the chosen engines' coarsest precision is out, everywhere."""
        precisions = {engine.target.of(engine.component) for engine in chosen} - {Precision.FP32}
        precision = min(precisions, key=lambda one: PSNR_BOUNDS[one])
        for contest in self.contests.values():
            contest.drop(precision, reason.removesuffix("; nothing was published"))

    def alternatives(self, name: str) -> dict[str, Built]:
        """Losers that may serve on another machine; below float32 none, since no pictures were drawn with them."""
        (chosen,) = (row.label for row in self.contests[name].rows if row.chosen)
        return {
            labelled: built
            for (component, labelled), built in self.built.items()
            if component == name and labelled != chosen and built.target.of(built.component) is Precision.FP32
        }


def _dropped(component: Component, candidate: Candidate, reason: str) -> Row:
    return Row(engine=candidate.engine, precision=candidate.target.of(component), dropped=reason)


class _Named:
    """Progress of one candidate, whose steps name it; it takes two steps, however it ends."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name, self._left = progress, name, 2

    def total(self, steps: int) -> None:
        self._progress.total(steps)

    def step(self, text: str) -> None:
        self._left -= 1
        self._progress.step(f"{text} ({self._name})")

    def detail(self, text: str) -> None:
        self._progress.detail(f"{text} ({self._name})")

    def waiting(self, text: str) -> None:
        self._progress.waiting(text)

    def finish(self) -> None:
        while self._left:
            self.step("dropped")

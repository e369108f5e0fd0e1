"""One engine of an export: built, checked and measured, unless an interrupted export has done so already."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nereid_export.calibration import Calibration
from nereid_export.candidates import AutoOptions
from nereid_export.choice import label
from nereid_export.components import Component, sizes_at
from nereid_export.engines import BUILDERS, Engine
from nereid_export.engines.base import EngineBuilder, Samples, Target, engine_files
from nereid_export.engines.check import (
    Check,
    batch_invariant_from,
    compare,
    compare_together,
    random_references,
    references_of,
    refuse_above_bound,
    refuse_end_above_bound,
)
from nereid_export.engines.precision import Precision
from nereid_export.errors import ExportError, first_line
from nereid_export.frame import Progress
from nereid_export.memory import measure_memory
from nereid_export.options import ExportOptions
from nereid_export.publish import full_disk_named
from nereid_export.resume import RECORD, VERSIONED, Record, resume_key
from nereid_export.speed import milliseconds, usual_rows


@dataclass(slots=True)
class Built:
    """One engine in the staging folder."""

    component: Component
    engine: Engine
    target: Target
    folder: Path
    checks: list[Check] = field(default_factory=list)
    seconds: float = 0.0
    milliseconds: float | None = None
    """Of one call for one picture of the usual size, guided; None where the engine could not be run."""
    memory: dict[str, Any] | None = None
    """What its runs need, where that was measured."""
    end_error: float | None = None
    """Of whole runs, where the component's calls follow one another and it computes below float32."""
    invariant_from: int | None = None
    """Rows of a call from which on each has the same bits in any company; None where it never has."""
    unchecked: str | None = None
    """Why it was not compared with PyTorch; None where it was."""
    account: dict[str, Any] = field(default_factory=dict)
    """What its builder says of it: the library's account of a plan, parts that are kept in higher precision."""
    resumed: bool = False

    def figures(self) -> dict[str, Any]:
        """What a resumed export reads instead of building it."""
        kept = ("seconds", "milliseconds", "memory", "end_error", "invariant_from", "unchecked", "account")
        return {"checks": [asdict(check) for check in self.checks], **{name: getattr(self, name) for name in kept}}


def build(
    component: Component,
    engine: Engine,
    target: Target,
    source: str,
    options: ExportOptions,
    folder: Path,
    calibration: Calibration,
    progress: Progress,
) -> Built:
    """Build and check one engine in `folder`; `source` is the checkpoint's digest."""
    builder, precision = BUILDERS[engine], target.of(component)
    runs = calibration.runs if component.name == "unet" and precision is not Precision.FP32 else None
    prompted = precision.quantised or runs is not None
    # Another component's precision does not matter here, nor do prompts where neither calls nor runs of them are used.
    key = resume_key(
        replace(options, engine=engine, auto=AutoOptions()),
        [source, str(precision), [drawn.prompt for drawn in calibration.pictures] if prompted else None],
        packages_of((builder, precision)),
        without_effect=("checkpoint", "out", "name", "precision", "calibration_prompts"),
    )
    record, unchecked = Record(folder / RECORD, key), builder.unchecked(target)
    # What was built where it could not be run is built and checked again where it can.
    if (done := record.read()) is not None and done["unchecked"] == unchecked:
        progress.step(f"{component.name}: built before")
        progress.step(f"{component.name}: {'not checked' if unchecked else 'checked before'}")
        figures = {**done, "checks": [Check(**check) for check in done["checks"]]}
        return Built(component, engine, target, folder, **figures, resumed=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.monotonic()
    progress.step(f"{component.name}: exporting")
    module = component.load()
    if precision.quantised:
        references = references_of(component, module, calibration.checks[component.name])
    else:
        references = [] if unchecked else random_references(component, module)
    samples = Samples(references, calibration.ranges.get(component.name, ()), runs, told=progress.detail)
    built = Built(component, engine, target, folder, unchecked=unchecked)
    with library_failures(component, engine, precision, folder):
        built.account = builder.build(component, module, folder, target, samples) or {}
        del module
        if unchecked:
            progress.step(f"{component.name}: not checked against PyTorch")
        else:
            progress.step(f"{component.name}: checking against PyTorch")
            run = builder.load(component, folder, target)
            built.checks = (compare_together if precision.quantised else compare)(references, run)
            refuse_above_bound(component, built.checks, precision)
            if runs is not None:
                progress.detail(f"{component.name}: finishing runs with the engine")
                built.end_error = runs.error(run)
                refuse_end_above_bound(component, built.end_error, precision)
            built.invariant_from = batch_invariant_from(component, run, places(component, target))
            built.milliseconds = milliseconds(component, run, target, usual_rows(component))
            del run
    built.memory = measure_memory(component, folder / builder.filename, target, builder.probe(component, target))
    built.seconds = round(time.monotonic() - start, 1)
    record.write(built.figures(), engine_files(folder))
    return built


def made_with(engine: Built) -> tuple[EngineBuilder, Precision]:
    """What `packages_of` asks of an engine."""
    return BUILDERS[engine.engine], engine.target.of(engine.component)


def packages_of(*engines: tuple[EngineBuilder, Precision]) -> tuple[str, ...]:
    """Distributions whose versions shape engines of these precisions, each once."""
    found: list[str] = [*VERSIONED]
    for builder, precision in engines:
        found += (*builder.packages, *(builder.quantisers if precision.quantised else ()))
    return tuple(dict.fromkeys(found))


@contextmanager
def library_failures(component: Component, engine: Engine, precision: Precision, folder: Path) -> Iterator[None]:
    """Turn what an engine's libraries raise, assertions included, into one sentence; what the disk refuses passes."""
    try:
        with full_disk_named(folder):
            yield
    except (ExportError, OSError):
        raise
    except Exception as error:
        kind, said = type(error).__name__, first_line(error)
        reason = said if said == kind else f"{kind}: {said}"
        raise ExportError(f"{component.name}: {label(engine, precision)} cannot be built: {reason}") from error


def places(component: Component, target: Target) -> list[tuple[int, dict[str, int]]]:
    """Where rows are compared in different company: small pictures, and the usual ones for the engine whose rows are packed."""
    rows = min(8, target.max_batch_size)
    places = [(rows, sizes) for _, sizes in component.checks]
    if component.denoises:
        places.append((min(4, rows), sizes_at(component, target.default_side, target.scale)))
    return places

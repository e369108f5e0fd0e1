"""The repositories that layouts are measured in: one in float32, and one of 4-bit weights and 8-bit products; made once."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from nereid_bench.compare import Say
from nereid_bench.layout_ways import LayoutPlan
from nereid_export.bar import progress_bar
from nereid_export.engines.precision import Precision
from nereid_export.layout import LayoutExportOptions, export_layout
from nereid_export.layout_calibrate import CalibrateLayoutOptions, calibrate_layout
from nereid_export.layout_checkpoint import LayoutCheckpoint
from nereid_export.layout_drawing import LayoutDrawer
from nereid_export.layout_w4a8 import STORED
from nereid_export.resume import VERSIONED, Record, resume_key


def exported(plan: LayoutPlan, say: Say) -> Path:
    """A repository with engines that reuse branches, slices and engines that pass over tokens where the checkpoint has them,
    exported and calibrated unless an earlier run has done so."""
    options = LayoutExportOptions(
        checkpoint=plan.checkpoint,
        out=plan.work / "repository",
        engine=plan.engine,
        threads=plan.threads,
        cache=True,
        widths=plan.dynamic,
        tokens=plan.tokens,
    )
    engines = [name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)]
    return _once(plan, options, plan.work / "done.json", engines, say)


def exported_w4a8(plan: LayoutPlan, say: Say) -> Path:
    """The repository in w4a8, whose steps by complexity are calibrated, unless an earlier run has made it; raises ExportError."""
    options = LayoutExportOptions(
        checkpoint=plan.checkpoint, out=plan.work / "w4a8", threads=plan.threads, precision=Precision.W4A8
    )
    return _once(plan, options, plan.work / "w4a8.json", ["onnxruntime"], say, {"stored": list(STORED)})


def _once(
    plan: LayoutPlan,
    options: LayoutExportOptions,
    file: Path,
    engines: Sequence[str],
    say: Say,
    further: Mapping[str, object] = MappingProxyType({}),
) -> Path:
    """Export and calibrate, unless `file` says that it was done with the same checkpoint, options, packages and numbers."""
    source = LayoutCheckpoint.open(options.checkpoint).digest()
    key = resume_key(options, source, (*VERSIONED, *engines), without_effect=("checkpoint", "out"))
    numbers = {"steps": plan.steps, "adaptive": list(plan.fewer), "briefs": plan.calibration_briefs}
    record = Record(file, key | numbers | dict(further))
    if record.read() is not None and options.out.is_dir():
        return options.out
    record.file.unlink(missing_ok=True)
    shutil.rmtree(options.out, ignore_errors=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    say(f"exporting {options.out}")
    with progress_bar() as bar:
        export_layout(options, bar)
    if options.cache or plan.fewer:
        asked = CalibrateLayoutOptions(
            repository=options.out, steps=(plan.steps,), adaptive=plan.fewer, briefs=plan.calibration_briefs
        )
        say(f"calibrating {options.out}")
        with progress_bar() as bar:
            calibrate_layout(asked, bar)
    record.write({})
    return options.out


def engine_megabytes(drawer: LayoutDrawer) -> float:
    """Of the whole transformer's engine."""
    return sum(file.stat().st_size for file in drawer.model.file.parent.glob("model.*")) / 1e6

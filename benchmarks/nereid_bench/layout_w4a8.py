"""The layout transformer of 4-bit weights and 8-bit products, in a repository of its own beside the one in float32."""

from __future__ import annotations

import shutil
from pathlib import Path

from nereid_bench.compare import Say
from nereid_export.bar import progress_bar
from nereid_export.engines.precision import Precision
from nereid_export.layout import LayoutCheckpoint, LayoutExportOptions, export_layout
from nereid_export.layout_drawing import LayoutDrawer
from nereid_export.resume import VERSIONED, Record, resume_key


def exported_w4a8(checkpoint: Path, work: Path, threads: int, say: Say) -> Path:
    """The repository, unless an earlier run has made it; raises ExportError."""
    options = LayoutExportOptions(checkpoint=checkpoint, out=work / "w4a8", threads=threads, precision=Precision.W4A8)
    source = LayoutCheckpoint.open(checkpoint).digest()
    key = resume_key(options, source, (*VERSIONED, "onnxruntime"), without_effect=("checkpoint", "out"))
    record = Record(work / "w4a8.json", key)
    if record.read() is not None and options.out.is_dir():
        return options.out
    record.file.unlink(missing_ok=True)
    shutil.rmtree(options.out, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    say(f"exporting {options.out}")
    with progress_bar() as bar:
        export_layout(options, bar)
    record.write({})
    return options.out


def engine_megabytes(drawer: LayoutDrawer) -> float:
    """Of the whole transformer's engine."""
    return sum(file.stat().st_size for file in drawer.model.file.parent.glob("model.*")) / 1e6

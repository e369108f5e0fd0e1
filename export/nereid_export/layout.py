"""Exports a layout transformer: an engine built and checked against PyTorch, published in the model that runs it.

The engine lies in the version folder of `layout`, whose own process runs it: a call takes a few milliseconds, and a hop through
Triton would cost as much.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from nereid.diffusion.branch_cache import Branch, BranchEngine
from nereid.diffusion.dynamic_width import TokenEngine, WidthEngine, WidthTable
from nereid.engines.engine_files import ENGINE_FILES
from nereid.layout.settings import LAYOUT_FILE
from nereid_export import configs
from nereid_export.assembly import engine_said, link_engine
from nereid_export.auto import Auto, require_auto
from nereid_export.built import Built, build, made_with, packages_of
from nereid_export.calibration import Calibration
from nereid_export.components import Component
from nereid_export.engines import BUILDERS, Engine, require_options
from nereid_export.engines.base import Target
from nereid_export.engines.plan_options import PlanOptions
from nereid_export.engines.precision import Precision
from nereid_export.errors import ExportError
from nereid_export.frame import MANIFEST, MANIFEST_VERSION, Device, Progress, check_name, file_digests, models_of, versions
from nereid_export.layout_checkpoint import CLASS, LayoutCheckpoint
from nereid_export.layout_w4a8 import build_w4a8, require_w4a8
from nereid_export.options import ExportOptions
from nereid_export.publish import adopt, destination, locked, publish, readable_failures, require_space, staging_folder

HOME = "layout"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutExportOptions:
    """One export of a layout transformer."""

    checkpoint: Path
    out: Path
    engine: Engine = Engine.ONNXRUNTIME
    max_batch_size: int = 8
    threads: int = 2
    """Of one call; the library's own choice where 0. Several are tried with engine auto."""
    cache: bool = False
    """Whether there are engines, too, that reuse branches of earlier steps."""
    widths: bool = False
    """Whether there are engines, too, that are slices of a transformer with dynamic width."""
    tokens: bool = False
    """Whether there are engines, too, whose MLPs pass over tokens: of the dynamic transformer, and of its slices."""
    precision: Precision = Precision.FP32
    """That, or w4a8."""
    fine_tune_minutes: float = 0.0
    """Of relation distillation after w4a8's rounding; none where 0."""
    name: str = ""

    def general(self) -> ExportOptions:
        """As what builds engines takes them."""
        plan = PlanOptions() if self.engine is Engine.AUTO else PlanOptions(threads=self.threads)
        return ExportOptions(
            checkpoint=self.checkpoint,
            out=self.out,
            engine=self.engine,
            max_batch_size=self.max_batch_size,
            name=self.name,
            plan=plan,
        )


def export_layout(options: LayoutExportOptions, progress: Progress) -> dict[str, Any]:
    """Export and publish; returns the manifest. Raises ExportError, after which `out` is as it was before."""
    if not 1 <= options.max_batch_size <= 64:
        raise ExportError(f"--max-batch-size: {options.max_batch_size} is not allowed; it must be 1 to 64")
    if options.engine not in (*map(Engine, ENGINE_FILES), Engine.AUTO):
        allowed = ", ".join((*ENGINE_FILES, Engine.AUTO))
        raise ExportError(f"--engine: {options.engine} is not allowed for a layout transformer; it must be one of {allowed}")
    check_name(options.name)
    asked = {"cache": options.cache, "widths": options.widths, "tokens": options.tokens}
    require_w4a8(options.precision, options.engine, options.fine_tune_minutes, **asked)
    options = replace(options, out=destination(options.out))
    checkpoint, general = LayoutCheckpoint.open(options.checkpoint), options.general()
    part, others, table = checkpoint.component(), dict[StrEnum, Component](), None
    if options.tokens:  # the first, since they may be refused
        others.update(checkpoint.tokens(widths=options.widths).items())
    if options.cache:
        others.update(checkpoint.branches().items())
    if options.widths:
        slices, table = checkpoint.widths()
        others.update(slices.items())
    target = Target(
        precision=options.precision,
        device=Device.CPU,
        max_batch_size=options.max_batch_size,
        default_side=1,
        max_side=1,
        scale=1,
        plan=replace(general.plan, compiled_shapes_mib=0),  # as it is served
    )
    require_options(options.engine, general.plan)
    require_auto(general)
    auto = None
    if options.engine is Engine.AUTO:
        auto = Auto.of(general, {part.name: part}, {part.name: target}, guided=False)
    else:
        BUILDERS[options.engine].require(target)
    count = (1 if auto is None else len(auto.targets)) + len(others)
    progress.total(2 * count + 2 + (auto is not None))
    progress.step("reading the checkpoint")
    digest = checkpoint.digest()
    with locked(options.out, lambda: progress.waiting(f"another export writes to {options.out}; waiting for it")):
        staging = staging_folder(options.out)
        with readable_failures(options.out):
            require_space(options.out.parent, 2 * count * checkpoint.weight_bytes())
            staging.mkdir(exist_ok=True)
            folder = staging / "engines" / part.name
            if options.precision is Precision.W4A8:
                built = build_w4a8(part, target, digest, general, folder, progress, options.fine_tune_minutes)
            elif auto is None:
                built = build(part, options.engine, target, digest, general, folder, Calibration(), progress)
            else:
                auto.build(digest, staging, Calibration(), progress)
                auto.measure(progress)
                (built,) = auto.elect(progress.detail)
            chosen = replace(general, engine=built.engine)
            further = dict[StrEnum, Built]()
            for engine, its in others.items():
                folder = staging / "engines" / its.name
                further[engine] = build(its, built.engine, built.target, digest, chosen, folder, Calibration(), progress)
                _refuse_coupled(engine, further[engine])
            progress.step("publishing the repository")
            manifest = _assemble(checkpoint, digest, options, built, further, table, auto, staging / "repository")
            publish(staging / "repository", options.out)
            shutil.rmtree(staging)
    return manifest


def _refuse_coupled(engine: StrEnum, its: Built) -> None:
    """Raise ExportError for an engine in which other rows may change which tokens a row's MLPs pass over."""
    if isinstance(engine, TokenEngine) and its.invariant_from is None:
        raise ExportError(
            f"--tokens: {its.engine} is not allowed here; on this processor a row's bits depend on its company, and so would "
            "the tokens that are passed over"
        )


def _assemble(
    checkpoint: LayoutCheckpoint,
    digest: str,
    options: LayoutExportOptions,
    built: Built,
    further: Mapping[StrEnum, Built],
    table: WidthTable | None,
    auto: Auto | None,
    repository: Path,
) -> dict[str, Any]:
    """Lay the whole repository out, other models of `out` included; returns the manifest."""
    shutil.rmtree(repository, ignore_errors=True)
    repository.mkdir()
    config, every = configs.source_config(HOME), [built, *further.values()]
    config.name = configs.prefixed(HOME, options.name)
    for key, value in {
        "engine": str(built.engine),
        "engine_max_batch_size": str(options.max_batch_size),
        "engine_min_batch_size": str(min(max(one.invariant_from or 1 for one in every), options.max_batch_size)),
        "threads": str(built.target.plan.threads),
    }.items():
        config.parameters[key].string_value = value
    folder = configs.write_model(config, HOME, repository)
    link_engine(built, folder / "1")
    facts: dict[str, Any] = {"scheduler": checkpoint.scheduler}
    if checkpoint.canvas_widths is not None:
        facts["canvas_widths"] = checkpoint.canvas_widths.written()
    for engine, its in further.items():
        link_engine(its, folder / "1" / engine)
        if not isinstance(engine, BranchEngine):
            continue
        blocks, _, width = next(spec.dims for spec in its.component.outputs + its.component.inputs if spec.name in set(Branch))
        facts["branches"] = {"blocks": blocks, "width": width, "calibrations": []}
    if table is not None:
        facts["widths"] = table.written()
    if options.tokens:
        facts["tokens"] = True
    (folder / "1" / LAYOUT_FILE).write_text(json.dumps(facts, indent=1))
    engines = [*([built] if auto is None else auto.built.values()), *further.values()]
    arguments = {name: getattr(options, name) for name in options.__slots__ if name not in ("checkpoint", "out")}
    manifest = {
        "version": MANIFEST_VERSION,
        "source": {"name": options.checkpoint.resolve().name, "sha256": digest, "architecture": CLASS},
        "arguments": {name: str(value) for name, value in arguments.items()},
        "versions": versions(packages_of(*map(made_with, engines))),
        "engines": {config.name: engine_said(built)},
        **_said("branch_engines", further, BranchEngine),
        **_said("width_engines", further, WidthEngine),
        **_said("token_engines", further, TokenEngine),
        **({} if auto is None else {"candidates": {config.name: [row.written() for row in _rows(auto)]}}),
        "models": [config.name],
        "files": file_digests(repository),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    adopt(options.out, repository, {config.name} | models_of(options.out, config.name))
    return manifest


def _said(name: str, further: Mapping[StrEnum, Built], kind: type[StrEnum]) -> dict[str, Any]:
    """What the manifest says of engines of a kind, where there are any."""
    said = {str(engine): engine_said(its) for engine, its in further.items() if isinstance(engine, kind)}
    return {name: said} if said else {}


def _rows(auto: Auto) -> list[Any]:
    (contest,) = auto.contests.values()
    return contest.rows

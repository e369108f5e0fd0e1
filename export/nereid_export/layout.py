"""Exports a layout transformer: an engine built and checked against PyTorch, published in the model that runs it.

The engine lies in the version folder of `layout`, whose own process runs it: a call takes a few milliseconds, and a hop through
Triton would cost as much.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from nereid.diffusion.branch_cache import Branch, BranchEngine
from nereid.diffusion.dynamic_width import WidthEngine, WidthTable
from nereid.diffusion.solvers import ScheduleError, SchedulerConfig
from nereid.engines.engine_files import ENGINE_FILES
from nereid.layout.settings import LAYOUT_FILE
from nereid_export import configs
from nereid_export.assembly import engine_said, link_engine
from nereid_export.auto import Auto, require_auto
from nereid_export.built import Built, build, made_with, packages_of
from nereid_export.calibration import Calibration
from nereid_export.checkpoint import check_weights, file_digest, read_json, understood, weights_in
from nereid_export.components import Component
from nereid_export.engines import BUILDERS, Engine, require_options
from nereid_export.engines.base import Target
from nereid_export.engines.plan_options import PlanOptions
from nereid_export.engines.precision import Precision
from nereid_export.errors import ExportError
from nereid_export.frame import MANIFEST, MANIFEST_VERSION, Device, Progress, check_name, file_digests, models_of, versions
from nereid_export.layout_w4a8 import build_w4a8, require_w4a8
from nereid_export.options import ExportOptions
from nereid_export.publish import adopt, destination, locked, publish, readable_failures, require_space, staging_folder

HOME = "layout"
_CLASS, _ARCHITECTURE = "LayoutPipeline", ["nereid_zoo.layout.model", "LayoutTransformer"]
_PARTS = ("transformer", "scheduler")
_DYNAMIC = "dynamic_transformer"
"""Where the weights of slices lie, in a folder as `nereid zoo train layout-dynamic` writes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutExportOptions:
    """One export of a layout transformer."""

    checkpoint: Path
    out: Path
    engine: Engine = Engine.ONNXRUNTIME
    max_batch_size: int = 8
    threads: int = 1
    """Of one call; the library's own choice where 0. Several are tried with engine auto."""
    cache: bool = False
    """Whether there are engines, too, that reuse branches of earlier steps."""
    widths: bool = False
    """Whether there are engines, too, that are slices of a transformer with dynamic width."""
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


@dataclass(frozen=True, slots=True)
class LayoutCheckpoint:
    """A diffusers folder as `nereid zoo train layout` writes it, looked through and found exportable."""

    folder: Path
    scheduler: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> LayoutCheckpoint:
        """Look the folder through without loading weights; raises ExportError with what is wrong."""
        if not (folder / "model_index.json").is_file():
            raise ExportError(f"{folder} has no model_index.json; it must be a folder as `nereid zoo train layout` writes it")
        index = read_json(folder / "model_index.json")
        if index.get("_class_name") != _CLASS or index.get("transformer") != _ARCHITECTURE:
            found = f"{index.get('_class_name')!r} with transformer {index.get('transformer')!r}"
            raise ExportError(f"{folder}: architecture {found} is not supported; it must be a {_CLASS} with {_ARCHITECTURE}")
        for part in _PARTS:
            if not (folder / part).is_dir():
                raise ExportError(f"{folder} has no {part}/, which a {_CLASS} needs")
        for part in _weighty(folder):
            read_json(folder / part / "config.json")
            check_weights(folder / part)
        scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
        try:
            flow = SchedulerConfig.from_diffusers(scheduler).flow
        except ScheduleError as error:
            raise ExportError(f"{folder / 'scheduler'}: {error}") from None
        if not flow:
            kind = scheduler.get("_class_name")
            raise ExportError(f"{folder / 'scheduler'}: {kind} is not allowed; a layout transformer is a rectified flow's")
        return cls(folder, dict(scheduler))

    def digest(self) -> str:
        """SHA-256 over all files that are read, names included."""
        total = hashlib.sha256()
        files = [self.folder / "model_index.json"]
        parts = (*_weighty(self.folder), "scheduler")
        files += [file for part in parts for file in sorted((self.folder / part).iterdir()) if file.is_file()]
        for file in files:
            total.update(f"{file.relative_to(self.folder)}\0{file_digest(file)}".encode())
        return total.hexdigest()

    def weight_bytes(self) -> int:
        return sum(file.stat().st_size for file in weights_in(self.folder / "transformer"))

    def component(self) -> Component:
        """Raises ExportError where the architecture's package is not installed, or does not fit the weights."""
        with architecture("nereid export layout"):
            from nereid_zoo.layout.component import layout_component
        return self._understood(layout_component(self.folder))

    def branches(self) -> dict[BranchEngine, Component]:
        """The engines that reuse branches of earlier steps; raises ExportError as `component` does."""
        with architecture("nereid export layout"):
            from nereid_zoo.layout.component import branch_components
        return {engine: self._understood(part) for engine, part in branch_components(self.folder).items()}

    def widths(self) -> tuple[dict[WidthEngine, Component], WidthTable]:
        """The slices, and which of them a timestep calls; raises ExportError as `component` does, and where there are none."""
        if _DYNAMIC not in _weighty(self.folder):
            raise ExportError(
                f"--widths: {self.folder} is not allowed; it has no {_DYNAMIC}/, which `nereid zoo train layout-dynamic` writes"
            )
        with architecture("nereid export layout"):
            from nereid_zoo.layout.component import width_components
        parts, table = _understood(self.folder / _DYNAMIC, lambda: width_components(self.folder))
        return {engine: self._understood(part) for engine, part in parts.items()}, table

    def _understood(self, part: Component) -> Component:
        return replace(part, load=lambda: _understood(self.folder / part.source, part.load))


def _weighty(folder: Path) -> tuple[str, ...]:
    """Parts that have weights."""
    return ("transformer", _DYNAMIC) if (folder / _DYNAMIC).is_dir() else ("transformer",)


@contextmanager
def architecture(command: str) -> Iterator[None]:
    """Raise ExportError, for this command, where the body cannot import the layout transformer's package."""
    try:
        yield
    except ImportError:
        raise ExportError(
            f"{command} needs the package nereid-zoo, which has the transformer's architecture; install it (README, Install)"
        ) from None


def _understood(folder: Path, load: Callable[[], Any]) -> Any:
    with understood(folder):
        return load()


def export_layout(options: LayoutExportOptions, progress: Progress) -> dict[str, Any]:
    """Export and publish; returns the manifest. Raises ExportError, after which `out` is as it was before."""
    if not 1 <= options.max_batch_size <= 64:
        raise ExportError(f"--max-batch-size: {options.max_batch_size} is not allowed; it must be 1 to 64")
    if options.engine not in (*map(Engine, ENGINE_FILES), Engine.AUTO):
        allowed = ", ".join((*ENGINE_FILES, Engine.AUTO))
        raise ExportError(f"--engine: {options.engine} is not allowed for a layout transformer; it must be one of {allowed}")
    check_name(options.name)
    require_w4a8(options.precision, options.engine, options.fine_tune_minutes, cache=options.cache, widths=options.widths)
    options = replace(options, out=destination(options.out))
    checkpoint, general = LayoutCheckpoint.open(options.checkpoint), options.general()
    part, others, table = checkpoint.component(), dict[StrEnum, Component](), None
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
            further = {
                engine: build(
                    its, built.engine, built.target, digest, chosen, staging / "engines" / its.name, Calibration(), progress
                )
                for engine, its in others.items()
            }
            progress.step("publishing the repository")
            manifest = _assemble(checkpoint, digest, options, built, further, table, auto, staging / "repository")
            publish(staging / "repository", options.out)
            shutil.rmtree(staging)
    return manifest


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
    for engine, its in further.items():
        link_engine(its, folder / "1" / engine)
        if not isinstance(engine, BranchEngine):
            continue
        blocks, _, width = next(spec.dims for spec in its.component.outputs + its.component.inputs if spec.name in set(Branch))
        facts["branches"] = {"blocks": blocks, "width": width, "calibrations": []}
    if table is not None:
        facts["widths"] = table.written()
    (folder / "1" / LAYOUT_FILE).write_text(json.dumps(facts, indent=1))
    engines = [*([built] if auto is None else auto.built.values()), *further.values()]
    arguments = {name: getattr(options, name) for name in options.__slots__ if name not in ("checkpoint", "out")}
    manifest = {
        "version": MANIFEST_VERSION,
        "source": {"name": options.checkpoint.resolve().name, "sha256": digest, "architecture": _CLASS},
        "arguments": {name: str(value) for name, value in arguments.items()},
        "versions": versions(packages_of(*map(made_with, engines))),
        "engines": {config.name: engine_said(built)},
        **_said("branch_engines", further, BranchEngine),
        **_said("width_engines", further, WidthEngine),
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

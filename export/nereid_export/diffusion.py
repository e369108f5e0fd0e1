"""Exports a diffusion checkpoint: engines built and checked one by one (resumable), then the repository published at once."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nereid.diffusion.settings import PIPELINE_FILE
from nereid.diffusion.solvers import default_scheduler
from nereid_export import configs
from nereid_export.checkpoint import Checkpoint, understood
from nereid_export.clip_tokenizers import read_tokenizers, write_tokenizers
from nereid_export.components import Component, components_of, sizes_at
from nereid_export.engines import BUILDERS, Engine, require_options
from nereid_export.engines.base import (
    ERROR_BOUNDS,
    Check,
    EngineBuilder,
    Precision,
    Target,
    batch_invariant_from,
    compare,
    engine_bytes,
    reference_outputs,
    refuse_above_bound,
    require_precision,
)
from nereid_export.engines.plan_options import PlanOptions
from nereid_export.errors import ExportError
from nereid_export.facts import pipeline_facts
from nereid_export.frame import MANIFEST, MANIFEST_VERSION, Device, Progress, check_name, file_digests, models_of, versions
from nereid_export.memory import measure_memory, run_memories
from nereid_export.preview import fit_latents_to_rgb
from nereid_export.publish import adopt, locked, publish, readable_failures, require_space, staging_folder
from nereid_export.resume import RECORD, Record, resume_key

VERSIONED = ("torch", "diffusers", "transformers", "numpy")
"""Whose versions shape every engine; each engine adds its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What `nereid export diffusion` was asked for."""

    checkpoint: Path
    out: Path
    engine: Engine = Engine.ONNXRUNTIME
    precision: Precision = Precision.FP32
    device: Device = Device.CPU
    max_batch_size: int = 8
    name: str = ""
    max_side: int = 1024
    plan: PlanOptions = field(default_factory=PlanOptions)


@dataclass(slots=True)
class Built:
    """One engine in the staging folder."""

    component: Component
    target: Target
    folder: Path
    checks: list[Check] = field(default_factory=list)
    seconds: float = 0.0
    memory: dict[str, Any] | None = None
    """What its runs need, where that was measured."""
    invariant_from: int | None = None
    """Rows of a call from which on each has the same bits in any company; None where it never has."""
    unchecked: str | None = None
    """Why it was not compared with PyTorch; None where it was."""
    plan: dict[str, Any] | None = None
    """What the engine's library says that it has built, where it does."""
    resumed: bool = False

    def figures(self) -> dict[str, Any]:
        """What a resumed export reads instead of building it."""
        kept = {name: getattr(self, name) for name in ("seconds", "memory", "invariant_from", "unchecked", "plan")}
        return {"checks": [asdict(check) for check in self.checks], **kept}


def export_diffusion(options: ExportOptions, progress: Progress) -> dict[str, Any]:
    """Export and publish; returns the manifest. Raises ExportError, after which `out` is as it was before."""
    if not 1 <= options.max_batch_size <= 256:
        raise ExportError(f"--max-batch-size: {options.max_batch_size} is not allowed; it must be 1 to 256")
    check_name(options.name)
    checkpoint = Checkpoint.open(options.checkpoint)
    builder = BUILDERS[options.engine]
    require_precision(options.engine, builder, options.precision)
    require_options(options.engine, options.plan)
    with understood(checkpoint.folder):
        parts = components_of(checkpoint)
        sizes = pipeline_facts(checkpoint, [])  # refuses scheduler settings before anything slow begins
        read_tokenizers(checkpoint)
    targets = {part.name: _target(part, options, sizes) for part in parts}
    for target in targets.values():
        builder.require(target)
    progress.total(2 * len(parts) + 3)
    progress.step("reading the checkpoint")
    digest = checkpoint.digest()
    with locked(options.out, lambda: progress.waiting(f"another export writes to {options.out}; waiting for it")):
        staging = staging_folder(options.out)
        with readable_failures(options.out):
            size = 4 if options.precision is Precision.FP32 else 2
            require_space(options.out.parent, checkpoint.weight_bytes() * size // _bytes_per_weight(checkpoint))
            staging.mkdir(exist_ok=True)
            built = [_build(part, targets[part.name], digest, options, staging, progress) for part in parts]
            progress.step("fitting the preview colours")
            facts = pipeline_facts(checkpoint, fit_latents_to_rgb(_vae_encoder(parts)))
            progress.step("publishing the repository")
            manifest = _assemble(checkpoint, digest, options, built, facts, staging / "repository")
            publish(staging / "repository", options.out)
            shutil.rmtree(staging)
    return manifest


def _bytes_per_weight(checkpoint: Checkpoint) -> int:
    from safetensors import safe_open

    with safe_open(checkpoint.weights("unet")[0], framework="np") as opened:
        name = next(iter(opened.keys()))
        return {"F16": 2, "BF16": 2, "F64": 8}.get(opened.get_slice(name).get_dtype(), 4)


def _vae_encoder(parts: tuple[Component, ...]) -> Any:
    return next(part for part in parts if part.name == "vae_encoder").load()


def _target(component: Component, options: ExportOptions, facts: dict[str, Any]) -> Target:
    return Target(
        precision=options.precision,
        device=options.device,
        max_batch_size=_engine_rows(component, options.max_batch_size),
        default_side=facts["default_width"],
        max_side=options.max_side,
        scale=facts["vae_scale_factor"],
        plan=options.plan,
    )


def _build(component: Component, target: Target, digest: str, options: ExportOptions, staging: Path, progress: Progress) -> Built:
    """Build and check one engine, unless an interrupted export has done so already."""
    builder = BUILDERS[options.engine]
    folder = staging / "engines" / component.name
    record = Record(
        folder / RECORD, resume_key(options, digest, _packages(builder), without_effect=("checkpoint", "out", "name"))
    )
    unchecked = builder.unchecked(target)
    # What was built where it could not be run is built and checked again where it can.
    if (done := record.read()) is not None and done["unchecked"] == unchecked:
        progress.step(f"{component.name}: built before")
        progress.step(f"{component.name}: {'not checked' if unchecked else 'checked before'}")
        figures = {**done, "checks": [Check(**check) for check in done["checks"]]}
        return Built(component, target, folder, **figures, resumed=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.monotonic()
    progress.step(f"{component.name}: exporting")
    module = component.load()
    references = [] if unchecked else reference_outputs(component, module)
    built = Built(component, target, folder, unchecked=unchecked, plan=builder.build(component, module, folder, target))
    del module
    if unchecked:
        progress.step(f"{component.name}: not checked against PyTorch")
    else:
        progress.step(f"{component.name}: checking against PyTorch")
        run = builder.load(component, folder, target)
        built.checks = compare(references, run)
        refuse_above_bound(component, built.checks, target.of(component))
        built.invariant_from = batch_invariant_from(component, run, _places(component, target))
        del run
    built.memory = measure_memory(component, folder / builder.filename, target, builder.probe(component, target))
    built.seconds = round(time.monotonic() - start, 1)
    record.write(built.figures())
    return built


def _places(component: Component, target: Target) -> list[tuple[int, dict[str, int]]]:
    """Where rows are compared in different company: small pictures, and the usual ones for the engine whose rows are packed."""
    rows = min(8, target.max_batch_size)
    places = [(rows, sizes) for _, sizes in component.checks]
    if component.name == "unet":
        places.append((min(4, rows), sizes_at(component, target.default_side, target.scale)))
    return places


def _packages(builder: EngineBuilder) -> tuple[str, ...]:
    return (*VERSIONED, *builder.packages)


def _engine_rows(component: Component, max_batch_size: int) -> int:
    """Guidance doubles the rows of the UNet; prompt and negative prompt meet in the text encoders' batches."""
    return 2 * max_batch_size if component.name == "unet" or component.name.startswith("text_encoder") else max_batch_size


def _assemble(
    checkpoint: Checkpoint,
    digest: str,
    options: ExportOptions,
    built: list[Built],
    facts: dict[str, Any],
    repository: Path,
) -> dict[str, Any]:
    """Lay the whole repository out in `repository`, other pipelines' models of `out` included."""
    shutil.rmtree(repository, ignore_errors=True)
    repository.mkdir()
    made = configs.pipeline_configs(
        prefix=options.name,
        family=checkpoint.family,
        channels=facts["latent_channels"],
        max_batch_size=options.max_batch_size,
        force_zeros=facts["force_zeros_for_empty_prompt"],
        unet_min_rows=next(engine.invariant_from or 1 for engine in built if engine.component.name == "unet"),
    )
    for source, config in made.items():
        configs.write_model(config, source, repository)
    for engine in built:
        config = configs.engine_config(engine.component, BUILDERS[options.engine], engine.target, prefix=options.name)
        folder = repository / config.name
        configs.write_config(config, folder)
        (folder / "1").mkdir()
        for file in sorted(engine.folder.glob("model.*")):
            # A link, so that an export interrupted from here on still finds its engine.
            (folder / "1" / file.name).hardlink_to(file)
    text = json.dumps({**facts, "memory": run_memories({engine.component.name: engine.memory for engine in built})}, indent=1)
    for model in ("denoise", "image_output", "text_to_image_stream", "tokenizer"):
        (repository / configs.prefixed(model, options.name) / "1" / PIPELINE_FILE).write_text(text)
    write_tokenizers(checkpoint, repository / configs.prefixed("tokenizer", options.name) / "1")
    ours = {model.name for model in repository.iterdir()}
    home = repository / configs.prefixed("text_to_image", options.name)
    manifest = _manifest(checkpoint, digest, options, built, repository)
    (home / MANIFEST).write_text(json.dumps(manifest, indent=1))
    adopt(options.out, repository, ours | models_of(options.out, configs.prefixed("text_to_image", options.name)))
    return manifest


def _manifest(
    checkpoint: Checkpoint,
    digest: str,
    options: ExportOptions,
    built: list[Built],
    repository: Path,
) -> dict[str, Any]:
    default = str(default_scheduler(checkpoint.config("scheduler")))
    given = {**asdict(options), **options.plan.asked()}
    arguments = {key: str(value) for key, value in given.items() if key not in ("checkpoint", "out", "plan")}
    return {
        "version": MANIFEST_VERSION,
        "source": {
            "name": options.checkpoint.resolve().name,
            "sha256": digest,
            "architecture": checkpoint.index["_class_name"],
        },
        # Where a class has no solver here, requests that name none are served by another one.
        "scheduler": {"checkpoint": checkpoint.config("scheduler").get("_class_name"), "default": default},
        "arguments": arguments,
        "versions": versions(_packages(BUILDERS[options.engine])),
        "engines": {
            configs.prefixed(engine.component.name, options.name): {
                "engine": str(options.engine),
                "precision": str(engine.target.of(engine.component)),
                "bytes": engine_bytes(engine.folder),
                "seconds": engine.seconds,
                **_findings(engine),
                **({} if engine.memory is None else {"memory": engine.memory}),
                **({} if engine.plan is None else {"plan": engine.plan}),
            }
            for engine in built
        },
        "models": sorted(folder.name for folder in repository.iterdir()),
        "files": file_digests(repository),
    }


def _findings(engine: Built) -> dict[str, Any]:
    """What the check has found, or why there was none."""
    if engine.unchecked:
        return {"checked": False, "reason": engine.unchecked}
    return {
        "checked": True,
        "error_bound": ERROR_BOUNDS[engine.target.of(engine.component)],
        "batch_invariant_from_rows": engine.invariant_from,
        "checks": [asdict(check) for check in engine.checks],
    }

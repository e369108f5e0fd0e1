"""Exports a diffusion checkpoint: engines built and checked one by one (resumable), then the repository published at once."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from nereid.diffusion.families import family_of
from nereid.diffusion.prompts import SETTINGS_FILE
from nereid.diffusion.settings import PIPELINE_FILE
from nereid.diffusion.solvers import default_scheduler
from nereid_export import configs, onnx_engine, tensorrt_engine
from nereid_export.checkpoint import Checkpoint, understood
from nereid_export.components import Component, components_of
from nereid_export.errors import ExportError
from nereid_export.facts import pipeline_facts
from nereid_export.frame import MANIFEST, MANIFEST_VERSION, Device, Progress, check_name, file_digests, models_of, versions
from nereid_export.memory import measure_memory, run_memories
from nereid_export.onnx_engine import Check, Precision
from nereid_export.preview import fit_latents_to_rgb
from nereid_export.publish import adopt, locked, publish, readable_failures, require_space, staging_folder
from nereid_export.resume import RECORD, Record, resume_key
from nereid_export.silence import quiet

VERSIONED = ("torch", "diffusers", "transformers", "onnx", "onnxruntime", "numpy")


class Engine(StrEnum):
    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"


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


@dataclass(slots=True)
class Built:
    """One engine in the staging folder."""

    component: Component
    folder: Path
    checks: list[Check] = field(default_factory=list)
    seconds: float = 0.0
    memory: dict[str, Any] | None = None
    """What its runs need, where that was measured."""
    resumed: bool = False


def export_diffusion(options: ExportOptions, progress: Progress) -> dict[str, Any]:
    """Export and publish; returns the manifest. Raises ExportError, after which `out` is as it was before."""
    if not 1 <= options.max_batch_size <= 256:
        raise ExportError(f"--max-batch-size: {options.max_batch_size} is not allowed; it must be 1 to 256")
    check_name(options.name)
    checkpoint = Checkpoint.open(options.checkpoint)
    if options.engine is Engine.TENSORRT:
        tensorrt_engine.import_tensorrt()
    with understood(checkpoint.folder):
        parts = components_of(checkpoint)
        pipeline_facts(checkpoint, [])  # refuses scheduler settings before anything slow begins
        read_tokenizers(checkpoint)
    progress.total(2 * len(parts) + 3)
    progress.step("reading the checkpoint")
    digest = checkpoint.digest()
    with locked(options.out, lambda: progress.waiting(f"another export writes to {options.out}; waiting for it")):
        staging = staging_folder(options.out)
        with readable_failures(options.out):
            size = 4 if options.precision is Precision.FP32 else 2
            require_space(options.out.parent, checkpoint.weight_bytes() * size // _bytes_per_weight(checkpoint))
            staging.mkdir(exist_ok=True)
            built = [_build(component, checkpoint, digest, options, staging, progress) for component in parts]
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


def _build(
    component: Component, checkpoint: Checkpoint, digest: str, options: ExportOptions, staging: Path, progress: Progress
) -> Built:
    """Build and check one engine, unless an interrupted export has done so already."""
    folder = staging / "engines" / component.name
    record = Record(
        folder / RECORD, resume_key(options, digest, _packages(options), without_effect=("checkpoint", "out", "name"))
    )
    if (done := record.read()) is not None:
        progress.step(f"{component.name}: built before")
        progress.step(f"{component.name}: checked before")
        checks = [Check(**check) for check in done["checks"]]
        return Built(component, folder, checks, done["seconds"], done["memory"], resumed=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start = time.monotonic()
    progress.step(f"{component.name}: exporting")
    module = component.load()
    references = onnx_engine.reference_outputs(component, module)
    graph = folder / "model.onnx"
    onnx_engine.export_onnx(component, module, graph, options.precision)
    del module
    progress.step(f"{component.name}: checking against PyTorch")
    if options.engine is Engine.TENSORRT:
        checks = _build_tensorrt(component, checkpoint, options, graph, references)
    else:
        checks = onnx_engine.compare(
            references, lambda inputs, outputs: onnx_engine.run_onnx(graph, options.device, inputs, outputs)
        )
    onnx_engine.refuse_above_bound(component, checks, options.precision)
    memory = None
    if options.engine is Engine.ONNXRUNTIME and options.device is Device.CPU:
        facts = pipeline_facts(checkpoint, [])
        memory = measure_memory(component, graph, facts["default_width"], facts["vae_scale_factor"])
    seconds = round(time.monotonic() - start, 1)
    record.write({"checks": [asdict(check) for check in checks], "seconds": seconds, "memory": memory})
    return Built(component, folder, checks, seconds, memory)


def _packages(options: ExportOptions) -> tuple[str, ...]:
    """What shapes an engine; a plan is only read by the TensorRT that wrote it."""
    return (*VERSIONED, "tensorrt") if options.engine is Engine.TENSORRT else VERSIONED


def _build_tensorrt(
    component: Component,
    checkpoint: Checkpoint,
    options: ExportOptions,
    graph: Path,
    references: list[onnx_engine.Reference],
) -> list[Check]:
    facts = pipeline_facts(checkpoint, [])
    rows = _engine_rows(component, options.max_batch_size)
    profile = tensorrt_engine.profile_range(component, rows, facts["default_width"], options.max_side, facts["vae_scale_factor"])
    plan = graph.with_name("model.plan")
    tensorrt_engine.build_plan(component, graph, plan, options.precision, profile)
    checks = onnx_engine.compare(references, lambda inputs, outputs: tensorrt_engine.run_plan(plan, inputs, outputs))
    for file in list(graph.parent.glob("model.onnx*")):
        file.unlink()
    return checks


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
    )
    for source, config in made.items():
        folder = repository / config.name
        configs.write_config(config, folder)
        shutil.copytree(configs.SOURCE / source / "1", folder / "1", ignore=shutil.ignore_patterns("__pycache__"))
    for engine in built:
        config = configs.engine_config(
            engine.component,
            prefix=options.name,
            max_batch_size=_engine_rows(engine.component, options.max_batch_size),
            engine=options.engine,
            device=options.device,
        )
        folder = repository / config.name
        configs.write_config(config, folder)
        (folder / "1").mkdir()
        for file in sorted(engine.folder.glob("model.*")):
            # A link, so that an export interrupted from here on still finds its engine.
            (folder / "1" / file.name).hardlink_to(file)
    text = json.dumps({**facts, "memory": run_memories({engine.component.name: engine.memory for engine in built})}, indent=1)
    for model in ("denoise", "text_to_image_stream", "tokenizer"):
        (repository / configs.prefixed(model, options.name) / "1" / PIPELINE_FILE).write_text(text)
    _write_tokenizers(checkpoint, repository / configs.prefixed("tokenizer", options.name) / "1")
    ours = {model.name for model in repository.iterdir()}
    home = repository / configs.prefixed("text_to_image", options.name)
    manifest = _manifest(checkpoint, digest, options, built, repository)
    (home / MANIFEST).write_text(json.dumps(manifest, indent=1))
    adopt(options.out, repository, ours | models_of(options.out, configs.prefixed("text_to_image", options.name)))
    return manifest


def read_tokenizers(checkpoint: Checkpoint) -> dict[str, Any]:
    """The tokenizers by their folders' names; raises ExportError for one that cannot be read."""
    from transformers import CLIPTokenizerFast

    found = {}
    for name in (encoder.tokenizer for encoder in family_of(checkpoint.family).encoders):
        with understood(checkpoint.folder / name), quiet():
            found[name] = CLIPTokenizerFast.from_pretrained(checkpoint.folder / name)
    return found


def _write_tokenizers(checkpoint: Checkpoint, folder: Path) -> None:
    for name, tokenizer in read_tokenizers(checkpoint).items():
        target = folder / name
        target.mkdir()
        tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))
        encoder = checkpoint.config(name.replace("tokenizer", "text_encoder"))
        length = min(tokenizer.model_max_length, int(encoder["max_position_embeddings"]))
        settings = {"model_max_length": length, "pad_token_id": tokenizer.pad_token_id}
        (target / SETTINGS_FILE).write_text(json.dumps(settings))


def _manifest(
    checkpoint: Checkpoint, digest: str, options: ExportOptions, built: list[Built], repository: Path
) -> dict[str, Any]:
    default = str(default_scheduler(checkpoint.config("scheduler")))
    arguments = {key: str(value) for key, value in asdict(options).items() if key not in ("checkpoint", "out")}
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
        "versions": versions(_packages(options)),
        "engines": {
            configs.prefixed(engine.component.name, options.name): {
                "precision": str(Precision.FP32 if engine.component.keep_fp32 else options.precision),
                "error_bound": onnx_engine.ERROR_BOUNDS[Precision.FP32 if engine.component.keep_fp32 else options.precision],
                "checks": [asdict(check) for check in engine.checks],
                "seconds": engine.seconds,
                **({} if engine.memory is None else {"memory": engine.memory}),
            }
            for engine in built
        },
        "models": sorted(folder.name for folder in repository.iterdir()),
        "files": file_digests(repository),
    }

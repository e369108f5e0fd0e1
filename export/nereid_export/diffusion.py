"""Exports a diffusion checkpoint: engines built and checked one by one (resumable), then the repository published at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nereid.diffusion.feature_cache import Variant
from nereid_export.assembly import Assembly
from nereid_export.auto import Auto, require_auto
from nereid_export.built import Built, build, made_with, packages_of
from nereid_export.calibration import PROMPTS, Calibration, calibrate, drawn_prompts, read_prompts
from nereid_export.checkpoint import Checkpoint, understood
from nereid_export.clip_tokenizers import read_tokenizers
from nereid_export.components import Component, components_of
from nereid_export.drawing import Drawer, pipeline_of
from nereid_export.engines import BUILDERS, Engine, require_options
from nereid_export.engines.base import Target, require_buckets, require_precision
from nereid_export.engines.check import Run, random_inputs
from nereid_export.engines.precision import Precision, require_components
from nereid_export.errors import ExportError
from nereid_export.facts import pipeline_facts
from nereid_export.frame import Progress, check_name, versions
from nereid_export.gate import SCORED, check_pictures, compare_decoders, psnr_bound, refuse_pipeline, score
from nereid_export.options import ExportOptions
from nereid_export.preview import fit_latents_to_rgb
from nereid_export.publish import destination, locked, publish, readable_failures, require_space, staging_folder
from nereid_export.resume import VERSIONED, Record, resume_key
from nereid_export.scorers import Scorer, scorer_for
from nereid_export.split_unet import require_equal


def export_diffusion(options: ExportOptions, progress: Progress) -> dict[str, Any]:
    """Export and publish; returns the manifest. Raises ExportError, after which `out` is as it was before."""
    if not 1 <= options.max_batch_size <= 256:
        raise ExportError(f"--max-batch-size: {options.max_batch_size} is not allowed; it must be 1 to 256")
    check_name(options.name)
    options = replace(options, out=destination(options.out))
    checkpoint = Checkpoint.open(options.checkpoint, options.lora, cache_branch=options.cache_branch, tiny_vae=options.tiny_vae)
    if options.engine is not Engine.AUTO:
        for precision in options.precision.all:
            require_precision(options.engine, BUILDERS[options.engine], precision)
    require_options(options.engine, options.plan)
    require_auto(options)
    prompts = None if options.calibration_prompts is None else read_prompts(options.calibration_prompts)
    with understood(checkpoint.folder):
        parts = {part.name: part for part in components_of(checkpoint)}
        sizes = pipeline_facts(checkpoint, [])  # refuses scheduler settings before anything slow begins
        tokenizers = read_tokenizers(checkpoint)
    require_components(options.precision, tuple(parts))
    targets = {name: _target(part, options, sizes) for name, part in parts.items()}
    for target in targets.values():
        require_buckets(target)
    auto, planned = None, [(part, targets[name]) for name, part in parts.items()]
    if options.engine is Engine.AUTO:
        auto = Auto.of(options, parts, targets, guided=float(sizes["default_guidance"]) > 1 and not sizes["time_cond_proj_dim"])
        planned = auto.targets
    else:
        for target in targets.values():
            BUILDERS[options.engine].require(target)
    lower = {part.name for part, target in planned if target.of(part) is not Precision.FP32}
    below = bool(lower)
    tiny = checkpoint.tiny_vae is not None
    if prompts is not None and not (below or tiny):
        raise ExportError(
            "--calibration-prompts: a file is not allowed with --precision fp32, for which no pictures are drawn; leave it out"
        )
    progress.total(2 * len(planned) + 3 + 2 * below + tiny + (len(parts) if auto else 0))
    progress.step("reading the checkpoint")
    digest = checkpoint.digest()
    scorer = scorer_for(checkpoint.folder)
    with locked(options.out, lambda: progress.waiting(f"another export writes to {options.out}; waiting for it")):
        staging = staging_folder(options.out)
        with readable_failures(options.out):
            require_space(options.out.parent, _bytes_needed(checkpoint, planned, copies=len(planned) / len(parts)))
            staging.mkdir(exist_ok=True)
            calibration, reference = Calibration(), _Reference(checkpoint)
            if (below or tiny) and prompts is None:
                prompts = tuple(scorer.prompts(PROMPTS)) if scorer else drawn_prompts(next(iter(tokenizers.values())))
            if options.cache_branch is not None:
                progress.detail("comparing the UNet's outer part with the whole")
                _require_split(parts)
            decoders = None
            if tiny and prompts is not None:
                progress.step("comparing the decoders' pictures")
                decoders = _compared_decoders(reference, prompts, digest, scorer, staging, progress)
            if below and prompts is not None:
                progress.step("drawing pictures with PyTorch")
                folder = staging / "calibration"
                calibration = calibrate(
                    reference.drawer,
                    pipeline_of(checkpoint),
                    prompts,
                    folder,
                    digest if options.cache_branch is None else f"{digest} {options.cache_branch}",
                    progress.detail,
                    whole_runs="unet" in lower,
                )
            reference.forget()
            if auto:
                auto.build(digest, staging, calibration, progress)
                auto.measure(progress)
                built = auto.elect(progress.detail)
            else:
                engines = staging / "engines"
                built = [
                    build(part, options.engine, targets[name], digest, options, engines / name, calibration, progress)
                    for name, part in parts.items()
                ]
            if below:
                progress.step("checking whole pictures")
            pictures = None
            while chosen_below := _below(built):
                try:
                    pictures = _checked_pictures(reference, built, digest, options, calibration, scorer, staging, progress)
                    if pictures is not None:
                        refuse_pipeline(pictures, chosen_below)
                    break
                except ExportError as error:
                    if auto is None:
                        raise
                    auto.drop_coarsest(built, str(error))
                    built, pictures = auto.elect(progress.detail), None
            progress.step("fitting the preview colours")
            facts = pipeline_facts(checkpoint, fit_latents_to_rgb(_vae_encoder(parts)))
            progress.step("publishing the repository")
            assembly = Assembly(
                checkpoint=checkpoint,
                digest=digest,
                options=options,
                built=built,
                facts=facts,
                pictures=pictures,
                decoders=decoders,
                auto=auto,
            )
            manifest = assembly.write(staging / "repository")
            publish(staging / "repository", options.out)
            shutil.rmtree(staging)
    return manifest


def _require_split(parts: Mapping[str, Component]) -> None:
    """Raise ExportError where the UNet's outer part is not the whole with fresh features."""
    whole, outer = parts[Variant.FULL], parts[Variant.SHALLOW]
    inputs = random_inputs(whole, 2, dict(whole.checks[-1][1]), 3)
    places = [list(inputs).index(spec.name) for spec in outer.inputs[:-1]]
    require_equal(whole.load(), outer.load(), list(inputs.values()), places)


def _vae_encoder(parts: Mapping[str, Component]) -> Any:
    return parts["vae_encoder"].load()


def _target(component: Component, options: ExportOptions, facts: dict[str, Any]) -> Target:
    return Target(
        precision=options.precision.of(component.name),
        device=options.device,
        max_batch_size=options.engine_rows(component.name),
        default_side=facts["default_width"],
        max_side=options.max_side,
        scale=facts["vae_scale_factor"],
        plan=options.plan,
    )


def _below(built: Sequence[Built]) -> tuple[Precision, ...]:
    """Precisions below float32, each once."""
    precisions = (engine.target.of(engine.component) for engine in built)
    return tuple(dict.fromkeys(precision for precision in precisions if precision is not Precision.FP32))


class _Reference:
    """The checkpoint's pictures by PyTorch in float32; the modules are in memory only while somebody draws."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._drawer: Drawer | None = None
        self._score: float | None = None

    def drawer(self) -> Drawer:
        if self._drawer is None:
            self._drawer = Drawer.by_torch(self.checkpoint)
        return self._drawer

    def score(self, scorer: Scorer, told: Callable[[str], None]) -> float:
        """Percent of its pictures that are right; counted once."""
        if self._score is None:
            self._score = score(self.drawer(), scorer, "scoring PyTorch's pictures", told)
            self.forget()
        return self._score

    def scored(self, percent: float) -> None:
        """Its pictures were counted by somebody else."""
        self._score = percent

    def forget(self) -> None:
        self._drawer = None


def _compared_decoders(
    reference: _Reference, prompts: Sequence[str], digest: str, scorer: Scorer | None, staging: Path, progress: Progress
) -> dict[str, Any]:
    """What the tiny decoder costs, found now or by an interrupted export."""
    scored_by = scorer.name if scorer else None
    key = {"prompts": list(prompts), "source": digest, "scored_by": scored_by, "versions": versions(VERSIONED)}
    record = Record(staging / "decoders.json", key)
    found = record.read()
    if found is None:
        found = compare_decoders(reference.drawer(), prompts, scorer, progress.detail)
        record.write(found)
    if "score_full" in found:
        reference.scored(found["score_full"])
    return found


def _checked_pictures(
    reference: _Reference,
    built: list[Built],
    digest: str,
    options: ExportOptions,
    calibration: Calibration,
    scorer: Scorer | None,
    staging: Path,
    progress: Progress,
) -> dict[str, Any] | None:
    """What the gate says of the engines together; None where one of them cannot be run here."""
    if any(engine.unchecked for engine in built):
        return None
    prompts = [drawn.prompt for drawn in calibration.pictures]
    record = Record(
        staging / "pictures.json",
        resume_key(
            options,
            [digest, prompts, [(engine.engine, str(engine.target)) for engine in built], scorer.name if scorer else None],
            packages_of(*map(made_with, built)),
            without_effect=("checkpoint", "out", "name", "auto"),
        ),
    )
    if (done := record.read()) is not None and all(engine.resumed for engine in built):
        return done
    runs: dict[str, Run] = {
        engine.component.name: BUILDERS[engine.engine].load(engine.component, engine.folder, engine.target) for engine in built
    }
    engines = Drawer.of(reference.checkpoint, runs)
    found: dict[str, Any] = dict(check_pictures(engines, calibration.pictures, progress.detail))
    found["psnr_bound"] = psnr_bound(_below(built))
    if scorer is not None:
        ours = score(engines, scorer, "scoring the engines' pictures", progress.detail)
        theirs = reference.score(scorer, progress.detail)
        found |= {"scored_by": scorer.name, "scored": SCORED, "score_fp32": theirs, "score": ours}
    record.write(found)
    return found


def _bytes_needed(checkpoint: Checkpoint, planned: Sequence[tuple[Component, Target]], copies: float) -> int:
    """The engines' size at most, `copies` of each component; a quantised one is made of a whole graph beside it."""
    size = max(target.of(part).bytes_per_weight for part, target in planned)
    passing = any(target.precision.quantised for _, target in planned)
    return round(checkpoint.weight_bytes() * size * (copies + (1 if passing else 0)) / _bytes_per_weight(checkpoint))


def _bytes_per_weight(checkpoint: Checkpoint) -> int:
    from safetensors import safe_open

    with safe_open(checkpoint.weights("unet")[0], framework="np") as opened:
        name = next(iter(opened.keys()))
        return {"F16": 2, "BF16": 2, "F64": 8}.get(opened.get_slice(name).get_dtype(), 4)

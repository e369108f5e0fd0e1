"""The UNet on every engine and precision that this machine has, beside PyTorch eager and compiled: ms a step by rows.

Every measurement is a process of its own (`nereid_bench.engine_turn`), so that none shares threads, caches or memory with
another. They take turns for several rounds, and medians are told: a noisy minute falls on all of them.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from nereid.engines.openvino_model import computes_bf16
from nereid_bench import small_transformer
from nereid_bench.compare import Say
from nereid_bench.optimum_cli import LEFT_OUT, images_converted
from nereid_bench.random_checkpoint import sd15_at
from nereid_export.built import packages_of
from nereid_export.calibration import Calibration, calibrate
from nereid_export.checkpoint import Checkpoint
from nereid_export.components import Component, components_of
from nereid_export.drawing import Drawer, pipeline_of
from nereid_export.engines import BUILDERS, Engine
from nereid_export.engines.base import Samples, Target, engine_bytes
from nereid_export.engines.check import compare, compare_together, random_references, references_of
from nereid_export.engines.precision import Precision
from nereid_export.errors import ExportError
from nereid_export.facts import pipeline_facts
from nereid_export.frame import Device
from nereid_export.gate import check_pictures
from nereid_export.resume import RECORD, Record, resume_key
from nereid_zoo.shapes.score import CHECKPOINT, held_out_captions

MODELS: Mapping[str, int] = {"shapes": 128, "sd15-256": 256, "sd15-512": 512, "transformer": small_transformer.SIDE}
"""What is measured, and the pixels a side of its pictures. Stable Diffusion 1.5's sizes, and a small diffusion transformer, have
random weights."""

PEERS: Mapping[str, tuple[str, ...]] = {
    "diffusers": ("fp32", "bf16"),
    "torch.compile": ("fp32", "bf16"),
    "openvino-genai": ("fp32", "bf16"),
}
"""PyTorch's own ways to run the same module, and OpenVINO GenAI's pipeline with the same checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginesPlan:
    """`seconds` are those that one measurement of one number of rows takes at least, after a first call that is not counted."""

    work: Path
    models: tuple[str, ...] = tuple(MODELS)
    rows: tuple[int, ...] = (1, 2, 4, 8)
    rounds: int = 3
    seconds: float = 1.0
    only: tuple[str, ...] = ()
    """Engines and peers to measure; all that this machine has where empty."""
    precisions: tuple[str, ...] = ()
    """Of engines and peers; all that each has where empty."""
    optimum_cli: Path | None = None
    """What makes OpenVINO GenAI's models; without it those are measured that are there."""

    def asks(self, name: str, precision: str) -> bool:
        return (not self.only or name in self.only) and (not self.precisions or precision in self.precisions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One process's work: an engine's folder, or a peer's name, and what to measure."""

    name: str
    precision: str
    checkpoint: str
    folder: str
    side: int
    rows: tuple[int, ...]
    seconds: float


def target_of(precision: str, side: int, checkpoint: Checkpoint | None) -> Target:
    return Target(
        precision=Precision(precision),
        device=Device.CPU,
        max_batch_size=16,
        default_side=side,
        max_side=side,
        scale=8 if checkpoint is None else pipeline_facts(checkpoint, [])["vae_scale_factor"],
    )


def network_of(checkpoint: Checkpoint | None) -> Component:
    """The checkpoint's UNet; without one, the small transformer."""
    if checkpoint is None:
        return small_transformer.small_transformer()
    return next(part for part in components_of(checkpoint) if part.name == "unet")


def engines(plan: EnginesPlan, say: Say) -> list[dict[str, Any]]:
    """Rows of model, engine, precision, rows, ms a step, and its load time, size, memory, error and PSNR of whole pictures."""
    made: list[dict[str, Any]] = []
    for model in plan.models:
        checkpoint = _checkpoint(model, plan.work, say)
        facts = dict(_ready(plan, model, checkpoint, say))
        measured: dict[Turn, list[dict[str, Any]]] = {turn: [] for turn in facts}
        for number in range(plan.rounds):
            for turn, found in measured.items():
                say(f"{model}: {turn.name} {turn.precision}, round {number + 1} of {plan.rounds}")
                result = _take(turn)
                if result is None:
                    say(f"{model}: {turn.name} {turn.precision} did not run to its end")
                else:
                    found.append(result)
        for turn, found in measured.items():
            made += _rows(model, turn, facts[turn], found)
    return made


def _rows(model: str, turn: Turn, facts: dict[str, Any], found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    if not found:
        return
    for rows in turn.rows:
        times = [one["ms"][str(rows)] for one in found if str(rows) in one["ms"]]
        if not times:
            continue
        yield {
            "model": model,
            "engine": turn.name,
            "precision": turn.precision,
            "rows": rows,
            "ms": statistics.median(times),
            "error": facts["error"],
            "psnr": facts["psnr"],
            "load_seconds": statistics.median(one["load_seconds"] for one in found),
            "megabytes": facts["megabytes"],
            "peak_megabytes": max(one["peak_bytes"] for one in found) / 1e6,
        }


def _checkpoint(model: str, work: Path, say: Say) -> Path | None:
    if model == "transformer":
        return None
    if model == "shapes":
        return CHECKPOINT
    return sd15_at(work / "sd15", say)


def _ready(plan: EnginesPlan, model: str, folder: Path | None, say: Say) -> Iterator[tuple[Turn, dict[str, Any]]]:
    """Everything that can be measured here, built; with its size and its error against PyTorch in float32."""
    checkpoint, side = None if folder is None else Checkpoint.open(folder), MODELS[model]
    component, work = network_of(checkpoint), plan.work / model.partition("-")[0]
    for engine, builder in BUILDERS.items():
        for precision in builder.precisions:
            if not plan.asks(engine, precision):
                continue
            target = target_of(precision, side, checkpoint)
            try:
                builder.require(target)
            except ExportError as error:
                say(f"{engine} {precision} is left out: {error}")
                continue
            built = work / f"{engine}-{precision}"
            facts = build_engine(engine, checkpoint, component, built, target, say)
            yield _turn(plan, engine, precision, folder, built, side), facts
    genai = work / "openvino-genai"
    for peer, precisions in PEERS.items():
        wanted = [name for name in precisions if plan.asks(peer, name)]
        if peer == "openvino-genai" and wanted and not _has_genai(plan, folder, genai, say):
            continue
        for name in wanted:
            if peer == "openvino-genai" and name == "bf16" and not computes_bf16():
                continue
            yield _turn(plan, peer, name, folder, genai, side), {"error": None, "megabytes": None, "psnr": None}


def _has_genai(plan: EnginesPlan, checkpoint: Path | None, folder: Path, say: Say) -> bool:
    if checkpoint is None:
        return False  # a transformer is no pipeline
    found = images_converted(checkpoint, folder, plan.optimum_cli)
    if not found:
        say(LEFT_OUT)
    return found


def _turn(plan: EnginesPlan, name: str, precision: str, checkpoint: Path | None, folder: Path, side: int) -> Turn:
    return Turn(
        name=str(name),
        precision=str(precision),
        checkpoint="" if checkpoint is None else str(checkpoint),
        folder=str(folder),
        side=side,
        rows=plan.rows,
        seconds=plan.seconds,
    )


def build_engine(
    engine: Engine, checkpoint: Checkpoint | None, component: Component, folder: Path, target: Target, say: Say
) -> dict[str, Any]:
    """An engine's files in `folder`, made unless they are there; its error against PyTorch in float32, and its size."""
    builder = BUILDERS[engine]
    packages = packages_of((builder, target.of(component)))
    # One graph serves every size.
    record = Record(folder / RECORD, resume_key(target, component.name, packages, without_effect=("default_side", "max_side")))
    if (done := record.read()) is not None:
        return done
    say(f"building {engine} {target.precision}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    module = component.load()
    trained = checkpoint if component.name == "unet" and checkpoint and checkpoint.folder == CHECKPOINT else None
    made = Calibration() if trained is None else _calibration(trained, folder.parent / "calibration", say)
    if target.precision.quantised and trained is not None:
        samples = Samples(references_of(component, module, made.checks["unet"]), made.ranges["unet"], made.runs, told=say)
    else:
        # Random weights say nothing of quality: nothing is put back for it.
        checks = random_references(component, module)
        samples = Samples(checks, [check.inputs for check in checks], bounded=False, told=say)
    builder.build(component, module, folder, target, samples)
    del module
    run = builder.load(component, folder, target)
    checked = (compare_together if target.precision.quantised else compare)(samples.checks, run)
    figures = {"error": max(check.relative_error for check in checked), "megabytes": engine_bytes(folder) / 1e6, "psnr": None}
    if trained is not None:
        torch_drawer = Drawer.by_torch(trained)
        figures |= check_pictures(replace(torch_drawer, runs={**torch_drawer.runs, "unet": run}), made.pictures, say)
    record.write(figures)
    return figures


def _calibration(checkpoint: Checkpoint, folder: Path, say: Say) -> Calibration:
    prompts = tuple(caption.text for caption in held_out_captions(10, seed=77))
    return calibrate(partial(Drawer.by_torch, checkpoint), pipeline_of(checkpoint), prompts, folder, checkpoint.digest(), say)


def _take(turn: Turn) -> dict[str, Any] | None:
    command = [sys.executable, "-m", "nereid_bench.engine_turn", json.dumps(asdict(turn))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode else dict(json.loads(done.stdout.splitlines()[-1]))

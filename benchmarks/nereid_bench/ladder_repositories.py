"""The checkpoints and repositories that `nereid bench ladder` needs: exported once, kept by checkpoint, options and versions."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

from nereid_bench.compare import Say
from nereid_bench.ladder_rungs import CACHED, SHAPES, STUDENT_STEPS, TINY_VAE, Kind, LadderModel, LadderPlan, Rung, base_kind
from nereid_bench.random_checkpoint import sd15_at, tiny_vae_at
from nereid_bench.schedulers import PROMPTS
from nereid_export.bar import progress_bar
from nereid_export.calibrate import CalibrateOptions, calibrate
from nereid_export.calibration import SET_APART
from nereid_export.checkpoint import Checkpoint
from nereid_export.diffusion import export_diffusion
from nereid_export.engines import Engine
from nereid_export.engines.precision import parse_precisions
from nereid_export.errors import ExportError
from nereid_export.options import ExportOptions
from nereid_export.resume import VERSIONED, Record, resume_key
from nereid_export.tiny_vae import TinyVae
from nereid_zoo.shapes.score import CHECKPOINT

_SHAPES_BRANCH = 1
"""Where the UNet of shapes is cut: at 0 its features are worth less."""
_SD15_SIDE = 256
"""Of pictures that an export draws and of engines that it measures: larger ones take hours, and say nothing else."""


def checkpoint_of(model: LadderModel, work: Path, say: Say) -> Path:
    """The model's diffusers folder, written where its weights are random."""
    return sd15_at(work / "sd15" / "checkpoint", say, _SD15_SIDE) if model.random else CHECKPOINT


def tiny_vae_of(model: LadderModel, work: Path) -> Path | None:
    """The folder of the shipped tiny VAE, where it is there, or of one that is written where weights are random."""
    if model.random:
        return tiny_vae_at(work / checkpoint_name(model) / "tiny-vae")
    return TINY_VAE if TINY_VAE.is_dir() else None


def fewest_steps() -> Rung:
    """The student with the fewest steps that is there; where none is, the one that is missed."""
    there = [rung for rung in STUDENT_STEPS if (SHAPES / rung).is_dir()]
    return min(there or STUDENT_STEPS, key=lambda rung: STUDENT_STEPS[rung])


def require_student(rung: Rung, model: LadderModel) -> None:
    """Raise ExportError where there is no student for this rung."""
    folder = SHAPES / (fewest_steps() if rung == Rung.ALL else rung)
    if not model.random and not folder.is_dir():
        raise ExportError(f"{folder} is missing; `nereid zoo train shapes-student` makes one")


def repository_of(kind: Kind, model: LadderModel, checkpoint: Path, plan: LadderPlan, say: Say) -> Path:
    """The repository of this kind, exported unless an earlier run has left it; raises ExportError."""
    options = _options(kind, model, checkpoint, plan)
    calibrated = None
    if kind is base_kind(plan) and not model.random and any(rung in plan.rungs for rung in CACHED):
        calibrated = CalibrateOptions(
            repository=options.out, checkpoint=checkpoint, schedulers=(plan.few_solver,), steps=(plan.few_steps,)
        )
    return exported(options, calibrated, say)


def checkpoint_name(model: LadderModel) -> str:
    """Models of one checkpoint share its repositories."""
    return model.name.partition("-")[0]


def exported(options: ExportOptions, calibrated: CalibrateOptions | None, say: Say) -> Path:
    """`options.out`, exported and calibrated unless that was done before for the same checkpoint, options and versions."""
    digest = Checkpoint.open(options.checkpoint, cache_branch=options.cache_branch, tiny_vae=options.tiny_vae).digest()
    prompts = options.calibration_prompts
    source = [digest, None if prompts is None else hashlib.sha256(prompts.read_bytes()).hexdigest()]
    packages = [*VERSIONED, *(name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name))]
    key = resume_key(options, source, packages, without_effect=("checkpoint", "out", "calibration_prompts", "tiny_vae"))
    done, measured = (options.out.with_name(f"{options.out.name}-{what}.json") for what in ("exported", "calibrated"))
    if Record(done, key).read() is None or not options.out.is_dir():
        for file in (done, measured):
            file.unlink(missing_ok=True)
        shutil.rmtree(options.out, ignore_errors=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        say(f"exporting {options.out}")
        with progress_bar() as bar:
            export_diffusion(options, bar)
        Record(done, key).write({})
    if calibrated is None:
        return options.out
    record = Record(measured, {"exported": key, "schedulers": [*calibrated.schedulers], "steps": [*calibrated.steps]})
    if record.read() is None:
        say(f"calibrating {options.out}")
        with progress_bar() as bar:
            calibrate(calibrated, bar)
        record.write({})
    return options.out


def _options(kind: Kind, model: LadderModel, checkpoint: Path, plan: LadderPlan) -> ExportOptions:
    work = plan.work / checkpoint_name(model)
    folder = tiny_vae_of(model, work.parent) if model.random or kind is Kind.ALL else None
    tiny = None if folder is None else TinyVae.open(folder)
    branch = 0 if model.random else _SHAPES_BRANCH
    prompts = _few_prompts(work) if model.random else None
    match kind:
        case Kind.FP32:
            # Cut as the other one is, so that nothing but the precision differs from the next rung.
            drawn = None if tiny is None else prompts  # in float32 none are, but by both decoders
            return ExportOptions(
                checkpoint=checkpoint, out=work / kind, cache_branch=branch, calibration_prompts=drawn, tiny_vae=tiny
            )
        case Kind.AUTO:
            options = _lower(checkpoint, work / kind, plan)
            return replace(options, cache_branch=branch, calibration_prompts=prompts, tiny_vae=tiny)
        case Kind.STUDENT_4 | Kind.STUDENT_2:
            return ExportOptions(checkpoint=SHAPES / kind, out=work / kind)
        case Kind.ALL:
            return replace(_lower(SHAPES / fewest_steps(), work / kind, plan), tiny_vae=tiny)


def _lower(checkpoint: Path, out: Path, plan: LadderPlan) -> ExportOptions:
    precisions = parse_precisions(plan.precision)
    return ExportOptions(checkpoint=checkpoint, out=out, engine=Engine(plan.engine), precision=precisions)


def _few_prompts(work: Path) -> Path:
    """As few prompts as an export takes: pictures of random weights say nothing, and take minutes each."""
    file = work / "prompts.txt"
    work.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{prompt}\n" for prompt in PROMPTS[: SET_APART + 1]))
    return file

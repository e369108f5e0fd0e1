"""What one exported layout model is, and the limits it is served with; read once, resolved, frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from nereid.diffusion.branch_cache import BranchCalibration, BranchEngine
from nereid.diffusion.dynamic_width import TokenEngine, WidthEngine, WidthTable
from nereid.diffusion.solvers import ScheduleError, SchedulerConfig, SchedulerName, default_scheduler
from nereid.engines.digests import digest_of_files
from nereid.engines.engine_files import ENGINE_FILES
from nereid.engines.worker import WorkerOptions
from nereid.flow.exported import exported_facts
from nereid.flow.parameters import read_parameters, require_at_most, require_one_of
from nereid.layout.canvas import Canvas
from nereid.layout.complexity import AdaptiveSteps
from nereid.layout.elements import Element, ElementClass, Section
from nereid.layout.known_widths import KnownWidths
from nereid.layout.tokens import BUCKETS, tokens_of

LAYOUT_FILE = "layout.json"
"""Where export leaves the model's facts, in its version folder beside the engine."""
ENGINE_NAME = "layout_transformer"
"""What errors and measured costs call the network."""
TRAIN_TIMESTEPS = 1000
"""Timesteps of a noise level of 1."""
SAMPLE, TIMESTEP, OUT = "sample", "timestep", "out_sample"
"""The engine's tensors beside those of Tokens: noisy boxes, rows x tokens x 4; 1000 x the noise level, rows x 1; the velocity."""
KEPT = "kept_tokens"
"""Of engines whose MLPs pass over tokens, one more output: how many tokens each block's MLP was computed for, rows x blocks."""


def layout_schedule(settings: Mapping[str, Any]) -> SchedulerConfig:
    """Of a layout transformer's scheduler_config.json; raises ScheduleError for another than a rectified flow's."""
    made = SchedulerConfig.from_diffusers(settings)
    if not made.flow:
        raise ScheduleError(f"{settings.get('_class_name')} is not allowed; a layout transformer is a rectified flow's")
    if made.num_train_timesteps != TRAIN_TIMESTEPS:
        raise ScheduleError(
            f"scheduler setting num_train_timesteps: {made.num_train_timesteps} is not supported; of a layout transformer "
            f"it must be {TRAIN_TIMESTEPS}"
        )
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchFacts:
    """What a model with engines that reuse branches knows of them.

    `blocks` and `width` are the transformer's; `calibrations` were measured with the very engines here.
    """

    blocks: int
    width: int
    calibrations: tuple[BranchCalibration, ...] = ()

    @classmethod
    def parse(cls, raw: Mapping[str, Any], folder: Path) -> BranchFacts:
        """Raises ValueError where calibrations are of other engines than those in `folder`."""
        calibrations = tuple(BranchCalibration.parse(item) for item in raw["calibrations"])
        if calibrations and raw["calibrated"] != engines_digest(folder):
            raise ValueError("its calibrations are of other engines than those beside it; calibrate again")
        return cls(blocks=int(raw["blocks"]), width=int(raw["width"]), calibrations=calibrations)


def engines_digest(folder: Path) -> str:
    """SHA-256 over the engines that reuse branches, by which calibrations know them."""
    return digest_of_files(folder, [file for engine in BranchEngine for file in sorted((folder / engine).glob("model.*"))])


def adaptive_digest(folder: Path, *, dynamic: bool) -> str:
    """The same of the engines that steps by complexity are measured with: the slices, too, where dynamic width is."""
    slices = [file for engine in WidthEngine for file in sorted((folder / engine).glob("model.*"))] if dynamic else []
    return digest_of_files(folder, [*sorted(folder.glob("model.*")), *slices])


def _adaptive(raw: Mapping[str, Any], folder: Path) -> AdaptiveSteps:
    found = AdaptiveSteps.parse(raw)
    if raw["calibrated"] != adaptive_digest(folder, dynamic=bool(found.dynamic)):
        raise ValueError("its adaptive steps are of another engine than the one beside it; calibrate again")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutFacts:
    """Facts of a checkpoint: its noise levels, the solver that they stand for, and its branches where engines reuse them.

    `widths` are there where it was exported with slices of its transformer, `tokens` say that there are engines, too, whose MLPs
    pass over tokens.
    """

    schedule: SchedulerConfig
    scheduler: SchedulerName
    branches: BranchFacts | None = None
    adaptive: AdaptiveSteps | None = None
    """Steps by complexity, where they were measured with this very engine."""
    widths: WidthTable | None = None
    tokens: bool = False
    canvas_widths: KnownWidths | None = None
    """Those that it was trained on, where the checkpoint tells; without them every canvas is drawn as it is."""

    @property
    def slices(self) -> tuple[StrEnum, ...]:
        """The engines that steps with dynamic width or tokens may call."""
        widths = () if self.widths is None else self.widths.engines
        if not self.tokens:
            return widths
        further = () if self.widths is None else self.widths.passing_over_tokens().engines
        return (*widths, TokenEngine.WHOLE, *further)

    @classmethod
    def read(cls, folder: Path) -> LayoutFacts:
        """Parse what export wrote; raises ValueError naming the file and what is wrong with it."""
        file = folder / LAYOUT_FILE
        with exported_facts(file) as facts:
            raw = facts["scheduler"]
            made = cls(schedule=layout_schedule(raw), scheduler=default_scheduler(raw))
        try:
            if "branches" in facts:
                made = replace(made, branches=BranchFacts.parse(facts["branches"], folder))
            if "adaptive" in facts:
                made = replace(made, adaptive=_adaptive(facts["adaptive"], folder))
            if "widths" in facts:
                made = replace(made, widths=WidthTable.parse(facts["widths"]))
            if facts.get("tokens") is True:
                made = replace(made, tokens=True)
            if "canvas_widths" in facts:
                made = replace(made, canvas_widths=KnownWidths.parse(facts["canvas_widths"]))
            return made
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is not what export writes: {error!r}; export the model again") from None
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutLimits:
    """What one `layout` instance takes on. Every field is a parameter of its config.pbtxt, spelled the same."""

    max_inflight: int = 64
    max_queue: int = 256
    max_steps: int = 200
    max_candidates: int = 16
    default_steps: int = 8
    default_timeout_seconds: float = 60.0
    latency_target: float = 2.0
    engine: str = "onnxruntime"
    engine_max_batch_size: int = 8
    engine_min_batch_size: int = 1
    threads: int = 2
    engine_patience_seconds: float = 0.25
    watchdog_seconds: float = 3.0

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> LayoutLimits:
        """Read config.pbtxt parameters; raises ValueError naming the one that does not parse or is out of range."""
        limits = read_parameters(cls, parameters, may_be_zero=("max_queue", "threads"))
        require_one_of(limits, "engine", ENGINE_FILES)
        require_at_most(limits, "default_steps", "max_steps")
        require_at_most(limits, "max_candidates", "max_inflight")
        require_at_most(limits, "engine_min_batch_size", "engine_max_batch_size")
        return limits


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutModel:
    """One exported model, ready to be served."""

    name: str
    facts: LayoutFacts
    limits: LayoutLimits
    file: Path
    """The engine."""
    fingerprint: str = ""

    @classmethod
    def read(cls, name: str, folder: Path, limits: LayoutLimits, fingerprint: str) -> LayoutModel:
        """Raises ValueError where the limits ask for what was not exported."""
        file = folder / ENGINE_FILES[limits.engine]
        if not file.is_file():
            raise ValueError(f"parameter engine: {limits.engine} needs {file.name}, which {folder} has not; export it")
        return cls(name=name, facts=LayoutFacts.read(folder), limits=limits, file=file, fingerprint=fingerprint)

    def worker_options(self) -> WorkerOptions:
        """Of the process that runs the engine."""
        sizes = sorted({self.limits.engine_min_batch_size, self.limits.engine_max_batch_size})
        calls = [call_shapes(rows, tokens) for tokens in BUCKETS for rows in sizes]
        others: dict[str, dict[str, Any]] = {}
        if (branches := self.facts.branches) is not None:
            for engine in BranchEngine:
                others[str(engine)] = {
                    "file": str(self.file.parent / engine / self.file.name),
                    "outputs": [OUT, *engine.computed],
                    "warm_up": [branch_shapes(call, engine, branches) for call in calls],
                }
        for its in self.facts.slices:
            outputs = outputs_of(its, [OUT])
            others[str(its)] = {"file": str(self.file.parent / its / self.file.name), "outputs": outputs, "warm_up": calls}
        return WorkerOptions(
            function="nereid.engines.engine_process_main:run",
            name=self.name,
            settings={
                "file": str(self.file),
                "engine": self.limits.engine,
                "threads": self.limits.threads,
                "outputs": [OUT],
                "warm_up": calls,
                "others": others,
            },
            watchdog_seconds=self.limits.watchdog_seconds,
        )


def outputs_of(variant: StrEnum, outputs: Sequence[str]) -> list[str]:
    """Of a call of this engine, where these are wanted of any; one that passes over tokens tells how many it has kept."""
    return [*outputs, KEPT] if isinstance(variant, TokenEngine) else [*outputs]


def branch_shapes(call: Mapping[str, tuple[str, list[int]]], engine: BranchEngine, facts: BranchFacts) -> dict[str, Any]:
    """The same of a call of an engine that may reuse branches, from those of one that does not."""
    rows, tokens, _ = call[SAMPLE][1]
    taken = {name: shape for name, shape in call.items() if name not in engine.untaken}
    return {**taken, **{str(branch): ("float32", [rows, facts.blocks, 1 + tokens, facts.width]) for branch in engine.reused}}


def call_shapes(rows: int, tokens: int) -> dict[str, tuple[str, list[int]]]:
    """Types and shapes of a call's inputs by name; they are the same whatever stands in the section."""
    section = Section.of(Canvas.of(1280), [Element(id="heading", kind=ElementClass.HEADING)])
    made: dict[str, tuple[str, list[int]]] = {SAMPLE: ("float32", [rows, tokens, 4]), TIMESTEP: ("float32", [rows, 1])}
    arrays: Mapping[str, Any] = tokens_of([section], tokens).as_inputs()
    return {**made, **{name: (str(value.dtype), [rows, *value.shape[1:]]) for name, value in arrays.items()}}

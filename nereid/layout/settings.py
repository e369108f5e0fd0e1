"""What one exported layout model is, and the limits it is served with; read once, resolved, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nereid.diffusion.solvers import SchedulerConfig, SchedulerName, default_scheduler
from nereid.engines.worker import WorkerOptions
from nereid.flow.exported import exported_facts
from nereid.flow.parameters import read_parameters
from nereid.layout.canvas import Canvas
from nereid.layout.elements import Element, ElementClass, Section
from nereid.layout.tokens import BUCKETS, tokens_of

LAYOUT_FILE = "layout.json"
"""Where export leaves the model's facts, in its version folder beside the engine."""
ENGINE_FILES = {"onnxruntime": "model.onnx", "openvino": "model.xml"}
ENGINE_NAME = "layout_transformer"
"""What errors and measured costs call the network."""
SAMPLE, TIMESTEP, OUT = "sample", "timestep", "out_sample"
"""The engine's tensors beside those of Tokens: noisy boxes, rows x tokens x 4; 1000 x the noise level, rows x 1; the velocity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutFacts:
    """Facts of a checkpoint: its noise levels, and the solver that they stand for."""

    schedule: SchedulerConfig
    scheduler: SchedulerName

    @classmethod
    def read(cls, folder: Path) -> LayoutFacts:
        """Parse what export wrote; raises ValueError naming the file and what is wrong with it."""
        with exported_facts(folder / LAYOUT_FILE) as facts:
            raw = facts["scheduler"]
            return cls(schedule=SchedulerConfig.from_diffusers(raw), scheduler=default_scheduler(raw))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutLimits:
    """What one `layout` instance takes on. Every field is a parameter of its config.pbtxt, spelled the same."""

    max_inflight: int = 64
    max_queue: int = 256
    max_steps: int = 200
    max_candidates: int = 16
    default_steps: int = 16
    default_timeout_seconds: float = 60.0
    latency_target: float = 2.0
    engine: str = "onnxruntime"
    engine_max_batch_size: int = 8
    engine_min_batch_size: int = 1
    threads: int = 1
    engine_patience_seconds: float = 0.25
    watchdog_seconds: float = 3.0

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> LayoutLimits:
        """Read config.pbtxt parameters; raises ValueError naming the one that does not parse or is out of range."""
        limits = read_parameters(cls, parameters, may_be_zero=("max_queue", "threads"))
        if limits.engine not in ENGINE_FILES:
            allowed = " or ".join(ENGINE_FILES)
            raise ValueError(f"parameter engine: {limits.engine!r} is not allowed; it must be {allowed}")
        for name, low, high in (
            ("default_steps", limits.default_steps, limits.max_steps),
            ("max_candidates", limits.max_candidates, limits.max_inflight),
            ("engine_min_batch_size", limits.engine_min_batch_size, limits.engine_max_batch_size),
        ):
            if low > high:
                raise ValueError(f"parameter {name}: {low} is not allowed; it must be at most {high}")
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
        return WorkerOptions(
            function="nereid.engines.engine_process_main:run",
            name=self.name,
            settings={
                "file": str(self.file),
                "engine": self.limits.engine,
                "threads": self.limits.threads,
                "outputs": [OUT],
                "warm_up": [call_shapes(rows, tokens) for tokens in BUCKETS for rows in sizes],
            },
            watchdog_seconds=self.limits.watchdog_seconds,
        )


def call_shapes(rows: int, tokens: int) -> dict[str, tuple[str, list[int]]]:
    """Types and shapes of a call's inputs by name; they are the same whatever stands in the section."""
    section = Section.of(Canvas.of(1280), [Element(id="heading", kind=ElementClass.HEADING)])
    made: dict[str, tuple[str, list[int]]] = {SAMPLE: ("float32", [rows, tokens, 4]), TIMESTEP: ("float32", [rows, 1])}
    arrays: Mapping[str, Any] = tokens_of([section], tokens).as_inputs()
    return {**made, **{name: (str(value.dtype), [rows, *value.shape[1:]]) for name, value in arrays.items()}}

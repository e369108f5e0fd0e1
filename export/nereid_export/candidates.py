"""What `--engine auto` may choose from: engines, precisions and threads of one component, and what is expected of the choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nereid_export.components import Component
from nereid_export.engines import BUILDERS, Engine
from nereid_export.engines.base import Target, require_precision
from nereid_export.engines.plan_options import given
from nereid_export.engines.precision import Precision, Precisions
from nereid_export.errors import ExportError

MEASURED = (Engine.ONNXRUNTIME, Engine.OPENVINO, Engine.TORCH)
"""Engines of the processor; PyTorch's compiles for minutes, so that it must be asked for."""
USUAL = (Engine.ONNXRUNTIME, Engine.OPENVINO)
PRECISIONS = (Precision.FP32, Precision.BF16, Precision.INT8)
STEP_ROWS, UNGUIDED_STEP_ROWS = (2, 4, 8), (1, 2, 4)
"""Of one, two and four images in flight, with an unconditional half and without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoOptions:
    """Each is the command line's option of that name, for `--engine auto` alone."""

    candidates: tuple[Engine, ...] = ()
    """Engines to measure; those of `USUAL` that are installed where empty."""
    step_rows: tuple[int, ...] = ()
    """Rows of the UNet's calls that the server will see; one, two and four images' where empty."""
    max_engine_mib: int = 0
    """Memory of one engine with its runs; what is free where 0."""

    def asked(self) -> dict[str, str]:
        """The options that were given, as a manifest has them."""
        return given(self)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One engine to build of a component."""

    engine: Engine
    target: Target
    refused: str = ""
    """Why it cannot be built here."""


def parse_candidates(text: str) -> tuple[Engine, ...]:
    """`onnxruntime,torch` to its engines; raises ExportError naming one that is not measured."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    for name in names:
        if name not in MEASURED:
            raise ExportError(f"--candidates: {name!r} is not allowed; it must be of {', '.join(MEASURED)}")
    return tuple(dict.fromkeys(map(Engine, names)))


def parse_step_rows(text: str) -> tuple[int, ...]:
    """`2,4,8` to its numbers; raises ExportError naming one that is none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if not part.isdecimal() or not int(part):
            raise ExportError(f"--step-rows: {part!r} is not allowed; it must be whole numbers above 0, like 2,4,8")
    return tuple(sorted({int(part) for part in parts}))


def candidates_of(
    component: Component, target: Target, engines: Sequence[Engine], precisions: Precisions
) -> tuple[Candidate, ...]:
    """Every engine in every precision that is asked of the component; those that cannot be built here say why."""
    own = component.name in precisions.by_component or not precisions.auto
    found: dict[tuple[Engine, Precision], Candidate] = {}
    for engine in engines:
        for precision in (precisions.of(component.name),) if own else PRECISIONS:
            wanted = replace(target, precision=precision)
            if not own and precision not in BUILDERS[engine].precisions:
                continue
            candidate = Candidate(engine, wanted, _refusal(engine, wanted))
            found.setdefault((engine, wanted.of(component)), candidate)
    return tuple(found.values())


def _refusal(engine: Engine, target: Target) -> str:
    try:
        require_precision(engine, BUILDERS[engine], target.precision)
        BUILDERS[engine].require(target)
    except ExportError as error:
        return str(error)
    return ""


def expected_rows(component: Component, target: Target, step_rows: Sequence[int]) -> tuple[int, ...]:
    """Rows of a component's calls that decide: `step_rows` of the UNet, of the others a picture's and two pictures'."""
    rows = step_rows if component.denoises else (1, 2)
    return tuple(count for count in rows if count <= target.max_batch_size) or (1,)


def thread_counts(engine: Engine, cpus: int) -> tuple[int, ...]:
    """The engine's own choice, and half the processors: threads that share a core, or its memory, may be slower than fewer."""
    return (0, cpus // 2) if cpus > 1 and "threads" in BUILDERS[engine].options else (0,)

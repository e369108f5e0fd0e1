"""What export asks of an engine: build it, run it for the check against PyTorch, say in a config how Triton serves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from nereid_export.components import Component, TensorSpec, sizes_at, sizes_of
from nereid_export.engines.check import Inputs, Reference, Run
from nereid_export.engines.plan_options import PlanOptions
from nereid_export.engines.precision import Precision
from nereid_export.errors import ExportError
from nereid_export.frame import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What one engine is built for: arithmetic, device, most rows of a call, and sizes of pictures in pixels a side."""

    precision: Precision
    device: Device
    max_batch_size: int
    default_side: int
    max_side: int
    scale: int
    """Pixels a latent is wide."""
    plan: PlanOptions = field(default_factory=PlanOptions)

    def of(self, component: Component) -> Precision:
        """The precision of this component: some VAEs overflow in half precision, and say so in their config."""
        return Precision.FP32 if component.keep_fp32 and self.precision.half else self.precision


class WholeRuns(Protocol):
    """Runs that PyTorch in float32 has finished."""

    def error(self, run: Run, *, first: int | None = None) -> float:
        """What is left of an engine's errors at the end of the first of them, or of all; NaN where one has no end."""
        ...


@dataclass(frozen=True, slots=True)
class Samples:
    """What one component is built and checked with."""

    checks: Sequence[Reference]
    """Inputs, and what PyTorch in float32 makes of them."""
    ranges: Sequence[Inputs] = ()
    """Inputs of real runs, other than those of `checks`, that static INT8 takes its ranges from."""
    runs: WholeRuns | None = None
    """Runs to be finished with the engine, for the component whose calls follow one another."""
    bounded: bool = True
    """Whether static INT8 puts parts back into higher precision until the errors are within their bounds."""
    told: Callable[[str], None] = lambda text: None
    """Told of slow parts."""


class EngineBuilder(Protocol):
    """One engine. Adding another takes a file beside this one, an entry in the registry, and a backend that serves it."""

    @property
    def backend(self) -> str:
        """Triton's name of the backend."""
        ...

    @property
    def filename(self) -> str:
        """The file in a model's version folder that the backend opens."""
        ...

    @property
    def packages(self) -> tuple[str, ...]:
        """Distributions whose version shapes the engine."""
        ...

    @property
    def quantisers(self) -> tuple[str, ...]:
        """Further ones, whose version shapes a quantised engine."""
        ...

    @property
    def precisions(self) -> tuple[Precision, ...]: ...

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the `PlanOptions` that the engine has."""
        ...

    def require(self, target: Target) -> None:
        """Raise ExportError, before anything slow, where the engine cannot be built here; the sentence says what to install."""
        ...

    def require_run(self, target: Target) -> None:
        """Raise ExportError where the library that runs the engine is not here; what building needs besides is not asked for."""
        ...

    def unchecked(self, target: Target) -> str | None:
        """Why what is built cannot be run here, so that it is not checked against PyTorch; None where it is."""
        ...

    def build(
        self, component: Component, module: nn.Module, folder: Path, target: Target, samples: Samples
    ) -> dict[str, Any] | None:
        """Write the engine's files, all named `model.*`, to `folder`, and leave nothing else there; may change the module.

        Returns what the manifest says of them beside the check's figures: an account of the library's, parts that are kept in
        higher precision.
        """
        ...

    def load(self, component: Component, folder: Path, target: Target) -> Run:
        """Load what `build` has written, with the settings with which it will be served."""
        ...

    def probe(self, component: Component, target: Target) -> str | None:
        """What runs a file in the process that measures memory (see `memory_probe`); None where that is not measured."""
        ...

    def configure(self, config: Any, component: Component, target: Target) -> None:
        """Edit the model's config (Triton's ModelConfig) so that the backend serves this engine."""
        ...


def engine_files(folder: Path) -> list[Path]:
    """What a builder has left of an engine."""
    return sorted(folder.glob("model.*"))


def engine_bytes(folder: Path) -> int:
    """The size of the engine that `build` has written to this folder."""
    return sum(file.stat().st_size for file in engine_files(folder))


def require_precision(name: str, builder: EngineBuilder, precision: Precision) -> None:
    """Raise ExportError for a precision that the engine does not have."""
    if precision not in builder.precisions:
        raise ExportError(
            f"--precision: {precision} is not allowed with --engine {name}; it must be one of {', '.join(builder.precisions)}"
        )


# --- shapes ---


def require_buckets(target: Target) -> None:
    """Raise ExportError for a bucket that is not within the range of pictures in general, as which every other size is served."""
    least, most = min(target.default_side, 8 * target.scale), max(target.max_side, target.default_side)
    for width, height in target.plan.bucket:
        if any(side % target.scale or not least <= side <= most for side in (width, height)):
            raise ExportError(
                f"--bucket: {width}x{height} is not allowed; each side must be a multiple of {target.scale} "
                f"from {least} to {most} (--max-side)"
            )


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Smallest, most usual and largest value of each named dimension, and of the batch."""

    minimum: Mapping[str, int]
    optimum: Mapping[str, int]
    maximum: Mapping[str, int]


def shape_range(component: Component, target: Target) -> ShapeRange:
    """What an engine is optimised for: pictures from 8 latents a side up to `max_side` pixels."""

    def sizes(side: int, batch: int) -> dict[str, int]:
        return {"batch": batch, **sizes_at(component, side, target.scale)}

    return ShapeRange(
        sizes(min(target.default_side, 8 * target.scale), 1),
        sizes(target.default_side, max(1, target.max_batch_size // 2)),
        sizes(max(target.max_side, target.default_side), target.max_batch_size),
    )


def shape_ranges(component: Component, target: Target) -> tuple[ShapeRange, ...]:
    """One range for each bucket, of its very size, and the general one last.

    A component that does not see the picture has the general one alone.
    """
    general = shape_range(component, target)

    def of(width: int, height: int) -> ShapeRange:
        sizes = sizes_of(component, width, height, target.scale)
        rows = (general.minimum["batch"], general.optimum["batch"], general.maximum["batch"])
        return ShapeRange(*({**sizes, "batch": batch} for batch in rows))

    buckets = target.plan.bucket if component.spatial else ()
    return (*(of(width, height) for width, height in buckets), general)


def input_shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A concrete shape of one input, batch first."""
    return (sizes["batch"], *(sizes[dim] if isinstance(dim, str) else dim for dim in spec.dims))

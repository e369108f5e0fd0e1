"""The arithmetic of engines: what `--precision` may ask for, of all components or of one, and the bounds of the quality gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from nereid_export.errors import ExportError


class Precision(StrEnum):
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    """Weights and activations, by ranges that calibration has found."""
    INT8_DYNAMIC = "int8-dynamic"
    """Matrix products, by the ranges of each call's own activations."""
    INT8_WEIGHTS = "int8-weights"
    INT4_WEIGHTS = "int4-weights"
    W4A8 = "w4a8"
    """Of a layout transformer alone: weights stored in about 4 bits, products of 8-bit numbers, static ranges by timestep."""

    @property
    def quantised(self) -> bool:
        return self.startswith("int") or self is Precision.W4A8

    @property
    def half(self) -> bool:
        return self in (Precision.FP16, Precision.BF16)

    @property
    def bytes_per_weight(self) -> int:
        """At most, the weights that are kept in more bits included."""
        return 2 if self.half else 4


OF_PIPELINES = tuple(its for its in Precision if its is not Precision.W4A8)
"""What components of a pipeline may be asked for."""

ERROR_BOUNDS: Mapping[Precision, float] = {
    Precision.FP32: 1e-4,
    Precision.FP16: 1e-2,
    Precision.BF16: 5e-2,
    Precision.INT8: 0.1,
    Precision.INT8_DYNAMIC: 0.1,
    Precision.INT8_WEIGHTS: 5e-2,
    Precision.INT4_WEIGHTS: 0.2,
    Precision.W4A8: 0.2,
}
"""Largest relative error (norm of the difference over norm of the reference) with which an engine is published.

Of quantised engines it is taken over the calls of real runs together, since ranges are made for what runs look like.
"""

END_ERROR_BOUND = 0.1
"""Largest error of the latents that whole runs end with (the same norm) with which a UNet in static INT8 is published.

Within it `shapes` keeps its score (docs/benchmarks.md).
"""

PSNR_BOUNDS: Mapping[Precision, float] = {
    Precision.FP16: 30.0,
    Precision.BF16: 25.0,
    Precision.INT8: 20.0,
    Precision.INT8_DYNAMIC: 20.0,
    Precision.INT8_WEIGHTS: 25.0,
    Precision.INT4_WEIGHTS: 15.0,
}
"""Smallest median PSNR in dB, against PyTorch in float32, of the pictures that a whole pipeline draws from equal seeds."""

SCORE_BOUND = 3.0
"""Points (of 100) that a pipeline's score may lie below PyTorch's in float32; the gate's few pictures cannot tell fewer."""


@dataclass(frozen=True, slots=True)
class Precisions:
    """The precision of every component, with those that have one of their own."""

    usual: Precision = Precision.FP32
    by_component: Mapping[str, Precision] = field(default_factory=dict)
    auto: bool = False
    """Whether every component that has none of its own gets what is fastest within the bounds, instead of the usual."""

    def of(self, component: str) -> Precision:
        whole = component.removesuffix("_shallow")  # a part of the UNet has the UNet's, where it has none of its own
        return self.by_component.get(component, self.by_component.get(whole, self.usual))

    @property
    def all(self) -> tuple[Precision, ...]:
        return tuple(dict.fromkeys((self.usual, *self.by_component.values())))

    def __str__(self) -> str:
        usual = "auto" if self.auto else str(self.usual)
        return ",".join((usual, *(f"{name}={precision}" for name, precision in sorted(self.by_component.items()))))


def parse_precisions(text: str) -> Precisions:
    """`int8`, or `unet=int8,vae_decoder=fp16`, or `int8,vae_encoder=fp32`; raises ExportError naming what is not allowed."""
    usual: list[Precision] = []
    by_component: dict[str, Precision] = {}
    auto = False
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name == "auto" and not equals and not auto and not usual:
            auto = True
            continue
        precision = {str(its): its for its in OF_PIPELINES}.get(value if equals else name)
        if precision is None:
            raise ExportError(f"--precision: {part!r} is not allowed; it must be one of {', '.join(OF_PIPELINES)}")
        if equals and name and name not in by_component:
            by_component[name] = precision
        elif not equals and not usual and not auto:
            usual.append(precision)
        else:
            raise ExportError(f"--precision: {text!r} is not allowed; it must name each component, and the usual one, once")
    return Precisions(usual[0] if usual else Precision.FP32, by_component, auto)


def require_components(precisions: Precisions, names: tuple[str, ...]) -> None:
    """Raise ExportError for a component that the checkpoint does not have."""
    for name in precisions.by_component:
        if name not in names:
            raise ExportError(f"--precision: {name!r} is not allowed; the checkpoint's components are {', '.join(names)}")

"""A layout transformer to one of 4-bit weights and 8-bit products: calibrated on layouts that it draws, built, checked, measured.

Its weights are unpacked to 8 bits when the engine is loaded, and multiplied as such; an engine whose products ONNX Runtime does
not execute in 8 bits is refused.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nereid.layout.elements import Box, Section
from nereid.layout.settings import OUT, SAMPLE, TIMESTEP
from nereid_export.built import Built, library_failures, packages_of, places
from nereid_export.components import Component
from nereid_export.engines import BUILDERS, Engine
from nereid_export.engines.base import Target, engine_bytes, engine_files
from nereid_export.engines.check import (
    Check,
    Inputs,
    Run,
    aggregate_error,
    batch_invariant_from,
    compare_together,
    random_references,
    references_of,
    refuse_above_bound,
    torch_run,
)
from nereid_export.engines.onnx_graph import export_onnx
from nereid_export.engines.precision import Precision
from nereid_export.errors import ExportError
from nereid_export.frame import Progress
from nereid_export.layout_samples import off_pixels, passed_each, passed_shares, sample_sections
from nereid_export.memory import measure_memory
from nereid_export.options import ExportOptions
from nereid_export.resume import RECORD, Record, resume_key
from nereid_export.speed import milliseconds, usual_rows
from nereid_export.w4a8.codes import GROUP
from nereid_export.w4a8.graph import PRODUCT, executed, pack_weights
from nereid_export.w4a8.layers import BITS, RANK, QuantisedLayer
from nereid_export.w4a8.products import layers_of

if TYPE_CHECKING:
    from nereid_zoo.layout.draw import Flow

CALIBRATION_BRIEFS = 128
"""Sections whose layouts the inputs of layers are taken from."""
CALIBRATION_STEPS = (16, 7, 11, 13, 9, 19, 5, 23)
"""Of these layouts, in turn: between them, many timesteps."""
BRIEFS = 400
"""Further sections, on which the pass rate is measured, with `STEPS` steps."""
STEPS = 16
LOSS_BOUND = 1.0
"""Points of layouts that pass all error checks that 8-bit products may cost.

After repair, above it nothing is published; before repair, the manifest tells."""
SAME = 1e-2
"""Relative error between the engine and its simulation in PyTorch: at most a few inputs are rounded the other way."""
_EVERY = 16
"""Calls of which one is kept for the check against PyTorch."""

Predict = Callable[[Mapping[str, NDArray]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutQuality:
    """What 8-bit products cost the layouts of so many briefs, beside PyTorch in float32 with equal seeds.

    Percent of layouts that pass all error checks, before and after repair, and how far boxes are off in CSS pixels: of a section
    the mean over its boxes' four numbers, of all the median and the 95th percentile.
    """

    briefs: int
    steps: int
    passed_before: float
    passed_before_fp32: float
    passed: float
    passed_fp32: float
    off_px: float
    off_px_p95: float

    @classmethod
    def of(cls, sections: Sequence[Section], drawn: Sequence[Sequence[Box]], plain: Sequence[Sequence[Box]]) -> LayoutQuality:
        off = off_pixels(drawn, plain)
        (before, after), (before_fp32, after_fp32) = (passed_shares(passed_each(sections, its)) for its in (drawn, plain))
        return cls(
            briefs=len(sections),
            steps=STEPS,
            passed_before=before,
            passed_before_fp32=before_fp32,
            passed=after,
            passed_fp32=after_fp32,
            off_px=round(float(np.median(off)), 3),
            off_px_p95=round(float(np.percentile(off, 95)), 3),
        )

    def written(self) -> dict[str, Any]:
        made = {name: getattr(self, name) for name in self.__slots__}
        within = max(self.passed_before_fp32 - self.passed_before, self.passed_fp32 - self.passed) <= LOSS_BOUND
        return {**made, "loss_bound": LOSS_BOUND, "within": within}


def require_w4a8(precision: Precision, engine: Engine, **further: bool) -> None:
    """Raise ExportError for a precision that a layout transformer does not have; `further` engines, by their options."""
    allowed = (Precision.FP32, Precision.W4A8)
    if precision not in allowed:
        raise ExportError(
            f"--precision: {precision} is not allowed for a layout transformer; it must be one of {', '.join(allowed)}"
        )
    if precision is Precision.W4A8 and engine is not Engine.ONNXRUNTIME:
        raise ExportError(f"--engine: {engine} is not allowed with --precision {precision}; it must be {Engine.ONNXRUNTIME}")
    for name, asked in further.items():
        if precision is Precision.W4A8 and asked:
            raise ExportError(f"--{name} is not allowed with --precision {precision}; its engines are in fp32 alone")


def build_w4a8(
    component: Component, target: Target, source: str, options: ExportOptions, folder: Path, progress: Progress
) -> Built:
    """Build, check and measure the engine in `folder`; `component` is a layout transformer's, `source` its checkpoint's digest.

    Raises ExportError for one that is too far from PyTorch, or costs too much of the pass rate.
    """
    builder, precision = BUILDERS[Engine.ONNXRUNTIME], Precision.W4A8
    numbers = [BITS, GROUP, RANK, CALIBRATION_BRIEFS, CALIBRATION_STEPS, BRIEFS, STEPS]
    key = resume_key(
        options,
        [source, str(precision), numbers],
        packages_of((builder, precision)),
        without_effect=("checkpoint", "out", "name"),
    )
    record = Record(folder / RECORD, key)
    if (done := record.read()) is not None:
        progress.step(f"{component.name}: built before")
        progress.step(f"{component.name}: checked before")
        figures = {**done, "checks": [Check(**check) for check in done["checks"]]}
        return Built(component, Engine.ONNXRUNTIME, target, folder, **figures, resumed=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    start, file = time.monotonic(), folder / builder.filename
    progress.step(f"{component.name}: exporting")
    drawing = _Drawing.of(options.checkpoint, component.load())
    module, layers = drawing.quantised(progress.detail)
    built = Built(component, Engine.ONNXRUNTIME, target, folder)
    with library_failures(component, Engine.ONNXRUNTIME, precision, folder):
        export_onnx(component, module, file, Precision.FP32)
        pack_weights(file, layers_of(module))
        products = executed(file)[PRODUCT]
        if products < len(layers):
            raise ExportError(
                f"{component.name}: ONNX Runtime executes {products} of {len(layers)} products in 8 bits on this processor; "
                "nothing was published"
            )
        progress.step(f"{component.name}: checking against PyTorch")
        run = builder.load(component, folder, target)
        difference = aggregate_error(random_references(component, module), run)
        if not difference <= SAME:
            raise ExportError(
                f"{component.name}: the engine is {difference:.2g} (relative) off from the simulation of its 8-bit products; "
                "nothing was published"
            )
        quality, calls = drawing.measured(component, run, target.max_batch_size, progress.detail)
        built.checks = compare_together(references_of(component, drawing.module, calls), run)
        refuse_above_bound(component, built.checks, precision)
        refuse_loss(component, quality)
        built.invariant_from = batch_invariant_from(component, run, places(component, target))
        built.milliseconds = milliseconds(component, run, target, usual_rows(component))
        del run
    built.account = {
        "pass_rate": quality.written(),
        "quantization": {
            **_said(layers),
            "calibration_briefs": CALIBRATION_BRIEFS,
            "products_in_8_bits": products,
            "off_from_simulation": difference,
            "compression": round(4 * drawing.parameters / engine_bytes(folder), 2),
        },
    }
    built.memory = measure_memory(component, file, target, builder.probe(component, target))
    built.seconds = round(time.monotonic() - start, 1)
    record.write(built.figures(), engine_files(folder))
    return built


def refuse_loss(component: Component, quality: LayoutQuality) -> None:
    """Raise ExportError where fewer layouts pass after repair than may be."""
    if quality.passed_fp32 - quality.passed > LOSS_BOUND:
        raise ExportError(
            f"{component.name}: {quality.passed:.1f}% of {quality.briefs} layouts pass after repair, more than {LOSS_BOUND:g} "
            f"points below PyTorch's {quality.passed_fp32:.1f}% in float32; nothing was published"
        )


def said_of_quality(engine: Mapping[str, Any]) -> str:
    """Of an engine in a manifest, for people."""
    found, made = engine["pass_rate"], engine["quantization"]
    beyond = "" if found["within"] else f"; more than {found['loss_bound']:g} points are lost before repair"
    before = f"{found['passed_before']:.1f}% of {found['briefs']} layouts pass before repair"
    return (
        f"{before} (fp32: {found['passed_before_fp32']:.1f}%), {found['passed']:.1f}% after it "
        f"(fp32: {found['passed_fp32']:.1f}%); boxes are off by {found['off_px']:.2f} px (median); "
        f"{made['compression']:.1f} times smaller than float32{beyond}"
    )


def _said(layers: Mapping[str, QuantisedLayer]) -> dict[str, Any]:
    counts = [float(layer.codes.bits.mean()) for layer in layers.values()]
    each = {
        name: {
            "alpha": layer.alpha,
            "share_of_channels_with_a_bit_more": layer.share,
            "error": round(layer.error, 5),
            "error_of_plain_rounding": round(layer.plain_error, 5),
        }
        for name, layer in layers.items()
    }
    return {"bits": mean(counts), "group": GROUP, "rank": RANK, "layers": each}


@dataclass(slots=True)
class _Drawing:
    """A transformer's module in float32, and how its layouts are drawn."""

    module: nn.Module
    flow: Flow
    parameters: int = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = sum(parameter.numel() for parameter in self.module.parameters())

    @classmethod
    def of(cls, checkpoint: Path, module: nn.Module) -> _Drawing:
        from nereid_zoo.layout.draw import flow_of

        return cls(module, flow_of(checkpoint))

    def quantised(self, told: Callable[[str], None]) -> tuple[nn.Module, dict[str, QuantisedLayer]]:
        """The same with 8-bit products, calibrated on layouts that this one draws; its layers."""
        from nereid_zoo.layout.component import Velocity
        from nereid_zoo.layout.draw import draw
        from nereid_zoo.layout.quantised import Observer, QuantisedTransformer, quantised_layers

        assert isinstance(self.module, Velocity)
        transformer = self.module.transformer
        sections = sample_sections(CALIBRATION_BRIEFS, 17)
        observer, turns = Observer(transformer), len(CALIBRATION_STEPS)
        with observer.watching() as predict:
            for turn, steps in enumerate(CALIBRATION_STEPS):
                told(f"drawing layouts of {CALIBRATION_BRIEFS} briefs: {steps} steps, {turn + 1} of {turns}")
                chosen = range(turn, len(sections), turns)
                draw(predict, [sections[place] for place in chosen], chosen, steps=steps, flow=self.flow)
        layers = quantised_layers(transformer, observer.statistics(), told)
        return Velocity(QuantisedTransformer.of(transformer, layers)).eval(), layers

    def measured(
        self, component: Component, run: Run, rows: int, told: Callable[[str], None]
    ) -> tuple[LayoutQuality, list[Inputs]]:
        """What the engine's layouts are, and some calls that PyTorch's were drawn with; `rows` are those of one call."""
        from nereid_zoo.layout.draw import draw

        sections, calls = sample_sections(BRIEFS, 19), _Calls(torch_run(component, self.module))
        seeds = range(len(sections))
        told(f"drawing layouts of {BRIEFS} briefs in float32")
        plain = draw(calls, sections, seeds, steps=STEPS, flow=self.flow)
        told(f"drawing layouts of {BRIEFS} briefs with the engine")
        drawn = draw(lambda inputs: run(as_called(inputs), [OUT])[OUT], sections, seeds, steps=STEPS, flow=self.flow, rows=rows)
        return LayoutQuality.of(sections, drawn, plain), calls.kept


@dataclass(slots=True)
class _Calls:
    """What draws, and keeps some of its calls' inputs."""

    run: Run
    kept: list[Inputs] = field(default_factory=list)
    _count: int = 0

    def __call__(self, inputs: Mapping[str, NDArray]) -> NDArray[np.float32]:
        called = as_called(inputs)
        if self._count % _EVERY == self._count // _EVERY % _EVERY:  # another step each time
            self.kept.append(called)
        self._count += 1
        made: NDArray[np.float32] = self.run(called, [OUT])[OUT]
        return made


def as_called(inputs: Mapping[str, NDArray]) -> Inputs:
    """As `nereid_zoo.layout.draw` calls a transformer, to an engine's inputs."""
    told = {name: value for name, value in inputs.items() if name not in ("boxes", TIMESTEP)}
    return {**told, SAMPLE: inputs["boxes"], TIMESTEP: inputs[TIMESTEP][:, None]}

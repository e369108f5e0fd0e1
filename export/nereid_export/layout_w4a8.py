"""A layout transformer to one of 4-bit weights and 8-bit products: calibrated on layouts that it draws, built, checked, measured.

Its weights are unpacked to 8 bits when the engine is loaded, and multiplied as such; an engine whose products ONNX Runtime does
not execute in 8 bits is refused.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from nereid_export.built import Built, library_failures, packages_of, places
from nereid_export.components import Component
from nereid_export.engines import BUILDERS, Engine
from nereid_export.engines.base import Target, engine_bytes, engine_files
from nereid_export.engines.check import Check, aggregate_error, batch_invariant_from, random_references, refuse_above_bound
from nereid_export.engines.onnx_graph import export_onnx
from nereid_export.engines.precision import Precision
from nereid_export.errors import ExportError
from nereid_export.frame import Progress
from nereid_export.layout_w4a8_drawing import LOSS_BOUND, TIMESTEPS, Drawing, LayoutQuality
from nereid_export.memory import measure_memory
from nereid_export.options import ExportOptions
from nereid_export.resume import RECORD, Record, resume_key
from nereid_export.speed import milliseconds, usual_rows
from nereid_export.w4a8.bytes import bytes_of
from nereid_export.w4a8.codes import GROUP, STEP_BITS
from nereid_export.w4a8.graph import PRODUCT, executed, pack_weights
from nereid_export.w4a8.layers import ALONE_BITS, BITS, FACTOR_BITS, FEWEST, MEAN_BITS, MOST, RANK, QuantisedLayer
from nereid_export.w4a8.products import layers_of, tables_of

CALIBRATION_BRIEFS = 128
"""Sections whose layouts the inputs of layers are taken from."""
CALIBRATION_STEPS = (16, 7, 11, 13, 9, 19, 5, 23)
"""Of these layouts, in turn: between them, many timesteps."""
RANGES = 8
"""Of timesteps, each with what inputs are rounded by; divided by the timesteps of these layouts' steps."""
BRIEFS = 400
"""Further sections, on which the pass rate is measured, with `STEPS` steps."""
STEPS = 16
MOST_MINUTES = 24 * 60.0
"""Of fine-tuning."""
STORED = (BITS, FEWEST, MOST, MEAN_BITS, GROUP, STEP_BITS, RANK, FACTOR_BITS, ALONE_BITS, "functions")
"""How weights are stored: an engine that was built with others is built anew."""
SAME = 1e-2
"""Relative error between the engine and its simulation in PyTorch: at most a few inputs are rounded the other way."""


def require_w4a8(precision: Precision, engine: Engine, minutes: float, **further: bool) -> None:
    """Raise ExportError for a precision that a layout transformer does not have, or what does not go with it.

    `minutes` are of fine-tuning; `further` engines, by their options.
    """
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
    if not 0 <= minutes <= MOST_MINUTES:
        raise ExportError(f"--fine-tune-minutes: {minutes:g} is not allowed; it must be 0 (none) to {MOST_MINUTES:g}")
    if minutes and precision is not Precision.W4A8:
        raise ExportError(f"--fine-tune-minutes is not allowed with --precision {precision}; it must be {Precision.W4A8}")


def build_w4a8(
    component: Component,
    target: Target,
    source: str,
    options: ExportOptions,
    folder: Path,
    progress: Progress,
    fine_tune_minutes: float = 0.0,
) -> Built:
    """Build, check and measure the engine in `folder`; `component` is a layout transformer's, `source` its checkpoint's digest.

    Raises ExportError for one that is too far from PyTorch, or costs too much of the pass rate.
    """
    builder, precision = BUILDERS[Engine.ONNXRUNTIME], Precision.W4A8
    calibration = [CALIBRATION_BRIEFS, CALIBRATION_STEPS, RANGES, TIMESTEPS]
    numbers = [*STORED, *calibration, BRIEFS, STEPS, fine_tune_minutes]
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
    drawing = Drawing.of(options.checkpoint, component, BRIEFS, STEPS)
    module, layers, bounds = drawing.quantised(CALIBRATION_BRIEFS, CALIBRATION_STEPS, RANGES, progress.detail)
    built = Built(component, Engine.ONNXRUNTIME, target, folder)
    with library_failures(component, Engine.ONNXRUNTIME, precision, folder):
        _write(component, module, file)
        fine_tuning: dict[str, Any] = {}
        if fine_tune_minutes:
            module, fine_tuning = _fine_tuned(drawing, module, file, target, fine_tune_minutes, progress.detail)
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
        quality, built.checks = drawing.measured(run, target.max_batch_size, progress.detail)
        refuse_above_bound(component, built.checks, precision)
        refuse_loss(component, quality)
        built.invariant_from = batch_invariant_from(component, run, places(component, target))
        built.milliseconds = milliseconds(component, run, target, usual_rows(component))
        del run
    built.account = {
        "pass_rate": quality.written(),
        **fine_tuning,
        "quantization": {
            **_said(layers),
            "calibration_briefs": CALIBRATION_BRIEFS,
            "timestep_bounds": list(bounds),
            "products_in_8_bits": products,
            "off_from_simulation": difference,
            "compression": round(4 * drawing.parameters / engine_bytes(folder), 2),
            "bytes": bytes_of(file, layers, tables_of(module)),
            "share_of_halves": round(engine_bytes(folder) / (2 * drawing.parameters), 3),
        },
    }
    built.memory = measure_memory(component, file, target, builder.probe(component, target))
    built.seconds = round(time.monotonic() - start, 1)
    record.write(built.figures(), engine_files(folder))
    return built


def _write(component: Component, module: nn.Module, file: Path) -> None:
    export_onnx(component, module, file, Precision.FP32)
    pack_weights(file, layers_of(module), tables_of(module))


def _fine_tuned(
    drawing: Drawing, module: nn.Module, file: Path, target: Target, minutes: float, told: Callable[[str], None]
) -> tuple[nn.Module, dict[str, Any]]:
    """The module whose engine `file` is to be, which is written, and what the manifest says.

    It is the fine-tuned one, unless its calls are no nearer to PyTorch's than before.
    """
    component, builder = drawing.component, BUILDERS[Engine.ONNXRUNTIME]

    def measured() -> tuple[LayoutQuality, float]:
        quality, checks = drawing.measured(builder.load(component, file.parent, target), target.max_batch_size, told)
        return quality, max(check.relative_error for check in checks)

    before, error_before = measured()
    made, steps = drawing.fine_tuned(module, minutes, told)
    untuned = file.read_bytes()
    _write(component, made, file)
    after, error = measured()
    kept = error < error_before
    if not kept:
        file.write_bytes(untuned)
    said = {
        "minutes": minutes,
        "steps": steps,
        "kept": kept,
        "error_before": round(error_before, 5),
        "error": round(error, 5),
        "pass_rate_before": before.written(),
        "pass_rate": after.written(),
    }
    return made if kept else module, {"fine_tuning": said}


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
        f"{made['compression']:.1f} times smaller than float32{beyond}{_said_of_tuning(engine)}"
    )


def _said_of_tuning(engine: Mapping[str, Any]) -> str:
    if "fine_tuning" not in engine:
        return ""
    told = engine["fine_tuning"]
    kept = "" if told["kept"] else ", which is not kept"
    passed, without = (told[name]["passed_before"] for name in ("pass_rate", "pass_rate_before"))
    return (
        f"; {told['steps']} steps of fine-tuning{kept}: error of calls {told['error']:.2%} "
        f"(without: {told['error_before']:.2%}), {passed:.1f}% pass before repair (without: {without:.1f}%)"
    )


def _said(layers: Mapping[str, QuantisedLayer]) -> dict[str, Any]:
    each = {
        name: {
            "bits": None if layer.codes is None else round(float(layer.codes.bits.mean()), 3),
            "rank": 0 if layer.factors is None else len(layer.factors.worths),
            "bytes": layer.stored_bytes,
            "alpha": layer.alpha,
            "share_of_channels_with_a_bit_more": layer.share,
            "error": round(layer.error, 5),
            "error_of_plain_rounding": round(layer.plain_error, 5),
        }
        for name, layer in layers.items()
    }
    weights, stored = (
        sum(sizes) for sizes in zip(*((its.stored.size, its.stored_bytes) for its in layers.values()), strict=True)
    )
    return {"bits": round(8 * stored / weights, 3), "group": GROUP, "rank": RANK, "layers": each}

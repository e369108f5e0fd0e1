"""Layout transformers of 4-bit weights and 8-bit products: the module, the engine, what is published and what is refused."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import onnx
from onnx import numpy_helper
from typer.testing import CliRunner

from nereid.engines.digests import Verifier
from nereid.layout.settings import OUT
from nereid.layout.tokens import tokens_of
from nereid_export import layout as exporting
from nereid_export import layout_w4a8 as module
from nereid_export.cli import app
from nereid_export.engines import Engine
from nereid_export.engines.check import random_inputs, torch_run
from nereid_export.engines.onnx_graph import export_onnx, run_file
from nereid_export.engines.precision import Precision
from nereid_export.errors import ExportError
from nereid_export.layout_drawing import LayoutDrawer
from nereid_export.layout_w4a8 import refuse_loss, said_of_quality
from nereid_export.layout_w4a8_drawing import Drawing, LayoutQuality, as_called
from nereid_export.w4a8.graph import PRODUCT, executed, pack_weights
from nereid_export.w4a8.inputs import Statistics
from nereid_export.w4a8.layers import QuantisedLayer
from nereid_export.w4a8.products import layers_of, tables_of
from nereid_export.w4a8.tuning import CODE_RATE
from nereid_zoo.cli import app as zoo
from nereid_zoo.layout.batches import sample_row
from nereid_zoo.layout.component import TOKENS, Velocity, layout_component
from nereid_zoo.layout.draw import draw, draw_tokens, flow_of
from nereid_zoo.layout.folders import load
from nereid_zoo.layout.model import LayoutTransformer, time_waves
from nereid_zoo.layout.observed import OF_CONDITION, Observer, layer_names
from nereid_zoo.layout.quantised import QuantisedTransformer
from nereid_zoo.layout.rounding import quantised_layers
from nereid_zoo.layout.score import CHECKPOINT, held_out_sections
from nereid_zoo.layout.timestep_ranges import bounds_of

from conftest import Silent, export_layout, export_layout_w4a8
from layout_inputs import inputs

pytestmark = pytest.mark.torch
BOUNDS = (200.0, 400.0, 600.0, 800.0)


@pytest.fixture(scope="module")
def transformer(checkpoints: dict[str, Path]) -> LayoutTransformer:
    return load(checkpoints["layout"])


@pytest.fixture(scope="module")
def observer(transformer: LayoutTransformer) -> Observer:
    observer, sections = Observer(transformer, BOUNDS), held_out_sections(12).sections
    with observer.watching() as predict:
        for steps in (9, 5):
            draw(predict, sections, range(12), steps=steps)
    return observer


@pytest.fixture(scope="module")
def statistics(observer: Observer) -> dict[str, Statistics]:
    return observer.statistics()


@pytest.fixture(scope="module")
def layers(transformer: LayoutTransformer, observer: Observer) -> dict[str, QuantisedLayer]:
    return quantised_layers(transformer, observer.statistics(), observer.calls)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> Path:
    """To be read only."""
    out = tmp_path_factory.mktemp("w4a8") / "out"
    export_layout_w4a8(checkpoints["layout"], out)
    return out


# --- what is observed ---


def test_inputs_are_noted_by_layer_and_range_without_padded_tokens(
    transformer: LayoutTransformer, statistics: dict[str, Statistics]
) -> None:
    assert set(statistics) == set(layer_names(transformer))
    for name, its in statistics.items():
        width = transformer.get_submodule(name).get_parameter("weight").shape[1]
        ranges = 1 if name in OF_CONDITION else 1 + len(BOUNDS)
        assert its.low.shape == its.high.shape == (ranges, width)
        assert its.gram.shape == (width, width)
        assert (its.rows >= its.low[its.places] - 1e-6).all()
        assert (its.rows <= its.high[its.places] + 1e-6).all()
    section = sample_row(Random(1))[0]
    found = []
    for size in (len(section), 32):
        observer = Observer(transformer, BOUNDS)
        with observer.watching() as predict:
            draw_tokens(predict, tokens_of([section], size), [1], steps=2)
        found.append(observer.statistics())
    for name in statistics:
        assert np.allclose(found[0][name].gram, found[1][name].gram, rtol=1e-3, atol=1e-3)


def test_layers_of_time_and_canvas_are_noted_at_the_timesteps_of_other_runs_too(transformer: LayoutTransformer) -> None:
    section, found = sample_row(Random(1))[0], []
    for timesteps in ((), (0.0, 3.0, 500.0, 999.0)):
        observer = Observer(transformer, BOUNDS, timesteps)
        with observer.watching() as predict:
            draw_tokens(predict, tokens_of([section], 16), [1], steps=2)
        found.append(observer.statistics())
    for name in found[0]:
        assert np.array_equal(found[0][name].gram, found[1][name].gram) is (name not in OF_CONDITION)
    waves = time_waves(torch.tensor([0.0, 3.0, 500.0, 999.0]), transformer.config.width).numpy()
    its = found[1]["time_embed.0"]
    assert (its.low <= waves.min(0) + 1e-6).all()
    assert (its.high >= waves.max(0) - 1e-6).all()
    assert len(its.rows) == 2 + 4


def test_what_rounding_a_layer_does_to_velocities_decides_its_bits(
    transformer: LayoutTransformer, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    told: dict[str, float] = {}

    def noted(losses: Any, sizes: Any, mean: float) -> dict[str, int]:
        told.update(losses)
        return {name: 6 if name.endswith("fc1") else 3 for name in losses}

    monkeypatch.setattr("nereid_zoo.layout.rounding.bits_each", noted)
    made = quantised_layers(transformer, observer.statistics(), observer.calls)
    assert set(told) == set(made)
    assert all(0 < loss < 0.01 for loss in told.values())
    assert all(torch.equal(value, before[name]) for name, value in transformer.state_dict().items())
    for name, its in made.items():
        if its.codes is not None:
            assert its.codes.bits.mean() == pytest.approx(6 if name.endswith("fc1") else 3)


# --- the module ---


def inputs_of(checkpoint: Path, rows: int, tokens: int) -> dict[str, np.ndarray]:
    part = layout_component(checkpoint)
    return {name: value.numpy() for name, value in random_inputs(part, rows, {TOKENS: tokens}, 5).items()}


def test_the_module_is_near_the_transformer_that_it_stands_for(
    transformer: LayoutTransformer, layers: dict[str, QuantisedLayer], checkpoints: dict[str, Path]
) -> None:
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    made, calls = QuantisedTransformer.of(transformer, layers, BOUNDS), []
    sections = held_out_sections(6).sections

    def noted(inputs: Any) -> np.ndarray:
        calls.append(as_called(inputs))
        run = torch_run(layout_component(checkpoints["layout"]), Velocity(transformer))
        out: np.ndarray = run(calls[-1], [OUT])[OUT]
        return out

    draw(noted, sections, range(6), steps=4)
    wanted, given = [], []
    for call in calls:
        valid = call["valid"] > 0
        for module_, home in ((Velocity(transformer), wanted), (Velocity(made), given)):
            home.append(torch_run(layout_component(checkpoints["layout"]), module_)(call, [OUT])[OUT][valid])
    off, size = np.concatenate(given) - np.concatenate(wanted), np.concatenate(wanted)
    assert np.linalg.norm(off) / np.linalg.norm(size) < 0.1
    assert all(torch.equal(value, before[name]) for name, value in transformer.state_dict().items())


def test_smoothing_and_gains_cancel_where_nothing_is_rounded(
    transformer: LayoutTransformer,
    layers: dict[str, QuantisedLayer],
    checkpoints: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With products of the smoothed weights themselves, the module computes what the transformer does."""
    made = QuantisedTransformer.of(transformer, layers, BOUNDS)
    for name in layer_names(transformer):
        weight = transformer.get_submodule(name).get_parameter("weight").detach().clone()
        if name.endswith("qkv"):
            weight[-transformer.config.width :] *= torch.from_numpy(layers[name.replace("qkv", "proj")].smooth)[:, None]
        weight = weight / torch.from_numpy(layers[name].smooth)
        home = made.get_submodule(name)
        product = home.product if name in OF_CONDITION else home
        monkeypatch.setattr(product, "forward", lambda x, weight=weight: x @ weight.T)
    given = inputs_of(checkpoints["layout"], 3, 16)
    part = layout_component(checkpoints["layout"])
    wanted, found = (torch_run(part, Velocity(its))(given, [OUT])[OUT] for its in (transformer, made))
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 5e-3  # halves


def test_each_row_is_rounded_by_the_range_of_its_own_timestep(
    transformer: LayoutTransformer, layers: dict[str, QuantisedLayer]
) -> None:
    given = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in inputs(1).items()}
    given["timestep"] = torch.tensor([399.0, 401.0])
    made = QuantisedTransformer.of(transformer, layers, BOUNDS)
    with torch.inference_mode():
        before = made(**given)
        for place, changed in ((0, [False, False]), (1, [True, False]), (2, [False, True])):
            other = QuantisedTransformer.of(transformer, layers, BOUNDS)
            other.gains[place] *= 1.5
            assert (other(**given) != before).flatten(1).any(1).tolist() == changed


# --- the engine ---


def test_the_engine_executes_in_8_bits_and_rows_keep_their_bits(repository: Path, checkpoints: dict[str, Path]) -> None:
    file = repository / "layout" / "1" / "model.onnx"
    assert executed(file)[PRODUCT] == len(OF_CONDITION) + 2 * 4
    run, given = run_file(file, threads=1), inputs_of(checkpoints["layout"], 6, 16)
    given["timestep"] = np.linspace(0, 1000, 6, dtype=np.float32)[:, None]  # another range each
    together = run(given, [OUT])[OUT]
    for row in range(6):
        alone = run({name: value[row : row + 1] for name, value in given.items()}, [OUT])[OUT]
        assert alone.tobytes() == together[row : row + 1].tobytes()


def test_the_engine_rounds_by_the_ranges_of_its_checkpoints_own_scheduler(repository: Path, checkpoints: dict[str, Path]) -> None:
    """They are in the graph, and in the manifest as they are there."""
    file, manifest = repository / "layout" / "1" / "model.onnx", json.loads((repository / "layout" / "manifest.json").read_text())
    bounds = manifest["engines"]["layout"]["quantization"]["timestep_bounds"]
    assert tuple(bounds) == bounds_of(flow_of(checkpoints["layout"]), module.CALIBRATION_STEPS, module.RANGES)
    stored = [numpy_helper.to_array(tensor) for tensor in onnx.load(str(file)).graph.initializer]
    assert any(np.array_equal(its, np.float32(bounds)) for its in stored)


def test_what_is_published_says_what_it_costs(repository: Path) -> None:
    manifest = json.loads((repository / "layout" / "manifest.json").read_text())
    engine = manifest["engines"]["layout"]
    assert manifest["arguments"]["precision"] == engine["precision"] == "w4a8"
    assert engine["checks"][0]["relative_error"] < engine["error_bound"] == 0.2
    assert engine["quantization"]["off_from_simulation"] < 1e-2
    assert engine["quantization"]["products_in_8_bits"] == len(engine["quantization"]["layers"]) == 13
    assert 3 < engine["quantization"]["bits"] < 6  # a layer of 64 inputs has more of scales and corrections than a larger one
    for name, its in engine["quantization"]["layers"].items():
        assert its["bits"] is None or 3 <= its["bits"] <= 6
        if its["bits"] is None or its["bits"] >= 4:
            assert its["error"] < its["error_of_plain_rounding"], name
    rate = engine["pass_rate"]
    assert (rate["briefs"], rate["steps"], rate["loss_bound"]) == (12, 16, 1.0)
    assert 0 <= rate["off_px"] <= rate["off_px_p95"]
    Verifier(repository).verify(manifest["models"])


def test_the_manifest_says_where_all_bytes_go(repository: Path) -> None:
    manifest = json.loads((repository / "layout" / "manifest.json").read_text())
    made = manifest["engines"]["layout"]["quantization"]
    assert list(made["bytes"]) == ["codes", "scales", "factors", "tables", "halves", "constants", "graph"]
    assert all(count > 0 for count in made["bytes"].values())
    assert sum(made["bytes"].values()) == (repository / "layout" / "1" / "model.onnx").stat().st_size
    parts = ("codes", "scales", "factors")
    assert sum(made["bytes"][part] for part in parts) == sum(its["bytes"] for its in made["layers"].values())


def test_the_shipped_transformer_takes_a_quarter_of_its_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrated shortly: on few layouts, with one alpha and all channels of a layer alike."""
    monkeypatch.setattr("nereid_export.w4a8.layers.ALPHAS", (0.4,))
    monkeypatch.setattr("nereid_export.w4a8.layers.SHARES", (0.0,))
    part, file = layout_component(CHECKPOINT), tmp_path / "model.onnx"
    drawing = Drawing.of(CHECKPOINT, part, 4, 5)
    made, layers, _ = drawing.quantised(8, (7, 4), 8, lambda text: None)
    export_onnx(part, made, file, Precision.FP32)
    pack_weights(file, layers_of(made), tables_of(made))
    assert file.stat().st_size <= 0.25 * 2 * drawing.parameters
    assert executed(file)[PRODUCT] == len(layers) == 29
    _, (check,) = drawing.measured(run_file(file), 4, lambda text: None)
    assert check.relative_error < 0.1


@pytest.mark.parametrize(("rate", "kept"), [(CODE_RATE, True), (5.0, False)])
def test_fine_tuning_is_measured_and_kept_where_calls_are_nearer_with_it(
    rate: float, kept: bool, checkpoints: dict[str, Path], repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr("nereid_zoo.layout.distil.monotonic", lambda: float(next(clock)))  # a second a step
    monkeypatch.setattr("nereid_zoo.layout.distil.CODE_RATE", rate)
    manifest = export_layout_w4a8(checkpoints["layout"], tmp_path / "out", fine_tune_minutes=1.0)
    engine = manifest["engines"]["layout"]
    assert manifest["arguments"]["fine_tune_minutes"] == "1.0"
    said = engine["fine_tuning"]
    assert (said["minutes"], said["steps"], said["kept"]) == (1.0, 59, kept)
    assert (said["error"] < said["error_before"]) is kept
    assert engine["checks"][0]["relative_error"] == pytest.approx(said["error" if kept else "error_before"], abs=1e-5)
    assert engine["pass_rate"] == said["pass_rate" if kept else "pass_rate_before"]
    files = [out / "layout" / "1" / "model.onnx" for out in (repository, tmp_path / "out")]
    assert (files[0].read_bytes() == files[1].read_bytes()) is not kept
    assert files[1].stat().st_size < files[0].stat().st_size + 200
    assert engine["quantization"]["off_from_simulation"] < 1e-2
    assert "59 steps of fine-tuning" + (": error" if kept else ", which is not kept: error") in said_of_quality(engine)


def test_padded_tokens_do_not_count_as_errors(checkpoints: dict[str, Path]) -> None:
    part = layout_component(checkpoints["layout"])
    drawing = Drawing.of(checkpoints["layout"], part, 6, 2)
    plain = torch_run(part, drawing.module)

    def run(inputs: Any, names: Any, off: float = 0.0) -> dict[str, np.ndarray]:
        valid = inputs["valid"][..., None]
        return {OUT: np.where(valid > 0, (1 + off) * plain(inputs, names)[OUT], 7.0)}

    quality, (check,) = drawing.measured(run, 3, lambda text: None)
    assert (quality.off_px, check.relative_error) == (0.0, 0.0)
    _, (check,) = drawing.measured(lambda inputs, names: run(inputs, names, 0.01), 3, lambda text: None)
    assert check.relative_error == pytest.approx(0.01, rel=1e-3)


def test_it_is_served_as_any_other(repository: Path) -> None:
    drawer, asked = LayoutDrawer.of(repository / "layout"), held_out_sections(3).sections
    table = drawer.table(drawer.model.facts.scheduler, 4)
    alone = [drawer.draw([section], [place], table)[0] for place, section in enumerate(asked)]
    assert drawer.draw(asked, range(3), table) == alone


def test_an_interrupted_export_takes_the_engine_that_it_had_built(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CALIBRATION_BRIEFS", 8)
    monkeypatch.setattr(module, "BRIEFS", 2)
    monkeypatch.setattr(module, "refuse_loss", lambda component, quality: None)
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "publish", lambda *paths: (_ for _ in ()).throw(ExportError("stopped")))
        with pytest.raises(ExportError, match="stopped"):
            export_layout(checkpoints["layout"], tmp_path / "out", precision=Precision.W4A8)
    progress = Silent()
    options = exporting.LayoutExportOptions(checkpoint=checkpoints["layout"], out=tmp_path / "out", precision=Precision.W4A8)
    exporting.export_layout(options, progress)
    assert "layout_transformer: built before" in progress.said


# --- what is refused ---


QUALITY = LayoutQuality(
    briefs=400, steps=16, passed_before=40.0, passed_before_fp32=41.0, passed=99.0, passed_fp32=100.0, off_px=0.9, off_px_p95=2.0
)


def test_what_costs_more_than_a_point_after_repair_is_refused(checkpoints: dict[str, Path]) -> None:
    part = layout_component(checkpoints["layout"])
    refuse_loss(part, QUALITY)
    with pytest.raises(ExportError, match=r"98.9% of 400 layouts pass after repair, more than 1 points below PyTorch's 100.0%"):
        refuse_loss(part, replace(QUALITY, passed=98.9))


@pytest.mark.parametrize(("before", "within"), [(40.0, True), (39.9, False)])
def test_what_it_costs_before_repair_is_said(before: float, within: bool) -> None:
    rate = replace(QUALITY, passed_before=before).written()
    assert rate["within"] is within
    said = said_of_quality({"pass_rate": rate, "quantization": {"compression": 5.0}})
    assert ("more than 1 points are lost before repair" in said) is not within
    assert "5.0 times smaller" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"precision": Precision.INT8},
            "--precision: int8 is not allowed for a layout transformer; it must be one of fp32, w4a8",
        ),
        ({"engine": Engine.OPENVINO}, "--engine: openvino is not allowed with --precision w4a8; it must be onnxruntime"),
        ({"engine": Engine.AUTO}, "--engine: auto is not allowed with --precision w4a8; it must be onnxruntime"),
        ({"cache": True}, "--cache is not allowed with --precision w4a8"),
        ({"widths": True}, "--widths is not allowed with --precision w4a8"),
        ({"tokens": True}, "--tokens is not allowed with --precision w4a8"),
        ({"fine_tune_minutes": -1.0}, r"--fine-tune-minutes: -1 is not allowed; it must be 0 \(none\) to 1440"),
        ({"fine_tune_minutes": float("nan")}, r"--fine-tune-minutes: nan is not allowed; it must be 0 \(none\) to 1440"),
        (
            {"fine_tune_minutes": 1.0, "precision": Precision.FP32},
            "--fine-tune-minutes is not allowed with --precision fp32; it must be w4a8",
        ),
    ],
)
def test_what_it_does_not_go_with_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    given = {"precision": Precision.W4A8, "checkpoint": tmp_path, "out": tmp_path / "out", **options}
    with pytest.raises(ExportError, match=said):
        exporting.export_layout(exporting.LayoutExportOptions(**given), Silent())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["products", "simulation"])
def test_an_engine_that_is_not_what_it_should_be_is_refused(
    what: str, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CALIBRATION_BRIEFS", 8)
    monkeypatch.setattr(module, "executed", lambda file: {PRODUCT: 12 if what == "products" else 13})
    monkeypatch.setattr(module, "aggregate_error", lambda references, run: 0.5)
    said = "executes 12 of 13 products in 8 bits" if what == "products" else r"is 0.5 \(relative\) off from the simulation"
    with pytest.raises(ExportError, match=f"{said}.*nothing was published"):
        export_layout(checkpoints["layout"], tmp_path / "out", precision=Precision.W4A8)
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_costs(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fake(options: Any, progress: Any) -> dict[str, Any]:
        asked.append(options)
        engine = {"pass_rate": QUALITY.written(), "quantization": {"compression": 5.0}}
        return {"engines": {"layout": engine}}

    monkeypatch.setattr("nereid_export.layout_cli.export_layout", fake)
    monkeypatch.setattr("nereid_export.layout_cli.show_diffusion", lambda manifest, out: None)
    arguments = ["--precision", "w4a8", "--fine-tune-minutes", "3", "--out", str(tmp_path)]
    made = CliRunner().invoke(app, ["layout", str(checkpoints["layout"]), *arguments])
    assert made.exit_code == 0, made.output
    assert asked[0].fine_tune_minutes == 3
    assert asked[0].precision is Precision.W4A8
    assert "40.0% of 400 layouts pass before repair (fp32: 41.0%)" in made.output.replace("\n", " ")


def test_zoo_score_layout_has_a_row_of_an_exported_engine(
    repository: Path, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nereid_zoo.layout.score.baselines", lambda asked, task: {})
    command = ["score", "layout", "--count", "3", "--steps", "2", "--seeds", "1", "--path", str(checkpoints["layout"]), "--json"]
    command += ["--features", str(repository), "--repository", str(repository)]
    done = CliRunner().invoke(zoo, command)
    assert done.exit_code == 0, done.output
    rows = {row["layouts"]: row for row in json.loads(done.stdout)["scores"]}
    assert (next(iter(rows)), list(rows)[-1]) == ("transformer", "exported")
    assert rows["exported"]["score"] == pytest.approx(rows["transformer"]["score"], abs=0.1)
    slow = tmp_path / "slow"
    shutil.copytree(checkpoints["layout"], slow)
    settings = slow / "scheduler" / "scheduler_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"shift": 0.5}))
    slower = CliRunner().invoke(zoo, [str(slow) if word == str(checkpoints["layout"]) else word for word in command])
    others = {row["layouts"]: row for row in json.loads(slower.stdout)["scores"]}
    assert others["transformer"] != rows["transformer"]
    assert others["exported"] == rows["exported"]  # whatever schedule the checkpoint beside it has
    refused = CliRunner().invoke(zoo, [*command, "--name", "other"])
    assert refused.exit_code == 2
    assert "has no layout model other" in " ".join(refused.output.replace("│", " ").split())

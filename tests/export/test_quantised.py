"""Engines in 8 and 4 bits: what is published, what is refused, and what whole pictures say."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from conftest import Silent, export

pytest.importorskip("torch")
from nereid_export.checkpoint import Checkpoint
from nereid_export.components import components_of
from nereid_export.diffusion import export_diffusion
from nereid_export.engines import Engine, onnx_graph
from nereid_export.engines import openvino_quantised as by_openvino
from nereid_export.engines.check import aggregate_error, random_inputs, references_of
from nereid_export.engines.onnx_graph import run_file
from nereid_export.engines.onnx_quantised import QdqGraph, write_static
from nereid_export.engines.precision import END_ERROR_BOUND, ERROR_BOUNDS, Precision, parse_precisions
from nereid_export.errors import ExportError
from nereid_export.gate import SCORED, refuse_pipeline, score
from nereid_export.options import ExportOptions
from nereid_export.scorers import scorer_for
from nereid_zoo.shapes.score import CHECKPOINT

pytestmark = pytest.mark.torch


def manifest_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "text_to_image" / "manifest.json").read_text()))


def operators(file: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(str(file), load_external_data=False).graph.node)


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few, since each is drawn twice."""
    file = tmp_path_factory.mktemp("prompts") / "prompts"
    file.write_text("a red circle\na blue square\ntwo green squares\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def fp32(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("fp32") / "out"
    export(checkpoints["sd"], out)
    return manifest_of(out)


@pytest.mark.parametrize(
    ("precision", "operator"),
    [
        (Precision.INT8, "QuantizeLinear"),
        (Precision.INT8_DYNAMIC, "MatMulInteger"),
        (Precision.INT8_WEIGHTS, "MatMulNBits"),
        (Precision.INT4_WEIGHTS, "MatMulNBits"),
    ],
)
def test_onnx_runtime_has_quantised_engines_within_their_bound(
    precision: Precision, operator: str, fp32: dict[str, Any], checkpoints: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    export(checkpoints["sd"], tmp_path / "out", precision=parse_precisions(f"unet={precision}"), calibration_prompts=prompts)
    manifest = manifest_of(tmp_path / "out")
    unet = manifest["engines"]["unet"]
    assert unet["precision"] == precision
    assert unet["error_bound"] == ERROR_BOUNDS[precision]
    assert 1e-6 < max(check["relative_error"] for check in unet["checks"]) <= ERROR_BOUNDS[precision]
    assert operators(tmp_path / "out" / "unet" / "1" / "model.onnx")[operator] >= 4
    assert unet["bytes"] < manifest["engines"]["unet"]["bytes"] + fp32["engines"]["unet"]["bytes"]
    assert {engine["precision"] for name, engine in manifest["engines"].items() if name != "unet"} == {"fp32"}
    assert manifest["pictures"]["psnr"] >= manifest["pictures"]["psnr_bound"]
    assert manifest["arguments"]["precision"] == f"fp32,unet={precision}"
    assert ("quantization" in unet) == (precision is Precision.INT8)
    assert 1e-6 < unet["end_error"] < 1
    assert "end_error" not in manifest["engines"]["vae_decoder"]


def test_the_graph_that_is_measured_has_the_bits_of_the_one_that_is_published(
    checkpoints: dict[str, Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding makes much of the little that attention as one operator differs by."""
    measured = []

    def nothing_put_back(component: Any, graph: QdqGraph, samples: Any, norms: int) -> Any:
        measured.append(aggregate_error(samples.checks, graph.without(())))
        return (), {}

    monkeypatch.setattr("nereid_export.engines.onnxruntime.put_back", nothing_put_back)
    for module in ("nereid_export.engines.check.ERROR_BOUNDS", "nereid_export.gate.PSNR_BOUNDS"):
        monkeypatch.setattr(module, dict.fromkeys(Precision, 1.0))
    monkeypatch.setattr("nereid_export.engines.check.END_ERROR_BOUND", 10.0)
    export(checkpoints["sd"], tmp_path / "out", precision=parse_precisions("unet=int8"), calibration_prompts=prompts)
    assert operators(tmp_path / "out" / "unet" / "1" / "model.onnx")["MultiHeadAttention"] > 0
    (check,) = manifest_of(tmp_path / "out")["engines"]["unet"]["checks"]
    assert [check["relative_error"]] == measured


def test_parts_of_large_error_stay_as_they_were_and_are_named(
    checkpoints: dict[str, Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A UNet of random weights is far from its bound with all in 8 bits."""
    monkeypatch.setattr("nereid_export.sensitivity.MOST_PARTS", 12)
    export(checkpoints["sd"], tmp_path / "out", precision=parse_precisions("unet=int8"), calibration_prompts=prompts)
    unet = manifest_of(tmp_path / "out")["engines"]["unet"]
    found, bound = unet["quantization"], ERROR_BOUNDS[Precision.INT8]
    assert 0 < len(found["kept"]) < found["parts"] <= 12
    assert max(check["relative_error"] for check in unet["checks"]) <= bound
    assert unet["end_error"] <= END_ERROR_BOUND
    assert found["error_without_kept"] > bound or found["end_error_without_kept"] > END_ERROR_BOUND
    kept = operators(tmp_path / "out" / "unet" / "1" / "model.onnx")["QuantizeLinear"]
    for module in ("nereid_export.quantisation", "nereid_export.engines.check"):
        monkeypatch.setattr(f"{module}.ERROR_BOUNDS", {**ERROR_BOUNDS, Precision.INT8: 1.0})
        monkeypatch.setattr(f"{module}.END_ERROR_BOUND", 1.0)
    export(checkpoints["sd"], tmp_path / "all", precision=parse_precisions("unet=int8"), calibration_prompts=prompts)
    assert operators(tmp_path / "all" / "unet" / "1" / "model.onnx")["QuantizeLinear"] > kept


def test_an_engine_outside_its_bound_is_not_published(
    checkpoints: dict[str, Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = {**ERROR_BOUNDS, Precision.INT4_WEIGHTS: 1e-6}
    monkeypatch.setattr("nereid_export.engines.check.ERROR_BOUNDS", bounds)
    with pytest.raises(ExportError, match=r"relative error .* above the bound of 1e-06 for int4-weights; nothing was published"):
        export(checkpoints["sd"], tmp_path / "out", precision=parse_precisions("unet=int4-weights"), calibration_prompts=prompts)
    assert not (tmp_path / "out").exists()


def test_openvino_engines_are_quantised_by_nncf(
    fp32: dict[str, Any], checkpoints: dict[str, Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf")
    monkeypatch.setattr("nereid_export.sensitivity.MOST_PARTS", 6)
    asked = parse_precisions("unet=int8,text_encoder=int8-weights,vae_decoder=int4-weights")
    export(checkpoints["sd"], tmp_path / "out", engine=Engine.OPENVINO, precision=asked, calibration_prompts=prompts)
    manifest = manifest_of(tmp_path / "out")
    for name, precision in asked.by_component.items():
        engine = manifest["engines"][name]
        assert engine["precision"] == precision
        assert max(check["relative_error"] for check in engine["checks"]) <= ERROR_BOUNDS[precision]
        assert engine["memory"]["base_bytes"] > 2**20
    weights = tmp_path / "out" / "text_encoder" / "1" / "model.bin"
    assert weights.stat().st_size < 0.5 * fp32["engines"]["text_encoder"]["bytes"]
    assert manifest["engines"]["unet"]["quantization"]["calibration_calls"] >= 8


def test_openvino_without_nncf_says_what_to_install(
    checkpoints: dict[str, Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nncf", None)
    with pytest.raises(ExportError, match=r"need NNCF; install it with `pip install './export\[nncf\]'`"):
        by_openvino.import_nncf()
    with pytest.raises(ExportError, match="need NNCF"):
        export(
            checkpoints["sd"],
            tmp_path / "out",
            engine=Engine.OPENVINO,
            precision=parse_precisions("unet=int8"),
            calibration_prompts=prompts,
        )


def test_an_interrupted_export_builds_again_only_what_changed(
    checkpoints: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    options = ExportOptions(
        checkpoint=checkpoints["sd"],
        out=tmp_path / "out",
        precision=parse_precisions("unet=int8-dynamic"),
        calibration_prompts=prompts,
    )

    class Interrupts(Silent):
        def step(self, text: str) -> None:
            super().step(text)
            if text == "publishing the repository":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_diffusion(options, Interrupts())
    again = Silent()
    export_diffusion(replace(options, precision=parse_precisions("unet=int8-dynamic,vae_decoder=int8-weights")), again)
    assert "unet: built before" in again.said
    assert "vae_encoder: built before" in again.said
    assert "vae_decoder: exporting" in again.said


def test_other_prompts_build_again_what_was_measured_on_them(
    checkpoints: dict[str, Path], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-precision UNet has an end error, of the runs of these prompts."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nereid_export.diffusion.publish", interrupt)
    others = tmp_path / "others"
    others.write_text("a green circle\na red square\ntwo blue squares\n", encoding="utf-8")
    said = []
    for file in (prompts, others):
        silent = Silent()
        options = ExportOptions(checkpoint=checkpoints["sd"], out=tmp_path / "out", precision=parse_precisions("fp16"))
        with pytest.raises(KeyboardInterrupt):
            export_diffusion(replace(options, calibration_prompts=file), silent)
        said.append(silent.said)
    assert "unet: exporting" in said[1]
    assert "vae_decoder: built before" in said[1]


def test_prompts_that_nobody_would_draw_are_refused(checkpoints: dict[str, Path], prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--calibration-prompts: a file is not allowed with --precision fp32"):
        export(checkpoints["sd"], tmp_path / "out", calibration_prompts=prompts)


# --- whole pictures ---

FOUND = {"pictures": 10, "psnr": 21.0, "psnr_lowest": 9.0}


def test_pictures_too_far_from_pytorch_are_refused() -> None:
    refuse_pipeline(FOUND, (Precision.INT8,))
    refuse_pipeline(FOUND, (Precision.FP16, Precision.INT8))
    with pytest.raises(ExportError, match=r"median PSNR of 21\.0 dB .* below the bound of 30 for fp16; nothing was published"):
        refuse_pipeline(FOUND, (Precision.FP16,))
    with pytest.raises(ExportError, match="median PSNR"):
        refuse_pipeline({**FOUND, "psnr": float("nan")}, (Precision.INT8,))


def test_a_score_too_far_below_pytorchs_is_refused() -> None:
    scored = {**FOUND, "scored_by": "captions drawn right", "scored": 288, "score_fp32": 98.0}
    refuse_pipeline({**scored, "score": 95.5}, (Precision.INT8,))
    with pytest.raises(ExportError, match=r"captions drawn right: 94\.0% .* more than 3 points below PyTorch's 98\.0%"):
        refuse_pipeline({**scored, "score": 94.0}, (Precision.INT8,))


def test_the_zoos_scorer_knows_its_own_checkpoints_form_and_no_other(checkpoints: dict[str, Path]) -> None:
    scorer = scorer_for(CHECKPOINT)
    assert scorer is not None
    assert scorer_for(checkpoints["sd"]) is None
    assert scorer_for(Checkpoint.open(checkpoints["sdxl"]).folder) is None
    prompts = scorer.prompts(10)
    assert len(set(prompts)) == 10


def test_a_score_is_of_equal_prompts_and_seeds_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    class Drawing:
        def __init__(self) -> None:
            self.asked: list[tuple[str, int]] = []

        def draw(self, prompts: list[str], seeds: list[int]) -> list[str]:
            self.asked += zip(prompts, seeds, strict=True)
            return [f"{prompt} {seed}" for prompt, seed in zip(prompts, seeds, strict=True)]

    class Counting:
        name = "even seeds"

        def prompts(self, count: int) -> list[str]:
            return []

        def score(self, draw: Any, count: int, told: Any) -> float:
            made = list(draw([f"p{number}" for number in range(count)], list(range(count))))
            told(count)
            return 100 * sum(picture.endswith(("0", "2", "4", "6", "8")) for picture in made) / count

    ours, theirs, lines = Drawing(), Drawing(), []
    for drawer in (ours, theirs):
        assert score(drawer, Counting(), "scoring", lines.append) == 50  # type: ignore[arg-type]
    assert ours.asked == theirs.asked
    assert lines == 2 * [f"scoring: {SCORED} of {SCORED}"]


def test_layers_that_are_put_back_are_as_the_checkpoint_has_them(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all put back nothing is rounded, neither activations nor weights, wherever these lie."""
    part = next(part for part in components_of(Checkpoint.open(checkpoints["sd"])) if part.name == "unet")
    calls = [{name: value.numpy() for name, value in random_inputs(part, 2, part.example, 1).items()}]
    references = references_of(part, part.load(), calls)
    for size in (onnx_graph.SMALL_MODEL_BYTES, 1000):
        monkeypatch.setattr(onnx_graph, "SMALL_MODEL_BYTES", size)
        monkeypatch.setattr("nereid_export.engines.onnx_quantised.SMALL_MODEL_BYTES", size)
        folder = tmp_path / str(size)
        folder.mkdir()
        with onnx_graph.passing_onnx(part, part.load(), folder, Precision.FP32) as source:
            file = folder / "model.onnx"
            write_static(source, file, calls)
            graph = QdqGraph(file, source)
            rounded = graph.rounded
            some = [name for name in rounded if ".mid_block." in name]
            errors = [aggregate_error(references, graph.without(names)) for names in ((), some, rounded)]
            assert errors[0] > errors[1] > 1e-3
            assert errors[2] < 1e-5
            assert sorted(path.name for path in folder.glob("trial*")) == []
            graph.write(some, file)
        assert operators(file)["DequantizeLinear"] < 3 * len(rounded)
        assert aggregate_error(references, run_file(file)) == errors[1]
        assert operators(file)["QuantizeLinear"] == len([name for name in rounded if name not in some])


def test_layers_that_are_put_back_are_whole_with_openvino_too(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    import openvino as ov

    part = next(part for part in components_of(Checkpoint.open(checkpoints["sd"])) if part.name == "unet")
    calls = [{name: value.numpy() for name, value in random_inputs(part, 2, part.example, 1).items()}]
    references = references_of(part, part.load(), calls)
    with onnx_graph.passing_onnx(part, part.load(), tmp_path, Precision.FP32) as source:
        graph = by_openvino.FakeQuantizeGraph(by_openvino.static(ov.Core().read_model(source), calls))
    assert aggregate_error(references, graph.without(())) > 1e-3
    assert aggregate_error(references, graph.without(graph.rounded)) < 1e-5

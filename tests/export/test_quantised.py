"""Engines in 8 and 4 bits: what is published, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onnx_files import operators

from conftest import Silent, export

pytest.importorskip("torch")
from nereid_export.diffusion import export_diffusion
from nereid_export.engines import Engine
from nereid_export.engines import openvino_quantised as by_openvino
from nereid_export.engines.check import aggregate_error
from nereid_export.engines.onnx_quantised import QdqGraph
from nereid_export.engines.plan_options import PlanOptions
from nereid_export.engines.precision import END_ERROR_BOUND, ERROR_BOUNDS, Precision, parse_precisions
from nereid_export.errors import ExportError
from nereid_export.options import ExportOptions

pytestmark = pytest.mark.torch


def manifest_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "text_to_image" / "manifest.json").read_text()))


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
    # One graph for all shapes, which is compiled once; graphs of shapes are test_engines'.
    plan = PlanOptions(compiled_shapes_mib=0)
    export(checkpoints["sd"], tmp_path / "out", engine=Engine.OPENVINO, precision=asked, calibration_prompts=prompts, plan=plan)
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
    with pytest.raises(ExportError, match=r"need NNCF; install it with `pip install -e './export\[nncf\]'`"):
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

"""Engines behind one protocol: what each builds, what it refuses, and what TensorRT makes of the graphs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nereid.engines.openvino_model import computes_bf16
from nereid.engines.openvino_shapes import kept_bytes

from conftest import export

torch = pytest.importorskip("torch")
from nereid_export.checkpoint import Checkpoint
from nereid_export.components import Component, components_of
from nereid_export.configs import read_config
from nereid_export.engines import BUILDERS, Engine
from nereid_export.engines.base import Target
from nereid_export.engines.check import batch_invariant_from
from nereid_export.engines.plan_options import PlanOptions
from nereid_export.engines.precision import Precision, Precisions, parse_precisions
from nereid_export.errors import ExportError
from nereid_export.frame import Device

pytestmark = pytest.mark.torch


def target(**changes: object) -> Target:
    values: dict[str, object] = {
        **{"precision": Precision.FP32, "device": Device.CPU, "max_batch_size": 16},
        **{"default_side": 32, "max_side": 64, "scale": 4},
    }
    return Target(**{**values, **changes})  # type: ignore[arg-type]


def parts_of(checkpoint: Path) -> dict[str, Component]:
    return {part.name: part for part in components_of(Checkpoint.open(checkpoint))}


@pytest.mark.parametrize(
    ("engine", "precision", "allowed"),
    [(Engine.OPENVINO, "fp16", "fp32, bf16"), (Engine.ONNXRUNTIME, "fp32,unet=bf16", "fp32, fp16")],
)
def test_a_precision_that_an_engine_does_not_have_is_refused_by_name(
    engine: Engine, precision: str, allowed: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    refused = precision.rpartition("=")[2]
    with pytest.raises(ExportError, match=f"--precision: {refused} is not allowed with --engine {engine}; .* {allowed}"):
        export(checkpoints["sd"], tmp_path / "out", engine=engine, precision=parse_precisions(precision))


@pytest.mark.parametrize("engine", [engine for engine in BUILDERS if engine is not Engine.TORCH])
def test_kernels_are_tried_by_torch_alone(engine: Engine, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"--max-autotune is not allowed with --engine {engine}; .* engine be torch$"):
        export(checkpoints["sd"], tmp_path / "out", engine=engine, plan=PlanOptions(max_autotune=True))


def test_openvino_has_no_graphics_card(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--device: cuda is not allowed with --engine openvino"):
        export(checkpoints["sd"], tmp_path / "out", engine=Engine.OPENVINO, device=Device.CUDA)


def test_openvino_engines_are_near_pytorch_and_batch_by_their_shape(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    export(checkpoints["sdxl"], tmp_path / "out", engine=Engine.OPENVINO)
    manifest = json.loads((tmp_path / "out" / "text_to_image" / "manifest.json").read_text())
    assert "openvino" in manifest["versions"]
    for name, engine in manifest["engines"].items():
        assert (engine["engine"], engine["precision"]) == ("openvino", "fp32")
        assert all(check["relative_error"] <= 1e-4 for check in engine["checks"])
        assert engine["memory"]["base_bytes"] > 2**20
        folder = tmp_path / "out" / name
        assert {file.name for file in (folder / "1").iterdir()} == {"model.xml", "model.bin"}
        config = read_config(folder / "config.pbtxt")
        assert (config.backend, config.default_model_filename, config.max_batch_size) == ("openvino", "model.xml", 0)
        assert all(tensor.dims[0] == -1 for tensor in (*config.input, *config.output))
        assert not config.HasField("dynamic_batching")
        assert {key: value.string_value for key, value in config.parameters.items()} == {"COMPILED_SHAPES_MIB": "512"}
    denoise = read_config(tmp_path / "out" / "denoise" / "config.pbtxt")
    least = manifest["engines"]["unet"]["batch_invariant_from_rows"]
    assert denoise.parameters["unet_min_batch_size"].string_value == str(least or 1)


def test_bf16_is_asked_for_in_the_backends_own_terms(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a processor has no bfloat16, OpenVINO computes in float32: such an export would be checked for nothing."""
    if not computes_bf16():
        with pytest.raises(ExportError, match="bf16 needs a processor with bfloat16 instructions"):
            export(checkpoints["sd"], tmp_path / "out", engine=Engine.OPENVINO, precision=Precisions(Precision.BF16))
        assert not (tmp_path / "out").exists()
        monkeypatch.setattr("nereid.engines.openvino_model.computes_bf16", lambda: True)
    plan = PlanOptions(compiled_shapes_mib=0)  # compiled once, and not for every shape
    export(checkpoints["sd"], tmp_path / "out", engine=Engine.OPENVINO, precision=Precisions(Precision.BF16), plan=plan)
    config = read_config(tmp_path / "out" / "unet" / "config.pbtxt")
    assert config.parameters["HINT_BF16"].string_value == "YES"
    manifest = json.loads((tmp_path / "out" / "text_to_image" / "manifest.json").read_text())
    bounds = {engine["precision"]: engine["error_bound"] for engine in manifest["engines"].values()}
    assert bounds == {"bf16": 5e-2, "fp32": 1e-4}  # a VAE with `force_upcast` stays as it is


def test_one_graph_for_all_shapes_is_had_by_asking(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """The memory of graphs for one shape each counts as the loaded engine's, and is not counted where there are none."""
    held = {}
    for mib in (512, 0):
        out = tmp_path / str(mib)
        export(checkpoints["sd"], out, engine=Engine.OPENVINO, plan=PlanOptions(compiled_shapes_mib=mib))
        assert ("COMPILED_SHAPES_MIB" in read_config(out / "unet" / "config.pbtxt").parameters) == bool(mib)
        manifest = json.loads((out / "text_to_image" / "manifest.json").read_text())
        held[mib] = manifest["engines"]["unet"]["memory"]["base_bytes"]
        weights = (out / "unet" / "1" / "model.bin").stat().st_size
    assert held[512] - held[0] == pytest.approx(kept_bytes(weights, 512 << 20), abs=40 << 20)
    assert kept_bytes(weights, 512 << 20) > 100 << 20


def test_engines_without_it_refuse_the_memory_for_shapes(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--compiled-shapes-mib is not allowed with --engine onnxruntime"):
        export(checkpoints["sd"], tmp_path / "out", plan=PlanOptions(compiled_shapes_mib=0))


# --- rows in company ---


def scaled_by(factor_of: object) -> object:
    """An engine whose rows are multiplied by what `factor_of` makes of their number."""

    def run(inputs: dict[str, np.ndarray], outputs: list[str]) -> dict[str, np.ndarray]:
        (value,) = inputs.values()
        return {name: value[:, :1] * factor_of(len(value)) for name in outputs}  # type: ignore[operator]

    return run


@pytest.mark.parametrize(
    ("factor_of", "least"),
    [(lambda rows: 1.0, 1), (lambda rows: 1.0 if rows > 1 else 1.1, 2), (lambda rows: 1.0 + rows // 4, None)],
)
def test_the_fewest_rows_with_the_same_bits_are_measured(
    factor_of: object, least: int | None, checkpoints: dict[str, Path]
) -> None:
    decoder = parts_of(checkpoints["sd"])["vae_decoder"]
    assert batch_invariant_from(decoder, scaled_by(factor_of), [(8, decoder.example)]) == least  # type: ignore[arg-type]


def test_every_engine_is_in_the_registry() -> None:
    assert set(BUILDERS) == set(Engine) - {Engine.AUTO}

"""The UNet cut in two: with fresh features the outer part is the whole UNet, in PyTorch and as engines; odd cuts are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from conftest import export

torch = pytest.importorskip("torch")
from nereid_export.checkpoint import Checkpoint
from nereid_export.components import Component, components_of
from nereid_export.configs import read_config
from nereid_export.engines import BUILDERS, Engine, onnx_graph
from nereid_export.engines.base import Target
from nereid_export.engines.check import random_inputs
from nereid_export.engines.precision import Precision, parse_precisions
from nereid_export.errors import ExportError
from nereid_export.frame import Device
from nereid_export.options import ExportOptions
from nereid_export.split_unet import attends, features_channels, require_equal

import checkpoints as make

pytestmark = pytest.mark.torch

SIZES = {"height": 13, "width": 18, "tokens": 16}


def parts(folder: Path, branch: int | None) -> dict[str, Component]:
    return {part.name: part for part in components_of(Checkpoint.open(folder, cache_branch=branch))}


@pytest.mark.parametrize("branch", [0, 1])
@pytest.mark.parametrize("family", ["sd", "lcm", "sdxl"])
def test_with_fresh_features_the_outer_part_is_the_whole_unet(family: str, branch: int, checkpoints: dict[str, Path]) -> None:
    plain, cut = parts(checkpoints[family], None)["unet"], parts(checkpoints[family], branch)
    inputs = random_inputs(plain, 3, {**SIZES, "tokens": plain.example["tokens"]}, 1)
    with torch.no_grad():
        alone = plain.load()(*inputs.values())
        out, features = cut["unet"].load()(*inputs.values())
        outer = [inputs[spec.name] for spec in cut["unet_shallow"].inputs[:-1]]
        shallow = cut["unet_shallow"].load()(*outer, features)
        stale = cut["unet_shallow"].load()(*outer, features + 1)
    assert torch.equal(out, alone)
    assert torch.equal(shallow, alone)
    assert not torch.equal(stale, alone)
    assert tuple(features.shape) == (3, cut["unet"].outputs[1].dims[0], 13, 18)


def test_a_cut_unet_too_large_for_one_protobuf_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At odd sizes, where levels grow by ratios that differ, the newer exporter takes it at once."""
    monkeypatch.setattr(onnx_graph, "SMALL_MODEL_BYTES", 0)
    kinds = {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3}
    unet = parts(make.make_sd(tmp_path, block_out_channels=(8, 8, 16), **kinds), 0)["unet"]
    onnx_graph.export_onnx(unet, unet.load(), tmp_path / "model.onnx", Precision.FP32)
    inputs = random_inputs(unet, 3, {**SIZES, "tokens": unet.example["tokens"]}, 1)
    with torch.no_grad():
        expected = unet.load()(*inputs.values())
    names = [spec.name for spec in unet.outputs]
    made = onnx_graph.run_file(tmp_path / "model.onnx")({name: value.numpy() for name, value in inputs.items()}, names)
    for name, value in zip(names, expected, strict=True):
        np.testing.assert_allclose(made[name], value.numpy(), rtol=1e-4, atol=1e-4)


def test_an_outer_part_that_is_not_the_whole_is_refused(checkpoints: dict[str, Path]) -> None:
    whole, outer = (parts(checkpoints["sd"], 0)[name] for name in ("unet", "unet_shallow"))
    inputs = list(random_inputs(whole, 2, {**SIZES, "tokens": whole.example["tokens"]}, 1).values())
    places = [0, 1]  # sample and timestep: this outer part does not attend
    require_equal(whole.load(), outer.load(), inputs, places)
    other = outer.load()
    with torch.no_grad():
        other.unet.conv_out.weight.mul_(1.01)
    with pytest.raises(ExportError, match="the UNet's outer part is not the whole with the same features"):
        require_equal(whole.load(), other, inputs, places)


def test_the_outer_part_has_its_own_weights_alone(checkpoints: dict[str, Path]) -> None:
    cut = parts(checkpoints["sd"], 0)
    weights = {name: sum(value.numel() for value in part.load().parameters()) for name, part in cut.items() if part.denoises}
    assert weights["unet_shallow"] < weights["unet"] / 2
    assert not any("mid_block" in name or "downsamplers" in name for name, _ in cut["unet_shallow"].load().named_parameters())


@pytest.mark.parametrize("engine", [Engine.ONNXRUNTIME, Engine.OPENVINO])
def test_engines_agree_with_fresh_features(engine: Engine, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("openvino") if engine is Engine.OPENVINO else None
    target = Target(precision=Precision.FP32, device=Device.CPU, max_batch_size=16, default_side=32, max_side=64, scale=4)
    runs = {}
    cut = parts(checkpoints["sd"], 1)
    for name in ("unet", "unet_shallow"):
        (folder := tmp_path / name).mkdir()
        BUILDERS[engine].build(cut[name], cut[name].load(), folder, target, None)  # type: ignore[arg-type]
        runs[name] = BUILDERS[engine].load(cut[name], folder, target)
    made = random_inputs(cut["unet"], 2, {**SIZES, "tokens": cut["unet"].example["tokens"]}, 1)
    inputs = {name: value.numpy() for name, value in made.items()}
    whole = runs["unet"](inputs, ["out_sample", "features"])
    given = {**inputs, "features": whole["features"]}
    shallow = runs["unet_shallow"]({spec.name: given[spec.name] for spec in cut["unet_shallow"].inputs}, ["out_sample"])
    assert np.abs(shallow["out_sample"] - whole["out_sample"]).max() < 1e-5
    assert runs["unet"](inputs, ["out_sample"])["out_sample"].tobytes() == whole["out_sample"].tobytes()


@pytest.mark.parametrize(
    ("config", "branch", "said"),
    [
        ({}, 3, "3 is not allowed for here; it must be 0 to 2"),
        ({}, -1, "-1 is not allowed for here; it must be 0 to 2"),
        ({"up_block_types": ["AttnUpBlock2D"]}, 0, "whose outermost up block is a AttnUpBlock2D"),
        ({"down_block_types": ["SimpleCrossAttnDownBlock2D"]}, 0, "whose outermost down block is a SimpleCrossAttnDownBlock2D"),
        ({"center_input_sample": True}, 0, "whose center_input_sample is True"),
        ({"time_embedding_act_fn": "silu"}, 0, "whose time_embedding_act_fn is 'silu'"),
        ({"encoder_hid_dim_type": "text_proj"}, 0, "whose encoder_hid_dim_type is 'text_proj'"),
    ],
)
def test_odd_cuts_are_refused_in_one_sentence(config: dict[str, object], branch: int, said: str) -> None:
    usual = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [320, 640]}
    with pytest.raises(ExportError) as refused:
        features_channels({**usual, **config}, branch, "here")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("down", "up", "branch", "expected"),
    [("", "", 1, False), ("CrossAttn", "", 0, False), ("CrossAttn", "", 1, True), ("", "CrossAttn", 0, True)],
)
def test_the_prompt_is_told_where_the_outer_part_attends(down: str, up: str, branch: int, expected: bool) -> None:
    config = {"down_block_types": [f"{down}DownBlock2D"], "up_block_types": [f"{up}UpBlock2D"]}
    assert attends(config, branch) is expected


def test_features_are_as_wide_as_what_enters_the_layer() -> None:
    usual = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [320, 640]}
    assert [features_channels(usual, branch, "") for branch in (0, 1, 2)] == [320, 320, 640]


def test_the_outer_part_takes_the_unets_rows_and_precision() -> None:
    options = ExportOptions(checkpoint=Path(), out=Path())
    assert options.engine_rows("unet_shallow") == options.engine_rows("unet") == 16
    assert parse_precisions("fp32,unet=int8").of("unet_shallow") is Precision.INT8
    assert parse_precisions("unet=int8,unet_shallow=fp32").of("unet_shallow") is Precision.FP32


def test_an_exported_pipeline_says_where_it_is_cut(repository: Path) -> None:
    facts = json.loads((repository / "v_denoise" / "1" / "pipeline.json").read_text())
    assert facts["cache"] == {"branch": 0, "channels": 16, "attends": False, "calibrations": []}
    assert json.loads((repository / "denoise" / "1" / "pipeline.json").read_text())["cache"] is None
    config = read_config(repository / "v_unet_shallow" / "config.pbtxt")
    assert [item.name for item in config.input][-1] == "features"
    assert [item.name for item in read_config(repository / "v_unet" / "config.pbtxt").output] == ["out_sample", "features"]
    assert not (repository / "unet_shallow").exists()
    assert (
        read_config(repository / "v_denoise" / "config.pbtxt").parameters["unet_shallow_model"].string_value == "v_unet_shallow"
    )


def test_a_quantised_outer_part_is_calibrated_on_features_of_real_runs(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    export(checkpoints["sd"], tmp_path / "out", cache_branch=0, precision=parse_precisions("fp32,unet_shallow=int8"))
    manifest = json.loads((tmp_path / "out" / "text_to_image" / "manifest.json").read_text())
    assert manifest["engines"]["unet_shallow"]["precision"] == "int8"
    assert manifest["arguments"]["cache_branch"] == "0"

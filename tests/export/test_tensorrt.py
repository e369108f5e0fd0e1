"""TensorRT's options, profiles and configs, and what TensorRT for RTX, which needs no graphics card, makes of every component."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

from nereid.engines.digests import sign

from conftest import ZOO, export

torch = pytest.importorskip("torch")

from nereid_export.checkpoint import Checkpoint
from nereid_export.cli import app
from nereid_export.components import Component, components_of
from nereid_export.configs import engine_config, read_config
from nereid_export.engines import BUILDERS, Engine
from nereid_export.engines.base import Samples, Target, input_shape, shape_range, shape_ranges
from nereid_export.engines.check import random_inputs, references_of
from nereid_export.engines.onnx_graph import OPSET, QDQ_OPSET, export_onnx
from nereid_export.engines.onnx_quantised import write_static
from nereid_export.engines.plan_account import PlanAccount, difference, read_account
from nereid_export.engines.plan_options import PlanOptions
from nereid_export.engines.precision import ERROR_BOUNDS, Precision
from nereid_export.engines.tensorrt import build_plan
from nereid_export.engines.tensorrt_rtx import TensorRtRtx
from nereid_export.errors import ExportError
from nereid_export.frame import Device

pytestmark = pytest.mark.torch

RTX = PlanOptions(compute_capability=("8.9",))


def target(**changes: object) -> Target:
    values: dict[str, object] = {
        **{"precision": Precision.FP32, "device": Device.CPU, "max_batch_size": 16},
        **{"default_side": 32, "max_side": 64, "scale": 4, "plan": RTX},
    }
    return Target(**{**values, **changes})  # type: ignore[arg-type]


def parts_of(checkpoint: Path) -> dict[str, Component]:
    return {part.name: part for part in components_of(Checkpoint.open(checkpoint))}


@pytest.fixture
def trt() -> object:
    return pytest.importorskip("tensorrt_rtx", reason="extra tensorrt-rtx")


# --- what is refused ---


def test_tensorrt_without_tensorrt_says_what_to_do(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="NVIDIA's container with `make docker-export"):
        export(checkpoints["sd"], tmp_path / "out", engine=Engine.TENSORRT)


@pytest.mark.parametrize(
    ("engine", "plan", "sentence"),
    [
        (
            Engine.ONNXRUNTIME,
            {"timing_cache": Path("c")},
            "--timing-cache is not allowed with --engine onnxruntime; .* tensorrt$",
        ),
        (Engine.TENSORRT_RTX, {"bucket": ((64, 64),)}, "--bucket is not allowed with --engine tensorrt-rtx"),
        (Engine.OPENVINO, {"version_compatible": True}, "--version-compatible is not allowed with --engine openvino"),
        (Engine.ONNXRUNTIME, {"weight_streaming": True}, "--weight-streaming is not .* onnxruntime; .* tensorrt, tensorrt-rtx$"),
        (Engine.TENSORRT_RTX, {"refit": True}, "--refit is not allowed with --engine tensorrt-rtx; .* engine be tensorrt$"),
        (Engine.TENSORRT_RTX, {"timing_cache": Path("c")}, "--timing-cache is not allowed with --engine tensorrt-rtx"),
        (Engine.TENSORRT, {"compute_capability": ("8.9",)}, "--compute-capability is not .* tensorrt; .* be tensorrt-rtx$"),
        (Engine.TENSORRT, {"bucket": ((30, 32),)}, r"--bucket: 30x32 is not allowed; .* a multiple of 4 from 32 to 1024"),
        (Engine.OPENVINO, {"bucket": ((30, 32),)}, r"--bucket: 30x32 is not allowed; .* a multiple of 4 from 32 to 1024"),
        (Engine.TENSORRT, {"bucket": ((32, 2048),)}, r"--bucket: 32x2048 is not allowed; .* from 32 to 1024 \(--max-side\)"),
        (Engine.TENSORRT, {"timing_cache": Path("/none/c")}, "--timing-cache: /none/c is not allowed; it must be a file in a"),
    ],
)
def test_an_option_that_an_engine_does_not_have_is_refused_by_name(
    engine: Engine, plan: dict[str, object], sentence: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=sentence):
        export(checkpoints["sd"], tmp_path / "out", engine=engine, plan=PlanOptions(**plan))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("capability", ["9.0", "89", "8.9x"])
def test_a_compute_capability_that_is_not_there_is_refused_by_name(
    trt: object, capability: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    plan = PlanOptions(compute_capability=("8.9", capability))
    sentence = f"--compute-capability: '{capability}' is not allowed; it must be one of 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"
    with pytest.raises(ExportError, match=sentence):
        export(checkpoints["sd"], tmp_path / "out", engine=Engine.TENSORRT_RTX, plan=plan)


@pytest.mark.parametrize("text", ["64", "64x", "x64", "64x64x3", "-64x64"])
def test_a_bucket_that_is_no_size_is_refused(text: str, tmp_path: Path) -> None:
    command = ["diffusion", str(tmp_path), "--engine", "tensorrt", f"--bucket={text}"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert f"--bucket: {text!r} is not allowed; it must be WIDTHxHEIGHT" in done.output.replace("\n", " ")


# --- profiles ---


def test_profiles_cover_the_sizes_that_are_served(checkpoints: dict[str, Path]) -> None:
    parts = parts_of(checkpoints["sd"])
    shapes = shape_range(parts["unet"], target())
    found = [input_shape(parts["unet"].inputs[0], sizes) for sizes in (shapes.minimum, shapes.optimum, shapes.maximum)]
    assert found == [(1, 4, 8, 8), (8, 4, 8, 8), (16, 4, 16, 16)]
    shapes = shape_range(parts["vae_encoder"], target(max_batch_size=8))
    assert input_shape(parts["vae_encoder"].inputs[0], shapes.maximum) == (8, 3, 64, 64)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("unet", (8, 4, 16, 12)), ("vae_decoder", (8, 4, 16, 12)), ("vae_encoder", (8, 3, 64, 48))],
)
def test_a_bucket_is_a_profile_of_its_very_size_before_the_general_one(
    name: str, shape: tuple[int, ...], checkpoints: dict[str, Path]
) -> None:
    component = parts_of(checkpoints["sd"])[name]
    wanted = target(plan=PlanOptions(bucket=((48, 64), (32, 32))))
    tall, square, general = shape_ranges(component, wanted)
    assert general == shape_range(component, wanted)
    shapes = [input_shape(component.inputs[0], sizes) for sizes in (tall.minimum, tall.optimum, tall.maximum)]
    assert shapes == [(1, *shape[1:]), shape, (16, *shape[1:])]
    assert square.optimum["batch"] == 8


@pytest.mark.parametrize(("name", "profiles"), [("unet", ["0", "1", "2"]), ("text_encoder", [])])
def test_a_config_names_its_profiles_where_there_are_several(
    name: str, profiles: list[str], checkpoints: dict[str, Path]
) -> None:
    """Triton's backend uses profile 0 alone unless the instance group names more."""
    component = parts_of(checkpoints["sd"])[name]
    wanted = target(plan=PlanOptions(bucket=((48, 64), (32, 32))))
    config = engine_config(component, BUILDERS[Engine.TENSORRT], wanted, prefix="")
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert list(config.instance_group[0].profile) == profiles


# --- plans, built by TensorRT for RTX ---


def exported(component: Component, wanted: Target, folder: Path, opset: int = OPSET) -> Path:
    file = folder / f"{component.name}.onnx"
    export_onnx(component, component.load(), file, wanted.of(component), opset)
    return file


def account_of(trt: object, component: Component, graph: Path, wanted: Target) -> PlanAccount:
    ranges = shape_ranges(component, wanted)
    plan = build_plan(trt, component, graph, ranges, wanted.plan)
    assert len(memoryview(plan.data)) > 10_000
    assert plan.account is not None
    assert difference(component, plan.account, ranges) is None
    return plan.account


def quantised(component: Component, graph: Path) -> Path:
    """The graph with Q/DQ nodes around its convolutions and products: symmetric int8, by one random sample."""
    made = graph.with_suffix(".int8.onnx")
    write_static(graph, made, [sample(component)], for_tensorrt=True)
    return made


def sample(component: Component) -> dict[str, np.ndarray]:
    small = {name: size if name == "tokens" else min(size, 8) for name, size in component.example.items()}
    return {name: value.numpy() for name, value in random_inputs(component, 1, small, 1).items()}


def form(graph: Path) -> str:
    """What a graph is but for its weights' values: graphs of equal form make equal plans but for those."""
    model = onnx.load(str(graph))
    for tensor in model.graph.initializer:
        tensor.raw_data = b""
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


@pytest.fixture(scope="module")
def pipelines(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import checkpoints as make

    second = make.make_sd(tmp_path_factory.mktemp("sd2"), use_linear_projection=True, attention_head_dim=(2, 4))
    return {"shapes": ZOO / "shapes" / "checkpoint", "sd1": checkpoints["sd"], "sd2": second, "sdxl": checkpoints["sdxl"]}


@pytest.fixture(scope="module")
def built() -> dict[str, PlanAccount]:
    """Accounts of quantised plans by form, so that equal forms are built once."""
    return {}


@pytest.mark.parametrize("pipeline", ["sd1", "sd2", "sdxl", "shapes"])
def test_every_component_becomes_a_plan_of_int8_and_half_precision(
    trt: object, pipeline: str, pipelines: dict[str, Path], built: dict[str, PlanAccount], tmp_path: Path
) -> None:
    """In one build, since builds are slow; plans of half precision alone are those of the repository below."""
    parts = parts_of(pipelines[pipeline])
    scale = 8 if pipeline == "shapes" else 4
    sizes = {"scale": scale, "default_side": 8 * scale, "max_side": 16 * scale}
    wanted = target(precision=Precision.FP16, plan=PlanOptions(), **sizes)
    for part in parts.values():
        component = replace(part, keep_fp32=False)  # a VAE that asks for float32 is tried in half precision, too
        graph = exported(component, wanted, tmp_path, QDQ_OPSET)
        key = form(graph)
        if key not in built:
            built[key] = account_of(trt, component, quantised(component, graph), wanted)
        assert difference(component, built[key], shape_ranges(component, wanted)) is None
        assert min(built[key].layers["Int8"], built[key].layers["Half"]) >= 5, component.name


def test_int8_has_half_precision_between_and_says_what_it_kept(trt: object, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """What it costs is measured on the graph, which needs no card."""
    component = parts_of(checkpoints["sd"])["text_encoder"]
    module = component.load()
    calls = [sample(component)]
    samples = Samples(references_of(component, module, calls), calls)
    facts = TensorRtRtx().build(component, module, tmp_path, target(precision=Precision.INT8, plan=RTX), samples)
    assert min(facts["plan"]["layers"]["Int8"], facts["plan"]["layers"]["Half"]) >= 5
    assert facts["quantization"]["kept"] == []
    assert 1e-4 < facts["quantization"]["error_without_kept"] <= ERROR_BOUNDS[Precision.INT8]
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.plan"}


def test_bfloat16_is_in_the_graph(trt: object, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    parts = parts_of(checkpoints["sdxl"])
    wanted = target(precision=Precision.BF16)
    for part in (parts["text_encoder_2"], replace(parts["vae_encoder"], keep_fp32=False)):
        account = account_of(trt, part, exported(part, wanted, tmp_path), wanted)
        assert account.layers["BFloat16"] > 20
        assert "Half" not in account.layers
        assert {tensor.dtype for tensor in account.tensors.values()} <= {"Float", "Int32"}


def test_a_plan_has_a_profile_for_each_bucket_and_takes_the_options_that_the_library_has(
    trt: object, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    component = parts_of(checkpoints["sd"])["vae_encoder"]
    plan = replace(RTX, bucket=((48, 64),), weight_streaming=True, compute_capability=("8.9", "12.0"))
    wanted = target(plan=plan, max_batch_size=4)
    account = account_of(trt, component, exported(component, wanted, tmp_path), wanted)
    assert account.tensors["image"].profiles == (
        ((1, 3, 64, 48), (2, 3, 64, 48), (4, 3, 64, 48)),
        ((1, 3, 32, 32), (2, 3, 32, 32), (4, 3, 64, 64)),
    )
    assert account.facts()["profiles"]["image"][0][2] == [4, 3, 64, 48]


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_a_timing_cache_is_read_and_written_back(
    trt: object, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    component, file = parts_of(checkpoints["sd"])["text_encoder"], tmp_path / "kernels"
    graph = exported(component, target(), tmp_path)
    wanted = target(plan=replace(RTX, timing_cache=file))
    account_of(trt, component, graph, wanted)
    written = file.read_bytes()
    assert len(written) > 100
    assert not list(tmp_path.glob("*.new"))
    read: list[bytes] = []
    create = trt.IBuilderConfig.create_timing_cache  # type: ignore[attr-defined]
    monkeypatch.setattr(trt.IBuilderConfig, "create_timing_cache", lambda self, data: read.append(data) or create(self, b""))  # type: ignore[attr-defined]
    account_of(trt, component, graph, wanted)
    assert read == [written]


@pytest.mark.parametrize(("option", "said"), [("version_compatible", "libnvinfer_lean"), ("refit", "Error Code")])
def test_an_option_that_the_library_cannot_honour_here_ends_with_its_own_words(
    trt: object, option: str, said: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """So the flag has reached the builder: TensorRT for RTX has no lean runtime, and does not refit without a card."""
    component = parts_of(checkpoints["sd"])["text_encoder"]
    wanted = target(plan=replace(RTX, **{option: True}))
    with pytest.raises(ExportError, match=f"text_encoder: TensorRT could not build an engine: .*{said}"):
        account_of(trt, component, exported(component, wanted, tmp_path), wanted)


ACCOUNT = """Layers:
Name: a, Inputs: [ { Name: ids, Datatype: Int8 }], Constants: [ { Datatype: Half }], Outputs: [ { Datatype: Int8 } ]
Name: b, LayerType: kgen, Inputs: [ { Datatype: Half }], Outputs: [ { Datatype: Float }]

I/O Tensors:
 Name: x, IOMode: Input, DataType: Float, Dimensions: [-1,4], ProfileInfo: [{ MinShape: [1,4], OptShape: [2,4], MaxShape: [8,4] }]
 Name: y, IOMode: Output, DataType: Float, Dimensions: [-1], Location: Device, ProfileInfo: [ { Format: linear }]
"""


def test_an_account_counts_layers_by_type_and_has_each_tensors_profiles() -> None:
    account = read_account(ACCOUNT)
    assert account.layers == {"Float": 1, "Half": 2, "Int8": 1}
    assert account.tensors["x"].profiles == (((1, 4), (2, 4), (8, 4)),)
    assert (account.tensors["y"].mode, account.tensors["y"].dims, account.tensors["y"].profiles) == ("Output", (-1,), ())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: text.replace("Name: image, ", "Name: picture, "), r"its inputs are \['picture'\], not \['image'\]"),
        (lambda text: text.replace("Name: latents_std", "Name: latents_var"), "its outputs are"),
        (lambda text: text.replace("DataType: Float", "DataType: Half", 1), "image is Half, not Float"),
        (lambda text: text.replace("OptShape: [2,", "OptShape: [1,"), "image has the profiles"),
    ],
)
def test_a_plan_that_is_not_as_asked_is_told_apart(
    change: Callable[[str], str], sentence: str, checkpoints: dict[str, Path]
) -> None:
    component = parts_of(checkpoints["sd"])["vae_encoder"]
    ranges = shape_ranges(component, target(max_batch_size=4))
    shapes = "MinShape: [1,3,32,32], OptShape: [2,3,32,32], MaxShape: [4,3,64,64]"
    text = f" Name: image, IOMode: Input, DataType: Float, Dimensions: [-1,3,-1,-1], ProfileInfo: [ {{ {shapes} }}]\n" + "".join(
        f" Name: {name}, IOMode: Output, DataType: Float, Dimensions: [-1,4,-1,-1]\n" for name in ("latents_mean", "latents_std")
    )
    assert difference(component, read_account(text), ranges) is None
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(difference(component, read_account(change(text)), ranges))


# --- the repository of --engine tensorrt-rtx ---


def test_plans_for_absent_cards_are_published_unchecked_and_say_so(
    trt: object, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["diffusion", str(checkpoints["sd"]), "--engine", "tensorrt-rtx", "--precision", "fp16", "--out", str(out)]
    done = CliRunner().invoke(app, [*command, "--compute-capability", "8.6,8.9", "--max-side", "64", "--max-batch-size", "2"])
    assert done.exit_code == 0, done.output
    assert "not checked against PyTorch: TensorRT for RTX builds a plan without a graphics card" in done.output
    manifest = json.loads((out / "text_to_image" / "manifest.json").read_text())
    assert manifest["arguments"]["compute_capability"] == "8.6,8.9"
    assert manifest["versions"]["tensorrt-rtx-cu12"] == trt.__version__  # type: ignore[attr-defined]
    for name, engine in manifest["engines"].items():
        assert engine["checked"] is False
        assert "runs it on one, and none is here" in engine["reason"]
        assert not {"checks", "error_bound", "batch_invariant_from_rows"} & set(engine)
        layers = engine["plan"]["layers"]
        assert engine["precision"] == ("fp32" if name.startswith("vae") else "fp16")  # these VAEs ask for float32
        assert ("Half" in layers, "Int8" in layers) == (engine["precision"] == "fp16", False)
        folder = out / name
        assert {file.name for file in (folder / "1").iterdir()} == {"model.onnx", "model.plan"}
        assert {f"{name}/1/model.onnx", f"{name}/1/model.plan"} <= set(manifest["files"])
        config = read_config(folder / "config.pbtxt")
        assert (config.backend, config.default_model_filename) == ("onnxruntime", "model.onnx")
        assert config.optimization.execution_accelerators.gpu_execution_accelerator[0].name == "nv_tensorrt_rtx"
        (node,) = onnx.load(str(folder / "1" / "model.onnx")).graph.node
        found = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert (found["ep_cache_context"], found["embed_mode"]) == (b"model.plan", 0)
        assert found["hardware_architecture"] == b"8.6,8.9"
        # ONNX Runtime knows the node, and whose it is.
        with pytest.raises(Exception, match="EPContext node generated by 'NvTensorRTRTXExecutionProvider' is not compatible"):
            ort.InferenceSession(str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    assert read_config(out / "denoise" / "config.pbtxt").parameters["unet_min_batch_size"].string_value == "1"
    assert sign(out) == []

"""The engine `torch`: packages that are right at every size, names that callers are told, and what is refused at export."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from numpy.typing import NDArray

from nereid.engines.torch_package import PackageFacts

from conftest import export

torch = pytest.importorskip("torch")
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.export import ExportedProgram

from nereid_export import configs
from nereid_export.checkpoint import Checkpoint
from nereid_export.components import Component, TensorSpec, components_of
from nereid_export.engines import Engine, torch_aoti
from nereid_export.engines.base import Samples, Target
from nereid_export.engines.check import Run, batch_invariant_from, compare, random_references
from nereid_export.engines.onnxruntime import OnnxRuntime
from nereid_export.engines.precision import Precision
from nereid_export.engines.torch_aoti import MOST_ROWS, TorchAoti, computed_precisions
from nereid_export.errors import ExportError
from nereid_export.frame import Device
from nereid_export.split_unet import Unet
from nereid_export.tensor_names import tell_names

from packages import SUMS, Sums
from packages import TARGET as TINY

# Compiled is the shared package; of a UNet, which takes minutes, the graph is tried that would be.
pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

TARGET = Target(precision=Precision.FP32, device=Device.CPU, max_batch_size=16, default_side=32, max_side=64, scale=4)


def part_of(checkpoint: Path, name: str) -> Component:
    return next(part for part in components_of(Checkpoint.open(checkpoint)) if part.name == name)


def small_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=56,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    ).eval()


@pytest.fixture(scope="module")
def unet(checkpoints: dict[str, Path]) -> Component:
    """SDXL's, which has the most inputs, with few layers."""
    component = part_of(checkpoints["sdxl"], "unet")
    return replace(component, load=lambda: Unet(small_unet(), tuple(spec.name for spec in component.inputs[3:])))


@pytest.fixture(scope="module")
def graph(unet: Component) -> ExportedProgram:
    return torch_aoti._export(unet, unet.load())


@pytest.fixture(scope="module")
def run(unet: Component, graph: ExportedProgram) -> Run:
    """The graph as it is compiled: without the exporter's guards, which say that its example's sizes were odd."""
    module = graph.module(check_guards=False)

    def run(inputs: Mapping[str, NDArray], outputs: Sequence[str]) -> dict[str, NDArray]:
        with torch.no_grad():
            return {outputs[0]: module(*(torch.from_numpy(inputs[spec.name]) for spec in unet.inputs)).numpy()}

    return run


@pytest.mark.parametrize("rows", [2, 3, 63])
@pytest.mark.parametrize(("height", "width"), [(2, 5), (8, 8), (13, 18), (16, 9), (33, 31)])
def test_a_unets_graph_is_right_at_every_size_that_a_request_may_have(
    rows: int, height: int, width: int, unet: Component, run: Run
) -> None:
    sizes = {"height": height, "width": width, "tokens": 16}
    (check,) = compare(random_references(replace(unet, checks=((rows, sizes),)), unet.load()), run)
    assert check.relative_error < 1e-5


@pytest.mark.parametrize("tokens", [2, 7, 154])
def test_prompts_may_have_any_length(tokens: int, unet: Component, run: Run) -> None:
    sizes = {"height": 8, "width": 6, "tokens": tokens}
    (check,) = compare(random_references(replace(unet, checks=((2, sizes),)), unet.load()), run)
    assert check.relative_error < 1e-5


def test_a_unets_package_tells_of_its_tensors_and_bounds(unet: Component, graph: ExportedProgram) -> None:
    facts = torch_aoti._facts(unet, graph, torch_aoti._smallest(unet, TARGET))
    assert [(spec.name, spec.dtype, spec.dims) for spec in facts.inputs] == [
        ("sample", "float32", ("batch", 4, "height", "width")),
        ("timestep", "float32", ("batch", 1)),
        ("encoder_hidden_states", "float32", ("batch", "tokens", 56)),
        ("text_embeds", "float32", ("batch", 24)),
        ("time_ids", "float32", ("batch", 6)),
    ]
    assert [spec.name for spec in facts.outputs] == ["out_sample"]
    assert facts.smallest == {"batch": 1, "height": 1, "width": 1, "tokens": 1}
    assert facts.largest == {"batch": MOST_ROWS}  # diffusers' upsampling has a branch for more rows


def test_one_file_is_left_that_tells_what_it_was_compiled_for(package: Path) -> None:
    assert [file.name for file in package.iterdir()] == ["model.pt2"]
    facts = PackageFacts.read(package / "model.pt2")
    assert facts.torch == torch.__version__.partition("+")[0]
    assert (facts.device, facts.machine) == ("cpu", platform.machine())
    assert facts.smallest == {"batch": 1, "height": 1}
    assert facts.largest == {}


def test_in_which_company_a_row_has_the_same_bits_is_measured(package: Path) -> None:
    run = TorchAoti().load(SUMS, package, TINY)
    assert batch_invariant_from(SUMS, run, [(4, {"height": 3})]) in (1, 2, None)


# --- how it is served ---


def test_the_config_is_what_tritons_backend_takes(checkpoints: dict[str, Path]) -> None:
    component = part_of(checkpoints["sd"], "vae_encoder")
    config = configs.engine_config(component, TorchAoti(), TARGET, prefix="xl")
    assert (config.backend, config.platform, config.default_model_filename) == ("pytorch", "torch_aoti", "model.pt2")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert not config.parameters
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [("INPUT__0", [-1, 3, -1, -1])]
    assert [tensor.name for tensor in config.output] == ["OUTPUT__0", "OUTPUT__1"]


def test_a_second_config_is_for_a_triton_that_does_not_know_the_platform(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    component = part_of(checkpoints["sd"], "vae_encoder")
    config = configs.engine_config(component, TorchAoti(), TARGET, prefix="")
    configs.write_engine_config(config, tmp_path / "torch")
    older = configs.read_config(tmp_path / "torch" / "configs" / "stand_in.pbtxt")
    assert configs.read_config(tmp_path / "torch" / "config.pbtxt") == config
    assert (config.platform, older.platform) == ("torch_aoti", "")
    older.platform = "torch_aoti"
    assert older == config
    configs.write_engine_config(configs.engine_config(component, OnnxRuntime(), TARGET, prefix=""), tmp_path / "onnx")
    assert [file.name for file in (tmp_path / "onnx").iterdir()] == ["config.pbtxt"]


def test_all_that_call_an_engine_are_told_its_names(checkpoints: dict[str, Path]) -> None:
    made = configs.pipeline_configs(prefix="xl", family="sdxl", channels=4, max_batch_size=4, force_zeros=True, unet_min_rows=1)
    untold = {name: config.SerializeToString(deterministic=True) for name, config in made.items()}
    for component in components_of(Checkpoint.open(checkpoints["sdxl"])):
        tell_names(component, configs.engine_config(component, TorchAoti(), TARGET, prefix="xl"), made.values())
    steps = {step.model_name: step for step in made["text_to_image"].ensemble_scheduling.step}
    assert set(steps["xl_text_encoder_2"].input_map) == {"INPUT__0"}
    assert set(steps["xl_text_encoder_2"].output_map) == {"OUTPUT__0", "OUTPUT__1"}
    assert "prompt_embeds" in steps["xl_denoise"].input_map
    told = {
        name: json.loads(config.parameters["tensor_names"].string_value)
        for name, config in made.items()
        if "tensor_names" in config.parameters
    }
    assert set(told) == {"denoise", "image_output", "text_to_image_stream"}
    assert set(told["denoise"]) == {"xl_unet", "xl_vae_encoder"}
    assert set(told["text_to_image_stream"]) == {"xl_text_encoder", "xl_text_encoder_2"}
    assert told["image_output"] == {"xl_vae_decoder": {"latents": "INPUT__0", "image": "OUTPUT__0"}}
    assert told["denoise"]["xl_unet"] == {
        **{"sample": "INPUT__0", "timestep": "INPUT__1", "encoder_hidden_states": "INPUT__2"},
        **{"text_embeds": "INPUT__3", "time_ids": "INPUT__4", "out_sample": "OUTPUT__0"},
    }
    assert untold["tokenizer"] == made["tokenizer"].SerializeToString(deterministic=True)


def test_nobody_is_told_names_that_are_the_components_own(checkpoints: dict[str, Path]) -> None:
    from nereid_export.engines.openvino import OpenVino

    made = configs.pipeline_configs(prefix="", family="sd", channels=4, max_batch_size=4, force_zeros=False, unet_min_rows=1)
    before = {name: config.SerializeToString(deterministic=True) for name, config in made.items()}
    for component in components_of(Checkpoint.open(checkpoints["sd"])):
        tell_names(component, configs.engine_config(component, OpenVino(), TARGET, prefix=""), made.values())
    assert {name: config.SerializeToString(deterministic=True) for name, config in made.items()} == before


# --- what is refused ---


def test_no_graphics_card() -> None:
    with pytest.raises(ExportError, match="--device: cuda is not allowed with --engine torch; it must be cpu"):
        TorchAoti().require(replace(TARGET, device=Device.CUDA))


@pytest.mark.parametrize(("precision", "kind"), [(Precision.BF16, "bfloat16"), (Precision.FP16, "float16")])
def test_arithmetic_that_the_processor_lacks_is_refused(precision: Precision, kind: str) -> None:
    wanted = replace(TARGET, precision=precision)
    if precision in computed_precisions():
        TorchAoti().require(wanted)
        return
    with pytest.raises(ExportError, match=f"--precision: {precision} needs a processor with {kind} instructions"):
        TorchAoti().require(wanted)


def test_without_a_compiler_one_sentence_says_what_to_install() -> None:
    from torch._inductor import config

    TorchAoti().require(TARGET)
    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ExportError, match=r"--engine torch needs a C\+\+ compiler, .* `apt-get install g\+\+`"),
    ):
        TorchAoti().require(TARGET)


@pytest.mark.parametrize("images", [32, 64])
def test_more_rows_than_a_unets_graph_takes_are_refused_before_anything_is_built(
    images: int, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    sentence = "--max-batch-size: .* rows a call are not allowed with --engine torch; it must be 31 or less"
    with pytest.raises(ExportError, match=sentence):
        export(checkpoints["sd"], tmp_path / "out", engine=Engine.TORCH, max_batch_size=images)
    assert not list(tmp_path.iterdir())
    TorchAoti().require(replace(TARGET, max_batch_size=62))


class Few(nn.Module):
    """Goes another way from 5 rows on."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] < 5 else x


class Pairs(nn.Module):
    """Takes even heights only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2]).sum(2)


class Fixed(nn.Module):
    """Takes one height only."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.zeros(6, 4)


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (Few, "part: --max-batch-size needs a batch of 16, and PyTorch's graph takes 4 at most"),
        (Pairs, "part: PyTorch cannot run it at the smallest sizes: "),
        (Fixed, "part: torch.export cannot make one graph for every size"),
    ],
)
def test_a_component_that_has_no_graph_for_every_size_is_not_exported(
    module: type[nn.Module], sentence: str, tmp_path: Path
) -> None:
    component = Component(
        name="part",
        source="",
        inputs=(TensorSpec(name="x", dims=("height", 4)),),
        outputs=(TensorSpec(name="y", dims=("height", 4)),),
        load=module,
        example={"height": 6},
        checks=((1, {"height": 6}),),
    )
    with pytest.raises(ExportError, match=sentence) as caught:
        TorchAoti().build(component, module(), tmp_path, replace(TARGET, scale=1), Samples(()))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


class Lone(Sums):
    """Takes a height of one for something else."""

    def forward(self, x: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        made, total = super().forward(x, offset)
        return (made, total) if x.shape[1] > 1 else (2 * made, total)


def test_code_that_is_wrong_at_a_smallest_size_is_not_exported(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its graph is that of the shared package, so that it need not be compiled.
    monkeypatch.setattr(torch_aoti, "_compile", lambda _, file, *__: shutil.copy(package / "model.pt2", file))
    TorchAoti().build(SUMS, Sums(), tmp_path, TINY, Samples(()))
    with pytest.raises(ExportError, match=r"sums: relative error .* of made against PyTorch is above the bound"):
        TorchAoti().build(SUMS, Lone(), tmp_path, TINY, Samples(()))

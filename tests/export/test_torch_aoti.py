"""The engine `torch`: packages that are right at every size, names that callers are told, and what is refused at export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nereid.engines.torch_package import PackageFacts

torch = pytest.importorskip("torch")
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from nereid_export import configs
from nereid_export.checkpoint import Checkpoint
from nereid_export.components import Component, TensorSpec, Unet, components_of
from nereid_export.engines.base import Precision, Run, Target, batch_invariant_from, compare, reference_outputs
from nereid_export.engines.torch_aoti import TorchAoti, computed_precisions
from nereid_export.errors import ExportError
from nereid_export.frame import Device
from nereid_export.tensor_names import tell_names

# The UNet is compiled once.
pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]

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
def unet(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Component, Path]:
    """SDXL's, which has the most inputs; with few layers, for each takes seconds to compile."""
    component, folder = part_of(checkpoints["sdxl"], "unet"), tmp_path_factory.mktemp("unet")
    component = replace(component, load=lambda: Unet(small_unet(), tuple(spec.name for spec in component.inputs[3:])))
    TorchAoti().build(component, component.load(), folder, TARGET)
    return component, folder


@pytest.fixture(scope="module")
def run(unet: tuple[Component, Path]) -> Run:
    return TorchAoti().load(*unet, TARGET)


@pytest.mark.parametrize("rows", [1, 2, 3, 16, 63])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (8, 8), (13, 18), (16, 9), (33, 31)])
def test_a_unet_is_right_at_every_size_that_a_request_may_have(
    rows: int, height: int, width: int, unet: tuple[Component, Path], run: Run
) -> None:
    component = unet[0]
    sizes = {"height": height, "width": width, "tokens": 16}
    (check,) = compare(reference_outputs(replace(component, checks=((rows, sizes),)), component.load()), run)
    assert check.relative_error < 1e-5


@pytest.mark.parametrize("tokens", [1, 7, 154])
def test_prompts_may_have_any_length(tokens: int, unet: tuple[Component, Path], run: Run) -> None:
    component = unet[0]
    sizes = {"height": 8, "width": 6, "tokens": tokens}
    (check,) = compare(reference_outputs(replace(component, checks=((2, sizes),)), component.load()), run)
    assert check.relative_error < 1e-5


def test_a_row_has_the_same_bits_in_some_company(unet: tuple[Component, Path], run: Run) -> None:
    component = unet[0]
    assert batch_invariant_from(component, run, [(4, component.checks[0][1])]) in (1, 2, None)
    same = [run({name: value.numpy() for name, value in given.items()}, ["out_sample"]) for given in [_given(component)] * 2]
    assert same[0]["out_sample"].tobytes() == same[1]["out_sample"].tobytes()


def _given(component: Component) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {spec.name: spec.random(2, component.example, generator) for spec in component.inputs}


def test_one_file_is_left_that_tells_of_its_tensors_and_bounds(unet: tuple[Component, Path]) -> None:
    _, folder = unet
    assert [file.name for file in folder.iterdir()] == ["model.pt2"]
    facts = PackageFacts.read(folder / "model.pt2")
    assert facts.torch == torch.__version__.partition("+")[0]
    assert facts.device == "cpu"
    assert [(spec.name, spec.dtype, spec.dims) for spec in facts.inputs] == [
        ("sample", "float32", ("batch", 4, "height", "width")),
        ("timestep", "float32", ("batch", 1)),
        ("encoder_hidden_states", "float32", ("batch", "tokens", 56)),
        ("text_embeds", "float32", ("batch", 24)),
        ("time_ids", "float32", ("batch", 6)),
    ]
    assert [spec.name for spec in facts.outputs] == ["out_sample"]
    assert facts.smallest == {"batch": 1, "height": 1, "width": 1, "tokens": 1}
    assert facts.largest == {"batch": 63}  # diffusers' upsampling has a branch for 64 rows and more


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


def test_all_that_call_an_engine_are_told_its_names(checkpoints: dict[str, Path]) -> None:
    made = configs.pipeline_configs(prefix="xl", family="sdxl", channels=4, max_batch_size=4, force_zeros=True, unet_min_rows=1)
    untold = {name: config.SerializeToString(deterministic=True) for name, config in made.items()}
    for component in components_of(Checkpoint.open(checkpoints["sdxl"])):
        tell_names(component, configs.engine_config(component, TorchAoti(), TARGET, prefix="xl"), made.values())
    steps = {step.model_name: step for step in made["text_to_image"].ensemble_scheduling.step}
    assert dict(steps["xl_vae_decoder"].input_map) == {"INPUT__0": "denoised_latents"}
    assert dict(steps["xl_vae_decoder"].output_map) == {"OUTPUT__0": "image"}
    assert set(steps["xl_text_encoder_2"].input_map) == {"INPUT__0"}
    assert set(steps["xl_text_encoder_2"].output_map) == {"OUTPUT__0", "OUTPUT__1"}
    assert "prompt_embeds" in steps["xl_denoise"].input_map
    told = {
        name: json.loads(config.parameters["tensor_names"].string_value)
        for name, config in made.items()
        if "tensor_names" in config.parameters
    }
    assert set(told) == {"denoise", "text_to_image_stream"}
    assert set(told["denoise"]) == {"xl_unet", "xl_vae_encoder"}
    assert set(told["text_to_image_stream"]) == {"xl_text_encoder", "xl_text_encoder_2", "xl_vae_decoder"}
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


def test_more_rows_than_the_graph_takes_are_refused(unet: tuple[Component, Path], tmp_path: Path) -> None:
    component = unet[0]
    with pytest.raises(ExportError, match="unet: --max-batch-size needs a batch of 64, and PyTorch's graph takes 63 at most"):
        TorchAoti().build(component, component.load(), tmp_path, replace(TARGET, max_batch_size=64))
    assert not list(tmp_path.iterdir())


class Pairs(nn.Module):
    """Takes even heights only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2]).sum(2)


class Fixed(nn.Module):
    """Takes one height only."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.zeros(6, 4)


class Wrong(nn.Module):
    """Takes a picture of one latent for something else."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[1] > 1 else x


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (Pairs, "pairs: PyTorch cannot run it at the smallest sizes: "),
        (Fixed, "pairs: torch.export cannot make one graph for every size"),
        (Wrong, "pairs: relative error .* of y against PyTorch is above the bound"),
    ],
)
def test_a_component_that_is_not_right_at_every_size_is_not_exported(
    module: type[nn.Module], sentence: str, tmp_path: Path
) -> None:
    component = Component(
        name="pairs",
        source="",
        inputs=(TensorSpec(name="x", dims=("height", 4)),),
        outputs=(TensorSpec(name="y", dims=("height", 4)),),
        load=module,
        example={"height": 6},
        checks=((1, {"height": 6}),),
    )
    with pytest.raises(ExportError, match=sentence) as caught:
        TorchAoti().build(component, module(), tmp_path, replace(TARGET, scale=1))
    assert "\n" not in str(caught.value)

"""LoRA fused at export: the weights are those of diffusers and PEFT, whoever wrote the file; what does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from nereid_export.checkpoint import Checkpoint
from nereid_export.components import components_of
from nereid_export.errors import ExportError
from nereid_export.lora import Lora

pytestmark = pytest.mark.torch

Weights = dict[str, Any]
UNET = LoraConfig(
    r=4,
    lora_alpha=6,
    target_modules=["to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in", "time_emb_proj"],
    alpha_pattern={"to_q": 3},
    init_lora_weights=False,
)
TEXT = LoraConfig(r=3, lora_alpha=3, target_modules=["q_proj", "out_proj"], init_lora_weights=False)


@pytest.fixture(scope="module")
def written(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as diffusers' training scripts leave it, for UNet and text encoder."""
    folder = tmp_path_factory.mktemp("lora")
    torch.manual_seed(3)
    unet = UNet2DConditionModel.from_pretrained(checkpoints["sd"] / "unet")
    text = CLIPTextModel.from_pretrained(checkpoints["sd"] / "text_encoder")
    inject_adapter_in_model(UNET, unet)
    inject_adapter_in_model(TEXT, text)
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(unet),
        text_encoder_lora_layers=get_peft_model_state_dict(text),
        unet_lora_adapter_metadata=UNET.to_dict(),
        text_encoder_lora_adapter_metadata=TEXT.to_dict(),
    )
    return folder


def ours(folder: Path, part: str, *loras: Lora) -> Weights:
    component = next(item for item in components_of(Checkpoint.open(folder, loras)) if item.name == part)
    module = component.load()
    inner = getattr(module, {"unet": "unet", "text_encoder": "encoder"}[part])
    return dict(inner.state_dict())


def theirs(folder: Path, part: str, *loras: tuple[Path, float]) -> Weights:
    """By diffusers, of a UNet; by PEFT itself of a text encoder, which diffusers leaves to transformers and that to PEFT."""
    if part == "text_encoder":
        ((file, scale),) = loras
        text = CLIPTextModel.from_pretrained(folder / part)
        inject_adapter_in_model(TEXT, text)
        state = {name.removeprefix(f"{part}."): value for name, value in load_file(file).items() if name.startswith(f"{part}.")}
        assert not set_peft_model_state_dict(text, state).unexpected_keys
        for layer in [module for module in text.modules() if isinstance(module, LoraLayer)]:
            layer.set_scale("default", scale)
            layer.merge()
        return {name.replace(".base_layer", ""): value for name, value in text.state_dict().items() if "lora_" not in name}
    unet = UNet2DConditionModel.from_pretrained(folder / part)
    for file, scale in loras:
        state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
            str(file.parent), weight_name=file.name, unet_config=unet.config, return_lora_metadata=True
        )
        StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet, metadata=metadata)
        unet.fuse_lora(lora_scale=scale)
        unet.unload_lora()
    return dict(unet.state_dict())


def assert_equal(ours: Weights, theirs: Weights, plain: Weights) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, atol=1e-6), name
    assert any(not torch.allclose(theirs[name], plain[name], atol=1e-3) for name in plain), "nothing was fused"


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_files_of_diffusers_are_fused_as_diffusers_fuses_them(checkpoints: dict[str, Path], written: Path, part: str) -> None:
    folder, file = checkpoints["sd"], written / "pytorch_lora_weights.safetensors"
    assert_equal(ours(folder, part, Lora.parse(f"{written}:0.7")), theirs(folder, part, (file, 0.7)), ours(folder, part))


def test_files_without_metadata_have_their_rank_for_alpha(checkpoints: dict[str, Path], written: Path, tmp_path: Path) -> None:
    file = tmp_path / "old.safetensors"
    save_file(load_file(written / "pytorch_lora_weights.safetensors"), file)
    folder = checkpoints["sd"]
    assert_equal(ours(folder, "unet", Lora.parse(str(file))), theirs(folder, "unet", (file, 1.0)), ours(folder, "unet"))


def test_text_encoders_of_before_transformers_5_have_the_same_layers(
    checkpoints: dict[str, Path], written: Path, tmp_path: Path
) -> None:
    """Their files name a level that is no more."""
    file = tmp_path / "old.safetensors"
    save_file(renamed("text_encoder.", "text_encoder.text_model.")(load_file(written / FILE)), file)
    folder, plain = checkpoints["sd"], tmp_path / "plain.safetensors"
    save_file(load_file(written / FILE), plain)
    expected = ours(folder, "text_encoder", Lora.parse(str(plain)))
    assert_equal(ours(folder, "text_encoder", Lora.parse(str(file))), expected, ours(folder, "text_encoder"))


def kohyas(tensors: Weights) -> Weights:
    """The same layers under the names of kohya's scripts, with an alpha each."""
    made: Weights = {}
    for name, value in tensors.items():
        if not name.startswith("unet.") or "attentions" not in name or "proj_in" in name:
            continue
        path, _, half = name.removeprefix("unet.").partition(".lora_")
        flat = f"lora_unet_{path.replace('.', '_')}"
        made[f"{flat}.lora_{ {'A.weight': 'down', 'B.weight': 'up'}[half] }.weight"] = value
        made[f"{flat}.alpha"] = torch.tensor(2.0)
    return made


def test_files_of_kohyas_scripts_are_fused_as_diffusers_fuses_them(
    checkpoints: dict[str, Path], written: Path, tmp_path: Path
) -> None:
    file = tmp_path / "kohya.safetensors"
    save_file(kohyas(load_file(written / "pytorch_lora_weights.safetensors")), file)
    folder = checkpoints["sd"]
    assert_equal(ours(folder, "unet", Lora.parse(f"{file}:-0.5")), theirs(folder, "unet", (file, -0.5)), ours(folder, "unet"))


def test_an_adapter_of_peft_is_fused_as_peft_merges_it(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(4)
    folder = checkpoints["sd"]
    get_peft_model(UNet2DConditionModel.from_pretrained(folder / "unet"), UNET).save_pretrained(tmp_path / "adapter")
    merged = PeftModel.from_pretrained(UNet2DConditionModel.from_pretrained(folder / "unet"), tmp_path / "adapter")
    expected = merged.merge_and_unload().state_dict()
    assert_equal(ours(folder, "unet", Lora.parse(str(tmp_path / "adapter"))), expected, ours(folder, "unet"))


def everything(module: Any, prefix: str, *, alpha: float | None = 2.0) -> tuple[Weights, Weights]:
    """A file under kohya's names with every layer there is, of two ranks, and what it adds to each weight."""
    file: Weights = {}
    added: Weights = {}
    for path, layer in module.named_modules():
        if not isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
            continue
        rank, shape = 3 if "attn" in path else 2, layer.weight.shape
        down, up = torch.randn(rank, *shape[1:]), torch.randn(shape[0], rank, *[1] * (len(shape) - 2))
        name = prefix + path.replace(".", "_")
        file |= {f"{name}.lora_down.weight": down.half(), f"{name}.lora_up.weight": up.bfloat16()}
        if alpha is not None:
            file[f"{name}.alpha"] = torch.tensor(alpha, dtype=torch.bfloat16)
        product = up.bfloat16().float().flatten(1) @ down.half().float().flatten(1)
        added[f"{path}.weight"] = (product * (alpha or rank) / rank).view(shape)
    return file, added


@pytest.mark.parametrize("alpha", [2.0, None])
@pytest.mark.parametrize(("part", "prefix"), [("unet", "lora_unet_"), ("text_encoder", "lora_te_text_model_")])
def test_every_layer_of_kohyas_files_is_fused_in_half_precisions_and_ranks_of_its_own(
    checkpoints: dict[str, Path], tmp_path: Path, part: str, prefix: str, alpha: float | None
) -> None:
    """Without alphas each layer's rank is its own (diffusers once took the first layer's for all)."""
    torch.manual_seed(5)
    kind = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}[part]
    file, added = everything(kind.from_pretrained(checkpoints["sd"] / part), prefix, alpha=alpha)
    save_file(file, tmp_path / "all.safetensors")
    plain = ours(checkpoints["sd"], part)
    expected = {name: value + added.get(name, 0) for name, value in plain.items()}
    made = ours(checkpoints["sd"], part, Lora.parse(f"{tmp_path / 'all.safetensors'}"))
    for name, value in expected.items():
        assert torch.allclose(made[name], value, atol=1e-5), name


@pytest.mark.parametrize(
    "pattern",
    [
        {"to_q": 3},
        {r"down_blocks\..*\.to_[qk]": 3},
        {r"attn1\.to_.*": 3, "to_q": 5},
        {"^conv_in": 3, r"^up_blocks.*conv1": 7},
        {"o_q": 3},
    ],
)
def test_patterns_of_alphas_are_expressions_as_peft_reads_them(
    checkpoints: dict[str, Path], tmp_path: Path, pattern: dict[str, float]
) -> None:
    torch.manual_seed(6)
    folder = checkpoints["sd"]
    config = LoraConfig(
        r=2,
        lora_alpha=1,
        target_modules=["to_q", "to_k", "conv1", "conv_in"],
        alpha_pattern=pattern,
        use_rslora=True,
        init_lora_weights=False,
    )
    get_peft_model(UNet2DConditionModel.from_pretrained(folder / "unet"), config).save_pretrained(tmp_path)
    merged = PeftModel.from_pretrained(UNet2DConditionModel.from_pretrained(folder / "unet"), tmp_path)
    expected = merged.merge_and_unload().state_dict()
    assert_equal(ours(folder, "unet", Lora.parse(str(tmp_path))), expected, ours(folder, "unet"))


def test_a_unet_saved_alone_is_read_as_it_reads_itself(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """`save_lora_adapter` names no part, neither in keys nor in what it says of the adapter."""
    torch.manual_seed(7)
    folder = checkpoints["sd"]
    trained = UNet2DConditionModel.from_pretrained(folder / "unet")
    trained.add_adapter(UNET)
    trained.save_lora_adapter(tmp_path)
    loaded = UNet2DConditionModel.from_pretrained(folder / "unet")
    loaded.load_lora_adapter(tmp_path, prefix=None, weight_name=FILE)
    loaded.fuse_lora(lora_scale=0.5)
    loaded.unload_lora()
    assert_equal(ours(folder, "unet", Lora.parse(f"{tmp_path}:0.5")), dict(loaded.state_dict()), ours(folder, "unet"))


def test_names_of_old_attention_processors_are_those_of_their_layers(
    checkpoints: dict[str, Path], written: Path, tmp_path: Path
) -> None:
    """As `save_attn_procs` left them."""
    halves = {"lora_A.weight": "down", "lora_B.weight": "up"}
    old, new = {}, {}
    for name, value in load_file(written / FILE).items():
        path, _, half = name.removeprefix("unet.").rpartition(".to_q.")
        if name.startswith("unet.") and path:
            old[f"{path}.processor.to_q_lora.{halves[half]}.weight"] = new[name] = value
    save_file(old, tmp_path / "old.safetensors")
    save_file(new, tmp_path / "new.safetensors")
    folder = checkpoints["sd"]
    made, expected = (ours(folder, "unet", Lora.parse(f"{tmp_path / name}.safetensors")) for name in ("old", "new"))
    assert_equal(made, expected, ours(folder, "unet"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights 'pissa' is not supported, which changes the checkpoint's own weights",
        ),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4' is not"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora' is not"),
        ({"use_dora": True}, "use_dora is not supported; it must be plain LoRA"),
        ({"use_qalora": True}, "use_qalora is not supported; it must be plain LoRA"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens is not supported"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is not supported"),
        ({"of_next_year": True}, "of_next_year is not supported"),
        ({"peft_type": "XLORA"}, "peft_type XLORA is not supported; it must be LORA"),
        ({"alpha_pattern": {"(": 1}}, "cannot be used"),
        ({"lora_alpha": float("nan")}, "or its alpha holds NaN or infinite values"),
    ],
)
@pytest.mark.parametrize("of", ["PEFT", "diffusers"])
def test_settings_that_change_more_than_is_done_here_are_refused_by_name(
    checkpoints: dict[str, Path], tmp_path: Path, of: str, changes: dict[str, Any], words: str
) -> None:
    folder = checkpoints["sd"]
    if of == "PEFT":
        get_peft_model(UNet2DConditionModel.from_pretrained(folder / "unet"), UNET).save_pretrained(tmp_path)
        config = tmp_path / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    else:
        told = {f"unet.{name}": value for name, value in changes.items()}
        weights = {"unet.conv_in.lora_A.weight": torch.ones(1, 4, 3, 3), "unet.conv_in.lora_B.weight": torch.ones(16, 1, 1, 1)}
        save_file(weights, tmp_path / FILE, {"lora_adapter_metadata": json.dumps(told)})
    with pytest.raises(ExportError, match=words):
        ours(folder, "unet", Lora.parse(str(tmp_path)))


@pytest.mark.parametrize("lost", ["its config", "its name"])
def test_an_adapter_of_peft_whose_alpha_is_not_known_is_refused(checkpoints: dict[str, Path], tmp_path: Path, lost: str) -> None:
    get_peft_model(UNet2DConditionModel.from_pretrained(checkpoints["sd"] / "unet"), UNET).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    if lost == "its config":
        (tmp_path / "adapter_config.json").unlink()
    else:
        file = file.rename(tmp_path / "style.safetensors")
    with pytest.raises(ExportError, match=r"must be named adapter_model\.safetensors and have that beside it"):
        ours(checkpoints["sd"], "unet", Lora.parse(str(file)))


def test_several_are_added_up(checkpoints: dict[str, Path], written: Path, tmp_path: Path) -> None:
    folder, file, second = checkpoints["sd"], written / "pytorch_lora_weights.safetensors", tmp_path / "kohya.safetensors"
    save_file(kohyas(load_file(file)), second)
    both = ours(folder, "unet", Lora.parse(f"{file}:0.5"), Lora.parse(str(second)))
    assert_equal(both, theirs(folder, "unet", (file, 0.5), (second, 1.0)), ours(folder, "unet"))


def test_an_engine_of_another_lora_or_scale_is_another_engine(checkpoints: dict[str, Path], written: Path) -> None:
    def digest(*loras: str) -> str:
        return Checkpoint.open(checkpoints["sd"], tuple(map(Lora.parse, loras))).digest()

    assert len({digest(), digest(str(written)), digest(f"{written}:0.5"), digest(str(written), str(written))}) == 4


def renamed(old: str, new: str) -> Callable[[Weights], Weights]:
    return lambda tensors: {name.replace(old, new): value for name, value in tensors.items()}


def beside_kohyas(end: str) -> Callable[[Weights], Weights]:
    """One tensor more for one of the layers."""

    def change(tensors: Weights) -> Weights:
        made = kohyas(tensors)
        return {**made, f"{next(iter(made)).partition('.')[0]}.{end}": torch.ones(2)}

    return change


def widened(tensors: Weights) -> Weights:
    return {name: value.repeat(1, 2, *[1] * (value.ndim - 2)) if "lora_A" in name else value for name, value in tensors.items()}


def named_twice(tensors: Weights) -> Weights:
    """As diffusers does now, and as it did once."""
    old = {"to_q.lora_A": "processor.to_q_lora.down", "to_q.lora_B": "processor.to_q_lora.up"}
    again = {name.replace(new, before): value for name, value in tensors.items() for new, before in old.items() if new in name}
    return {**tensors, **{name: 2 * value for name, value in again.items()}}


def for_two_text_encoders(tensors: Weights) -> Weights:
    """Of kohya's two names for the first text encoder both."""
    layer = "text_model_encoder_layers_0_self_attn_out_proj"
    return {f"{te}{layer}.lora_{half}.weight": torch.ones(2, 2) for te in ("lora_te_", "lora_te1_") for half in ("down", "up")}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (named_twice, r"odd.safetensors: \d+ of its \d+ weights are of layers that others are of, too, by other names"),
        (for_two_text_encoders, "by other names; all must be named in one way"),
        (renamed("text_encoder.", "text_encoder_2."), "it is for text_encoder_2, which this checkpoint has not; .* same family"),
        (renamed("mid_block", "middle"), "does not fit the checkpoint's unet"),
        (widened, r"does not fit the checkpoint's unet \(.*for a weight of shape"),
        (renamed("lora_A", "hada_w1"), "is of LoHa, which is not supported; it must be LoRA"),
        (lambda tensors: {**tensors, "unet.conv_in.dora_scale": torch.ones(3)}, "is of DoRA"),
        (lambda tensors: {name: value for name, value in tensors.items() if "lora_B" not in name}, "counterpart"),
        (lambda tensors: {"weight": torch.ones(2)}, r"odd.safetensors cannot be used: ValueError: weight is no part"),
        (lambda tensors: {"lora_unet_nonsense.lora_down.weight": torch.ones(2)}, "odd.safetensors"),
        (lambda tensors: {f"{name}.more": value for name, value in tensors.items()}, "is not supported, or its counterpart"),
        (lambda tensors: {name: value[0] for name, value in tensors.items()}, "odd.safetensors: .* must have a rank in common"),
        (lambda tensors: {name: value[:0] for name, value in tensors.items()}, "odd.safetensors: .* must have a rank in common"),
        (lambda tensors: {name: torch.ones(()) for name in tensors}, "odd.safetensors: .* must have a rank in common"),
        (
            lambda tensors: {name: value[:-1] if "lora_A" in name else value for name, value in tensors.items()},
            "odd.safetensors: .* must have a rank in common",
        ),
        (
            lambda tensors: {name: value / 0 for name, value in tensors.items()},
            "odd.safetensors: .* holds NaN or infinite values",
        ),
        (lambda tensors: {name: value.int() for name, value in tensors.items()}, "odd.safetensors: .* is of torch.int32"),
        (lambda tensors: {}, "odd.safetensors holds no tensors"),
        (beside_kohyas("oft_blocks"), "oft_blocks is of OFT, which is not supported"),
        (beside_kohyas("lora_mid.weight"), r"to_\w+.lora_mid.weight is not supported; it must be LoRA"),
        (beside_kohyas("diff_b"), "diff_b is not supported; it must be LoRA"),
        (
            lambda tensors: {**kohyas(tensors), "lora_unet_input_blocks_1_0_in_layers_2.alpha": torch.ones(())},
            "lora_unet_input_blocks_1_0_in_layers_2.alpha and lora_unet_down_blocks.* are names of two kinds",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    checkpoints: dict[str, Path], written: Path, tmp_path: Path, change: Callable[[Weights], Weights], words: str
) -> None:
    file = tmp_path / "odd.safetensors"
    save_file({name: value.contiguous() for name, value in change(load_file(written / FILE)).items()}, file)
    with pytest.raises(ExportError, match=words):
        ours(checkpoints["sd"], "unet", Lora.parse(str(file)))


FILE = "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("nowhere.safetensors", "nowhere.safetensors is not there"),
        ("{folder}", "has no pytorch_lora_weights.safetensors or adapter_model.safetensors"),
        ("{folder}/weights.bin", "is not a safetensors file; others can run code when read"),
        ("{folder}/broken.safetensors", "truncated or corrupt"),
        ("{written}:0", "scale 0 is not allowed; it must be within 10, and not 0"),
        ("{written}:nan", "scale nan is not allowed"),
        ("{written}:11", "scale 11 is not allowed"),
        ("{written}:half", "is not there"),
    ],
)
def test_what_is_no_lora_file_is_refused_by_name(written: Path, tmp_path: Path, given: str, words: str) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\x80")
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(ExportError, match=words):
        Lora.parse(given.format(folder=tmp_path, written=written))

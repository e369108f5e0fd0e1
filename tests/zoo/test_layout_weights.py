"""Folders of layout transformers whose weights are not what their settings say: one sentence each, and no value made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from nereid.diffusion.solvers import ScheduleError
from nereid_export.errors import ExportError
from nereid_export.layout_checkpoint import LayoutCheckpoint
from nereid_zoo.cli import app
from nereid_zoo.layout.draw import DYNAMIC, flow_of
from nereid_zoo.layout.dynamic import load_dynamic
from nereid_zoo.layout.features import features_of
from nereid_zoo.layout.features_model import LayoutFeatures
from nereid_zoo.layout.folders import load
from nereid_zoo.layout.weights import WeightsError

from checkpoints import make_dynamic_layout, make_layout

pytestmark = pytest.mark.torch
Edit = Callable[[dict[str, torch.Tensor]], object]


def edited(home: Path, edit: Edit) -> None:
    (file,) = home.glob("*.safetensors")
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_float_type_are_read_in_float32(kind: torch.dtype, tmp_path: Path) -> None:
    before = load(make_layout(tmp_path)).state_dict()
    edited(tmp_path / "transformer", lambda tensors: tensors.update({name: its.to(kind) for name, its in tensors.items()}))
    for name, value in load(tmp_path).state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name].to(kind).float())


CASES: list[tuple[Edit, str]] = [
    (lambda its: its.pop("last.weight"), "the weights in .*transformer lack last.weight$"),
    (lambda its: [its.pop(f"last.{name}") for name in ("weight", "bias")], "lack last.bias and 1 more$"),
    (lambda its: its.update(more=torch.zeros(3)), "have more, which a LayoutTransformer of these settings has not"),
    (
        lambda its: its.update({name.replace("blocks.0", "blocks.2"): value.clone() for name, value in [*its.items()]}),
        "layers: 2 is not allowed; it must be 3, as the weights in .*transformer have them",
    ),
    (
        lambda its: its.update({"last.weight": torch.zeros(4, 7)}),
        r"last.weight in .*transformer: shape \(4, 7\) is not allowed; with these settings it must be \(4, 48\)",
    ),
    (
        lambda its: its.update({"last.bias": torch.zeros(4, dtype=torch.int8)}),
        "last.bias in .*transformer: I8 is not allowed; it must be of one of F16, BF16, F32, F64",
    ),
]


@pytest.mark.parametrize(("edit", "said"), CASES)
def test_weights_of_another_network_are_refused(edit: Edit, said: str, tmp_path: Path) -> None:
    edited(make_layout(tmp_path) / "transformer", edit)
    with pytest.raises(WeightsError, match=said):
        load(tmp_path)
    with pytest.raises(ExportError, match=said):
        LayoutCheckpoint.open(tmp_path).component().load()


def test_a_setting_that_would_make_very_many_blocks_is_refused_at_once(tmp_path: Path) -> None:
    file = make_layout(tmp_path) / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "layers": 10**9}))
    with pytest.raises(WeightsError, match="layers: 1000000000 is not allowed; it must be 2"):
        load(tmp_path)


def test_a_dynamic_transformer_has_all_its_weights_too(tmp_path: Path) -> None:
    make_dynamic_layout(tmp_path, tokens=True)
    load_dynamic(tmp_path)
    edited(tmp_path / DYNAMIC, lambda tensors: tensors.pop("router.bias"))
    with pytest.raises(WeightsError, match=r"dynamic_transformer lack router\.bias"):
        load_dynamic(tmp_path)


@pytest.mark.parametrize(
    ("name", "held", "said"),
    [
        ("config.json", b"{", "config.json cannot be read: Expecting property name"),
        ("config.json", b"[]", "config.json holds no JSON object"),
        ("config.json", b'{"layers": 2, "width": "wide"}', "config.json makes no LayoutTransformer: "),
        ("diffusion_pytorch_model.safetensors", b"weights", "diffusion_pytorch_model.safetensors cannot be read: "),
        ("diffusion_pytorch_model.safetensors", None, r"transformer has no \*\.safetensors file with tensors"),
    ],
)
def test_files_that_are_no_networks_are_named(name: str, held: bytes | None, said: str, tmp_path: Path) -> None:
    file = make_layout(tmp_path) / "transformer" / name
    assert file.is_file()
    file.unlink() if held is None else file.write_bytes(held)
    with pytest.raises(WeightsError, match=said):
        load(tmp_path)


def test_the_network_that_distances_are_measured_by_has_all_its_weights_too(tmp_path: Path) -> None:
    LayoutFeatures(width=24, layers=1).save_pretrained(tmp_path / "features")
    features_of(tmp_path / "features")
    edited(tmp_path / "features", lambda tensors: tensors.pop("encoder.embed.bias"))
    with pytest.raises(WeightsError, match=r"features lack encoder\.embed\.bias$"):
        features_of(tmp_path / "features")
    score = ["score", "layout", "--count", "1", "--path", str(make_layout(tmp_path / "layout"))]
    made = CliRunner().invoke(app, [*score, "--features", str(tmp_path / "features")])
    assert made.exit_code == 2
    assert "Invalid value for --features" in " ".join(made.output.replace("│", " ").split())


@pytest.mark.parametrize("held", ["{", "[]", None])
def test_a_scheduler_that_cannot_be_read_is_named(held: str | None, tmp_path: Path) -> None:
    file = make_layout(tmp_path) / "scheduler" / "scheduler_config.json"
    file.unlink() if held is None else file.write_text(held)
    with pytest.raises(ScheduleError, match=r"scheduler_config\.json (cannot be read|holds no JSON object)"):
        flow_of(tmp_path)


def test_commands_say_so_in_one_sentence(tmp_path: Path) -> None:
    edited(make_layout(tmp_path) / "transformer", lambda tensors: tensors.pop("last.bias"))
    commands = {
        "--path": ["score", "layout", "--count", "1", "--path", str(tmp_path)],
        "--source": ["train", "layout-dynamic", "--source", str(tmp_path), "--out", str(tmp_path), "--work", str(tmp_path / "w")],
    }
    for option, command in commands.items():
        made = CliRunner().invoke(app, command)
        assert made.exit_code == 2
        said = " ".join(made.output.replace("│", " ").split())
        assert f"Invalid value for {option}" in said
        assert "lack last.bias" in said


def test_timesteps_of_another_scale_are_refused(tmp_path: Path) -> None:
    file = make_layout(tmp_path) / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_train_timesteps": 500}))
    with pytest.raises(ExportError, match="num_train_timesteps: 500 is not supported; of a layout transformer it must be 1000"):
        LayoutCheckpoint.open(tmp_path)

"""What an interrupted export left is used again only where nothing that shaped or checked it has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from conftest import Silent

torch = pytest.importorskip("torch")
from small_module import Small, component

from nereid_export import diffusion
from nereid_export.built import Built, packages_of
from nereid_export.calibration import Calibration
from nereid_export.diffusion import export_diffusion
from nereid_export.engines import BUILDERS, Engine
from nereid_export.engines.base import Target
from nereid_export.engines.plan_options import PlanOptions
from nereid_export.engines.precision import Precision, Precisions
from nereid_export.frame import Device
from nereid_export.gate import SCORED
from nereid_export.llm import LlmEngine, LlmExportOptions, LlmPrecision
from nereid_export.options import ExportOptions
from nereid_export.publish import staging_folder
from nereid_export.resume import VERSIONED, Record, resume_key

pytestmark = pytest.mark.torch

DIFFUSION = ExportOptions(checkpoint=Path("c"), out=Path("o"))
LLM = LlmExportOptions(checkpoint=Path("c"), out=Path("o"))


class Undrawn:
    """In the place of what draws, where only the records of it matter."""

    @classmethod
    def of(cls, *_: object) -> Undrawn:
        return cls()

    by_torch = of


def key(options: Any) -> dict[str, Any]:
    return resume_key(options, "digest", ("numpy",), without_effect=("checkpoint", "out", "name", "draft"))


def interrupted(options: ExportOptions, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Export up to the publication; what was said on the way."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    silent = Silent()
    with monkeypatch.context() as patch:
        patch.setattr("nereid_export.diffusion.publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            export_diffusion(options, silent)
    return silent.said


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (DIFFUSION, {"device": Device.CUDA}),
        (DIFFUSION, {"engine": Engine.TENSORRT}),
        (DIFFUSION, {"precision": Precisions(Precision.FP16)}),
        (DIFFUSION, {"max_batch_size": 4}),
        (DIFFUSION, {"max_side": 512}),
        (DIFFUSION, {"plan": PlanOptions(refit=True)}),
        (DIFFUSION, {"plan": PlanOptions(bucket=((64, 64),))}),
        (LLM, {"device": Device.CUDA}),
        (LLM, {"engine": LlmEngine.OPENVINO}),
        (LLM, {"precision": LlmPrecision.INT8}),
        (LLM, {"block_size": 64}),
        (LLM, {"symmetric": False}),
        (LLM, {"eight_bit_share": 0.2}),
        (LLM, {"sample_text": Path("text")}),
    ],
)
def test_every_option_that_shapes_or_checks_an_engine_is_part_of_its_key(options: Any, changed: dict[str, Any]) -> None:
    assert key(replace(options, **changed)) != key(options)


@pytest.mark.parametrize("options", [DIFFUSION, LLM])
def test_names_and_places_are_not(options: Any) -> None:
    assert key(replace(options, name="other", out=Path("elsewhere"))) == key(options)


def test_a_machine_with_other_kernels_checks_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(DIFFUSION)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert key(DIFFUSION) != before


def test_a_plan_of_another_card_is_built_again_whatever_the_device_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(DIFFUSION, engine=Engine.TENSORRT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "one card")
    before = key(plan)
    assert key(plan) == before
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "another card")
    assert key(plan) != before


def test_versions_of_what_quantises_shape_quantised_engines_alone() -> None:
    openvino, plan = BUILDERS[Engine.OPENVINO], BUILDERS[Engine.TENSORRT]
    assert packages_of((openvino, Precision.FP32)) == (*VERSIONED, "onnx", "openvino")
    assert packages_of((openvino, Precision.INT8)) == (*VERSIONED, "onnx", "openvino", "nncf")
    assert packages_of((openvino, Precision.FP32), (plan, Precision.INT8)) == (
        *VERSIONED,
        "onnx",
        "openvino",
        "tensorrt",
        "onnxruntime",
    )


def test_pictures_that_were_checked_are_scored_once_there_is_a_scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Named:
        name = "right shapes"

    monkeypatch.setattr(type(BUILDERS[Engine.ONNXRUNTIME]), "load", lambda *_: None)
    monkeypatch.setattr(diffusion, "Drawer", Undrawn)
    monkeypatch.setattr(diffusion, "check_pictures", lambda *_: {"psnr": 30.0})
    monkeypatch.setattr(
        diffusion, "score", lambda drawer, scorer, said, told: {"scoring PyTorch's pictures": 95.0}.get(said, 90.0)
    )
    target = Target(precision=Precision.INT8, device=Device.CPU, max_batch_size=4, default_side=16, max_side=16, scale=2)
    built = [Built(component(Small()), Engine.ONNXRUNTIME, target, tmp_path, resumed=True)]

    def checked(scorer: Any) -> Any:
        reference = diffusion._Reference(None)  # type: ignore[arg-type]
        return diffusion._checked_pictures(reference, built, "digest", DIFFUSION, Calibration(), scorer, tmp_path, Silent())

    assert checked(None) == {"psnr": 30.0, "psnr_bound": 20.0}
    scored = {"scored_by": "right shapes", "scored": SCORED, "score_fp32": 95.0, "score": 90.0}
    assert checked(Named()) == {"psnr": 30.0, "psnr_bound": 20.0, **scored}


def test_pytorchs_pictures_are_scored_once_however_often_engines_are_chosen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(diffusion.Drawer, "by_torch", lambda checkpoint: None)
    monkeypatch.setattr(diffusion, "score", lambda drawer, scorer, saying, told: said.append(saying) or 95.0)
    reference = diffusion._Reference(None)  # type: ignore[arg-type]
    assert [reference.score(None, said.append) for _ in range(3)] == [95.0] * 3  # type: ignore[arg-type]
    assert said == ["scoring PyTorch's pictures"]


def test_a_record_is_read_under_its_own_key_only_and_never_half(tmp_path: Path) -> None:
    record = Record(tmp_path / "done.json", key(DIFFUSION))
    assert record.read() is None
    record.write({"seconds": 1.5})
    assert record.read() == {"seconds": 1.5}
    assert Record(record.file, key(replace(DIFFUSION, device=Device.CUDA))).read() is None
    record.file.write_text(record.file.read_text()[:-9])
    assert record.read() is None


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b""), lambda file: file.unlink()])
def test_a_record_is_not_read_where_its_files_are_not_what_was_checked(damage: Callable[[Path], Any], tmp_path: Path) -> None:
    engine = tmp_path / "model.onnx"
    engine.write_bytes(b"engine")
    record = Record(tmp_path / "done.json", key(DIFFUSION))
    record.write({"seconds": 1.5}, [engine])
    assert record.read() == {"seconds": 1.5}
    damage(engine)
    assert record.read() is None


def test_an_engine_that_an_interruption_has_damaged_is_built_again(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ExportOptions(checkpoint=checkpoints["sd"], out=tmp_path / "out")
    interrupted(options, monkeypatch)
    engine = staging_folder(tmp_path / "out") / "engines" / "unet" / "model.onnx"
    whole = engine.read_bytes()
    engine.write_bytes(whole[:-100])
    again = Silent()
    export_diffusion(options, again)
    assert "text_encoder: built before" in again.said
    assert "unet: exporting" in again.said
    assert (tmp_path / "out" / "unet" / "1" / "model.onnx").read_bytes() == whole


def test_an_export_for_another_device_builds_and_checks_again(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ExportOptions(checkpoint=checkpoints["sd"], out=tmp_path / "out")
    interrupted(options, monkeypatch)
    assert "unet: checked before" in interrupted(options, monkeypatch)
    other = Silent()
    export_diffusion(replace(options, device=Device.CUDA), other)
    assert not any("before" in line for line in other.said)

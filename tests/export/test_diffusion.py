"""Exporting: what is published, what is refused, and what a failure leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from nereid_client.main import app

from conftest import Silent, export
from waiting import until

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file

from nereid.engines.digests import file_digest
from nereid_export.configs import read_config
from nereid_export.diffusion import export_diffusion
from nereid_export.engines import Engine, onnx_graph
from nereid_export.engines.precision import ERROR_BOUNDS, Precision, Precisions
from nereid_export.errors import ExportError
from nereid_export.facts import is_few_step
from nereid_export.options import ExportOptions
from nereid_export.publish import staging_folder

from checkpoints import make_sd

pytestmark = pytest.mark.torch


@pytest.fixture
def checkpoint(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(checkpoints["sd"], tmp_path / "checkpoint"))


def test_manifest_tells_source_errors_and_digests(repository: Path) -> None:
    manifest = json.loads((repository / "text_to_image" / "manifest.json").read_text())
    assert len(manifest["source"]["sha256"]) == 64
    assert manifest["arguments"]["precision"] == "fp32"
    assert set(manifest["engines"]) == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    for engine in manifest["engines"].values():
        assert engine["checks"]
        assert all(check["relative_error"] <= engine["error_bound"] == 1e-4 for check in engine["checks"])
    assert manifest["files"]
    for name, digest in manifest["files"].items():
        assert file_digest(repository / name) == digest


def test_pipelines_stand_side_by_side_under_their_names(repository: Path) -> None:
    models = {path.name for path in repository.iterdir()}
    assert {"unet", "xl_unet", "xl_text_encoder_2", "lcm_text_to_image", "v_denoise", "tight_denoise"} <= models
    ensemble = read_config(repository / "xl_text_to_image" / "config.pbtxt")
    called = {step.model_name for step in ensemble.ensemble_scheduling.step}
    assert all(name.startswith("xl_") for name in called)
    assert "xl_text_encoder_2" in called


def test_fp16_engines_are_close_and_smaller(checkpoints: dict[str, Path], repository: Path, tmp_path: Path) -> None:
    export(checkpoints["sdxl"], tmp_path / "out", precision=Precisions(Precision.FP16))
    manifest = json.loads((tmp_path / "out" / "text_to_image" / "manifest.json").read_text())
    errors = [check["relative_error"] for check in manifest["engines"]["unet"]["checks"]]
    assert all(1e-5 < error < 1e-2 for error in errors)
    half = (tmp_path / "out" / "unet" / "1" / "model.onnx").stat().st_size
    assert half < 0.7 * (repository / "xl_unet" / "1" / "model.onnx").stat().st_size


def test_cuda_export_asks_for_gpus_in_tritons_own_terms(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    from nereid_export.frame import Device

    export(checkpoints["sd"], tmp_path / "out", device=Device.CUDA)
    unet = read_config(tmp_path / "out" / "unet" / "config.pbtxt")
    assert (unet.instance_group[0].kind, list(unet.instance_group[0].gpus)) == (1, [0])
    assert unet.optimization.execution_accelerators.gpu_execution_accelerator[0].name == "cuda"
    denoise = read_config(tmp_path / "out" / "denoise" / "config.pbtxt")
    assert denoise.instance_group[0].kind == 2


def test_large_models_keep_their_weights_in_a_file_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block, wide: the exporter for large models takes its time for each of a graph's nodes."""
    checkpoint = make_sd(
        tmp_path,
        block_out_channels=(64,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        mid_block_type=None,
    )
    monkeypatch.setattr(onnx_graph, "SMALL_MODEL_BYTES", 1_000_000)
    export(checkpoint, tmp_path / "out")
    files = {file.name for file in (tmp_path / "out" / "unet" / "1").iterdir()}
    assert files == {"model.onnx", "model.onnx.data"}


def test_of_a_link_what_it_leads_to_is_exchanged_and_the_link_stays(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    (disk / "repository" / "other").mkdir(parents=True)
    (tmp_path / "out").symlink_to(disk / "repository")
    export(checkpoints["sd"], tmp_path / "out")
    assert (tmp_path / "out").readlink() == disk / "repository"
    assert {path.name for path in disk.iterdir()} == {"repository", ".repository.lock"}
    assert {"other", "unet"} <= {path.name for path in (disk / "repository").iterdir()}


def test_preview_colours_follow_the_picture(repository: Path) -> None:
    facts = json.loads((repository / "denoise" / "1" / "pipeline.json").read_text())
    assert np.array(facts["latents_to_rgb"]).shape == (5, 3)


def damage_bin(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")


def damage_truncate(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


def damage_header(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    file.write_bytes(b"\xff" * 64 + file.read_bytes()[64:])


def damage_empty(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")


def edit(folder: Path, name: str, **changes: object) -> None:
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def damage_weight(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["encoder.conv_in.weight"][0, 0, 0, 0] = float("nan")
    save_file(weights, file, {"format": "pt"})


REFUSALS = {
    "weights not finite": (damage_weight, "vae: encoder.conv_in.weight holds NaN or infinite values; weights must be finite"),
    "pickle": (damage_bin, "is a pickle"),
    "truncated weights": (damage_truncate, "truncated or corrupt"),
    "corrupt header": (damage_header, "truncated or corrupt"),
    "empty weights": (damage_empty, "truncated or corrupt"),
    "missing component": (lambda folder: shutil.rmtree(folder / "vae"), "has no vae/"),
    "missing index": (lambda folder: (folder / "model_index.json").unlink(), "model_index.json"),
    "index not JSON": (lambda folder: (folder / "model_index.json").write_text("{"), "not valid JSON"),
    "unknown architecture": (
        lambda folder: edit(folder, "model_index.json", _class_name="FluxPipeline"),
        "architecture 'FluxPipeline'",
    ),
    "means of latents": (
        lambda folder: edit(folder, "vae/config.json", latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
        "latents_mean is not supported",
    ),
    "depth model": (lambda folder: edit(folder, "unet/config.json", in_channels=5), "in_channels 5"),
    "weights of another shape": (lambda folder: edit(folder, "unet/config.json", block_out_channels=[8, 16]), "unet"),
    "unsupported scheduler": (
        lambda folder: edit(folder, "scheduler/scheduler_config.json", beta_schedule="sigmoid"),
        "beta_schedule",
    ),
    "clipping scheduler": (
        lambda folder: edit(folder, "scheduler/scheduler_config.json", clip_sample=True),
        "clip_sample",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_bad_checkpoints_are_refused_in_one_sentence(name: str, checkpoint: Path, tmp_path: Path) -> None:
    damage, words = REFUSALS[name]
    damage(checkpoint)
    out = tmp_path / "out"
    with pytest.raises(ExportError) as caught:
        export(checkpoint, out)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    for path in (tmp_path / "nowhere", tmp_path / "model.safetensors"):
        with pytest.raises(ExportError, match="is not a folder"):
            export(path, tmp_path / "out")


def test_target_that_cannot_be_written_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (Path("/proc/nereid"), tmp_path / "file" / "out"):
        with pytest.raises(ExportError, match="cannot be written"):
            export(checkpoint, out / "repository")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MiB, where the machine lets us make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this machine does not let tests mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_disk_without_room_is_refused_before_anything_is_written(checkpoint: Path, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"\0" * (60 * 2**20))
    with pytest.raises(ExportError, match="MiB are free"):
        export(checkpoint, small_disk / "out")
    assert {path.name for path in small_disk.iterdir()} <= {"filler", ".out.lock"}


def test_disk_that_fills_up_on_the_way_publishes_nothing(
    checkpoint: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small_disk / "filler").write_bytes(b"\0" * (79 * 2**20))
    monkeypatch.setattr("nereid_export.diffusion.require_space", lambda folder, needed: None)
    with pytest.raises(ExportError, match="the disk is full; nothing was published"):
        export(checkpoint, small_disk / "out")
    assert not (small_disk / "out").exists()


def test_a_library_that_meets_a_full_disk_with_other_words_is_understood(
    checkpoint: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO says `basic_ios::clear: iostream error`, ONNX Runtime reads its own half file."""
    pytest.importorskip("openvino")
    monkeypatch.setattr("nereid_export.diffusion.require_space", lambda folder, needed: None)

    def fails(*_: object, **__: object) -> None:
        with (small_disk / "filler").open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 4096)
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr("openvino.save_model", fails)
    for engine in (Engine.OPENVINO, Engine.AUTO):
        with pytest.raises(ExportError, match="the disk is full; nothing was published"):
            export(checkpoint, small_disk / "out", engine=engine)
        (small_disk / "filler").unlink()


def test_whatever_a_library_raises_is_one_sentence(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise AssertionError("scale issue\nmore")

    monkeypatch.setattr("nereid_export.engines.onnxruntime.export_onnx", fails)
    with pytest.raises(ExportError, match=r"^text_encoder: onnxruntime-fp32 cannot be built: AssertionError: scale issue$"):
        export(checkpoint, tmp_path / "out")


def test_a_link_leads_to_the_repository_and_stays(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "versions" / "one").mkdir(parents=True)
    (tmp_path / "current").symlink_to("versions/one")
    export(checkpoint, tmp_path / "current")
    assert (tmp_path / "current").is_symlink()
    assert (tmp_path / "versions" / "one" / "unet" / "config.pbtxt").is_file()
    monkeypatch.chdir(tmp_path / "versions" / "one")
    export(checkpoint, Path(), name="second")
    models = {path.name for path in (tmp_path / "versions" / "one").iterdir()}
    assert {"unet", "second_unet"} <= models
    assert not any(name.startswith(".") for name in models)
    assert {path.name for path in (tmp_path / "versions").iterdir()} == {"one", ".one.lock"}


def test_places_where_no_folder_can_be_exchanged_are_refused_before_anything_slow(
    checkpoint: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nereid_export.diffusion.Checkpoint.open", lambda folder: pytest.fail("something slow"))
    (small_disk / "file").write_text("")
    (small_disk / "circle").symlink_to("circle")
    for out, why in (
        (Path("/"), "a file system is mounted there; name a folder in it"),
        (small_disk, "a file system is mounted there"),
        (small_disk / "file", "a file stands in its way"),
        (small_disk / "circle", "too many levels of symbolic links"),
    ):
        with pytest.raises(ExportError, match=f"^{out} cannot be written: {why}"):
            export(checkpoint, out)
    monkeypatch.undo()
    with pytest.raises(ExportError, match="cannot be written: file name too long"):
        export(checkpoint, small_disk / ("n" * 254))


def test_an_exchange_in_two_steps_that_was_interrupted_is_taken_back(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.old" / "mine").mkdir(parents=True)
    export(checkpoint, tmp_path / "out")
    assert {"mine", "unet"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert not (tmp_path / ".out.old").exists()


def test_engine_too_far_from_pytorch_is_not_published(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ERROR_BOUNDS, Precision.FP32, 1e-12)
    with pytest.raises(ExportError, match=r"relative error .* above the bound"):
        export(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_failed_export_leaves_the_published_repository_as_it_was(
    repository: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(repository, tmp_path / "out"))
    before = {str(file): file_digest(file) for file in out.rglob("*") if file.is_file()}
    monkeypatch.setitem(ERROR_BOUNDS, Precision.FP16, 1e-12)
    with pytest.raises(ExportError):
        export(checkpoint, out, precision=Precisions(Precision.FP16))
    assert {str(file): file_digest(file) for file in out.rglob("*") if file.is_file()} == before


def test_export_killed_on_the_way_resumes_and_leaves_nothing_half_made(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "nereid_client.main", "export", "diffusion", str(checkpoint), "--out", str(out)]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    record = staging_folder(out) / "engines" / "text_encoder" / "done.json"
    until(lambda: record.is_file() or first.poll() is not None)
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not out.exists()
    progress = Silent()
    export_diffusion(ExportOptions(checkpoint=checkpoint, out=out), progress)
    assert "text_encoder: built before" in progress.said
    assert (out / "unet" / "1" / "model.onnx").is_file()
    assert not staging_folder(out).exists()


def test_two_exports_at_once_wait_for_each_other(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    progress = [Silent(), Silent()]
    options = ExportOptions(checkpoint=checkpoint, out=out)
    failures: list[Exception] = []

    def work(index: int) -> None:
        try:
            export_diffusion(replace(options, name=f"p{index}"), progress[index])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert {"p0_unet", "p1_unet"} <= {path.name for path in out.iterdir()}
    assert any("another export" in line for one in progress for line in one.said)


@pytest.mark.parametrize(
    ("scheduler", "few"),
    [
        ({"_class_name": "LCMScheduler"}, True),
        ({"_class_name": "TCDScheduler"}, True),
        ({"_class_name": "FlowMatchLCMScheduler"}, True),
        ({"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}, True),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}, False),
        ({"_class_name": "PNDMScheduler"}, False),
    ],
)
def test_few_step_models_are_recognised_by_their_scheduler(scheduler: dict[str, object], few: bool) -> None:
    assert is_few_step(scheduler) is few


@pytest.mark.parametrize(("option", "value"), [("--max-batch-size", "0"), ("--name", "../x")])
def test_bad_options_are_one_sentence_on_the_command_line(option: str, value: str, checkpoint: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", "diffusion", str(checkpoint), "--out", str(tmp_path / "o"), option, value])
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert [line for line in done.stderr.splitlines() if line.strip()][-1].startswith(f"error: {option}")

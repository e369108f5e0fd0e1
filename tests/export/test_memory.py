"""What an export says of its engines' memory: enough for every run measured, and near to what a run of another size needs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nereid.diffusion.options import parse_reservation
from nereid.diffusion.settings import Limits, Pipeline
from nereid.diffusion.vae_tiles import VaeTiling
from nereid.flow.errors import InvalidRequestError

from conftest import export

pytest.importorskip("torch")
from nereid_export.checkpoint import Checkpoint
from nereid_export.components import components_of
from nereid_export.engines.base import Target
from nereid_export.engines.plan_options import PlanOptions
from nereid_export.engines.precision import Precision
from nereid_export.frame import Device
from nereid_export.memory import MeasuredRun, fit, measure_memory, run_probe
from nereid_export.memory_probe import main as probe

import warm_probe

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def exported(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("memory") / "repository"
    # With the scores of all places in memory: without them a tiny model's runs need too little to be told from noise.
    export(checkpoints["sd"], out, plan=PlanOptions(plain_attention=True))
    return out


def test_manifest_and_pipeline_tell_what_every_engine_needs(exported: Path) -> None:
    manifest = json.loads((exported / "text_to_image" / "manifest.json").read_text())
    pipeline = Pipeline.read(exported / "denoise" / "1")
    assert set(pipeline.memory) == set(manifest["engines"])
    for name, memory in pipeline.memory.items():
        told = manifest["engines"][name]["memory"]
        assert memory.base_bytes == told["base_bytes"] > 2**20
        for run in told["measured"]:
            assert memory.run_bytes(run["rows"], run["pixels"]) >= 0.7 * run["bytes"]
        last = told["measured"][-1]
        assert memory.run_bytes(last["rows"], last["pixels"]) >= 0.999 * last["bytes"]


def test_a_larger_picture_needs_about_what_was_foreseen(
    exported: Path, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    memory = Pipeline.read(exported / "denoise" / "1").memory["unet"]
    scale = Pipeline.read(exported / "denoise" / "1").vae_scale_factor
    tokens = next(part for part in components_of(Checkpoint.open(checkpoints["sd"])) if part.name == "unet").example["tokens"]
    width = 32
    inputs = [
        ("sample", (1, 4, 112, 112), "float32"),
        ("timestep", (1, 1), "float32"),
        ("encoder_hidden_states", (1, tokens, width), "float32"),
    ]
    probe("nereid.engines.onnx_session:runner", str(exported / "unet" / "1" / "model.onnx"), json.dumps([inputs]))
    needed = json.loads(capsys.readouterr().out)["runs"][0]
    assert 0.5 < memory.run_bytes(1, (112 * scale) ** 2) / needed < 2.5


SIDE, TILE = 2048, 256
"""Pixels: whole, this picture's decode would need 64 x 64 times the attention of one tile."""

_DECODE = """
import sys
import numpy as np
from nereid.diffusion.vae_tiles import VaeTiling, decode_latents
from nereid.engines.arena import peak_bytes, reset_peak
from nereid.engines.onnx_session import runner
file, latents, tile, scale = sys.argv[1], *map(int, sys.argv[2:])
run = runner(file)
tiling = VaeTiling(tile_sample_min_size=tile, tile_overlap_factor=0.25, vae_scale_factor=scale)
before = reset_peak()
image = decode_latents(np.zeros((1, 4, latents, latents), np.float32), tiling, lambda given: run({"latents": given})[0], int)
print(image.shape[2], image.nbytes, peak_bytes() - before)
"""


def test_a_picture_of_2048_is_admitted_where_memory_suffices_for_its_tiles(exported: Path) -> None:
    pipeline = Pipeline.read(exported / "denoise" / "1")
    vae = replace(pipeline, memory={name: pipeline.memory[name] for name in ("vae_decoder", "vae_encoder")})
    tiling = VaeTiling(tile_sample_min_size=TILE, tile_overlap_factor=0.25, vae_scale_factor=pipeline.vae_scale_factor)
    budget = vae.image_bytes(SIDE**2, guided=True, encoded_pixels=SIDE**2, tiling=tiling)
    limits = Limits(max_pixels=SIDE**2, tile_sample_min_size=TILE, memory_budget_bytes=int(budget) + 1)
    asked = {
        "ticket": np.array([[b"t"]], np.object_),
        "width": np.array([[SIDE]], np.int32),
        "height": np.array([[SIDE]], np.int32),
    }
    assert parse_reservation(asked, vae, limits).memory_bytes <= budget
    whole = {**asked, "tile_sample_min_size": np.array([[SIDE]], np.int32)}
    with pytest.raises(InvalidRequestError, match="memory_budget_bytes"):
        parse_reservation(whole, vae, limits)
    with pytest.raises(InvalidRequestError, match="memory_budget_bytes"):
        parse_reservation(asked, pipeline, limits)  # the UNet sees it whole


def test_a_picture_decoded_by_tiles_needs_about_what_was_foreseen_of_one_tile(exported: Path) -> None:
    pipeline = Pipeline.read(exported / "denoise" / "1")
    scale, side = pipeline.vae_scale_factor, SIDE // 2
    file = exported / "vae_decoder" / "1" / "model.onnx"
    command = [sys.executable, "-c", _DECODE, file, side // scale, TILE, scale]
    told = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout
    made, image, needed = map(int, told.split())
    assert made == side
    memory = pipeline.memory["vae_decoder"]
    assert needed - 2 * image < 1.5 * memory.run_bytes(1, TILE**2)
    assert needed < memory.run_bytes(1, side**2) / 20


def test_what_every_picture_needs_is_told_apart_from_what_its_pixels_need() -> None:
    made = fit(5, [MeasuredRun(1, 1000, 60_000), MeasuredRun(1, 4000, 90_000), MeasuredRun(2, 1000, 120_000)])
    assert (made.bytes_per_row, made.bytes_per_row_pixel, made.bytes_per_row_pixel_squared) == pytest.approx((50_000, 10, 0))
    shrinking = fit(5, [MeasuredRun(1, 1000, 60_000), MeasuredRun(1, 4000, 50_000)])
    assert (shrinking.bytes_per_row, shrinking.bytes_per_row_pixel) == (60_000, 0)


def test_attention_is_a_square_of_the_pixels() -> None:
    runs = [MeasuredRun(rows, pixels, rows * (1000 * pixels + pixels**2)) for rows, pixels in ((1, 1000), (1, 4000), (2, 4000))]
    made = fit(5, runs)
    assert (made.bytes_per_row_pixel, made.bytes_per_row_pixel_squared) == pytest.approx((1000, 1))
    assert made.run_bytes(3, 2000) == pytest.approx(3 * (1000 * 2000 + 2000**2))


def test_no_measured_run_needs_more_than_is_told() -> None:
    runs = [MeasuredRun(1, 1000, 10), MeasuredRun(1, 4000, 5), MeasuredRun(2, 4000, 100)]
    made = fit(5, runs)
    assert made.run_bytes(2, 4000) >= 100
    assert made.bytes_per_row_pixel_squared >= 0
    assert fit(5, [MeasuredRun(1, 0, 7), MeasuredRun(4, 0, 40)]).run_bytes(8, 12345) == pytest.approx(80)


def test_a_process_of_its_own_measures_what_a_fork_of_a_warm_one_does(exported: Path) -> None:
    """The manifests of these tests are of forks, those of users of processes."""
    inputs = [("latents", (1, 4, 64, 64), "float32")]
    arguments = ["nereid.engines.onnx_session:runner", str(exported / "vae_decoder" / "1" / "model.onnx"), json.dumps([inputs])]
    (own, warm) = (json.loads(run(arguments).stdout.splitlines()[-1]) for run in (run_probe, warm_probe.run_probe))
    assert warm["runs"] == pytest.approx(own["runs"], rel=0.2)
    assert 2**20 < warm["base"] < 2 * own["base"]


@pytest.mark.parametrize("run", [run_probe, warm_probe.run_probe])
def test_a_process_that_dies_measures_nothing(
    run: Callable[[list[str]], object], checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nereid_export.memory.run_probe", run)
    component = components_of(Checkpoint.open(checkpoints["sd"]))[0]
    target = Target(precision=Precision.FP32, device=Device.CPU, max_batch_size=4, default_side=64, max_side=64, scale=4)
    assert measure_memory(component, tmp_path / "missing.onnx", target, "nereid.engines.onnx_session:runner") is None

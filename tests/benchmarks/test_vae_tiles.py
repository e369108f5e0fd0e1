"""`nereid bench vae-tiles`: whole and tiled decodes of both engines, each with its memory and its distance from the whole one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
from nereid_bench import vae_tiles as module
from nereid_bench.cli import app
from nereid_bench.vae_tiles import VaeTilesPlan, mosaic, vae_tiles

pytestmark = pytest.mark.torch


def test_whole_and_tiled_decodes_are_measured_beside_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PICTURES", ("unlike",))
    said: list[str] = []
    rows = vae_tiles(VaeTilesPlan(work=tmp_path, sides=(256,), tile=128), said.append)
    assert [(row["engine"], row["how"]) for row in rows] == [
        (engine, how) for engine in ("diffusers", "onnxruntime") for how in ("whole", "tiles")
    ]
    off = [row["mean_difference"] for row in rows]
    assert off[0] == 0
    assert off[2] < 0.01 < min(off[1], off[3])
    assert all(row["seconds"] > 0 and row["peak_megabytes"] > 0 for row in rows)


def test_a_mosaic_is_of_one_scene_or_of_many() -> None:
    alike, unlike = mosaic(192, alike=True), mosaic(192, alike=False)
    assert alike.shape == unlike.shape == (1, 4, 24, 24)
    assert np.array_equal(alike[:, :, :8, :8], alike[:, :, 16:, 16:])
    assert not np.array_equal(unlike[:, :, :8, :8], unlike[:, :, 16:, 16:])


def test_a_tile_that_no_latents_make_is_refused() -> None:
    result = CliRunner().invoke(app, ["vae-tiles", "--tile", "100"])
    assert result.exit_code == 2
    assert "must be a multiple of 8" in result.output.replace("\n", " ")

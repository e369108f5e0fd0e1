"""`nereid bench schedulers` with a Triton of its own: a tiny pipeline is measured, and nothing twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
from nereid_bench.cli import app

from conftest import export

pytestmark = [pytest.mark.triton, pytest.mark.torch]


def test_a_served_pipeline_is_measured_once(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    repository, out = tmp_path / "repository", tmp_path / "found.json"
    export(checkpoints["sd"], repository, name="tiny")
    arguments = ["schedulers", "--repository", str(repository), "--name", "tiny", "--out", str(out), "--captions", "2"]
    arguments += ["--schedulers", "ddim,dpmpp_2m,euler,euler_karras", "--steps", "4,100", "--recommend-psnr", "5", "--json"]

    def run() -> dict[str, Any]:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    first, second = run(), run()
    assert first["kept_of_earlier_runs"] == 0
    assert second["kept_of_earlier_runs"] == second["pictures"]
    assert first["rows"] == second["rows"]
    rows = {(row["scheduler"], row["variation"], row["steps"]): row for row in first["rows"]}
    for name, variation in (("ddim", "own"), ("dpmpp_2m", "linspace"), ("euler", "exponential")):
        few, many = rows[name, variation, 4], rows[name, variation, 100]
        assert few["psnr"] < many["psnr"]
        assert few["seconds"] < many["seconds"]
    assert rows["dpmpp_2m", "linspace", 100]["psnr"] == first["reference"]["psnr_of_half_the_steps"]
    assert all(row["peak_megabytes"] > 50 for row in first["rows"])
    assert first["recommended"]["command"].endswith(" --name tiny")

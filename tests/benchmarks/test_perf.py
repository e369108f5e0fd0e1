"""`nereid bench` and repositories of any engine: shapes that perf_analyzer is told of, and what cannot be compared is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
from nereid_bench.cli import app
from nereid_bench.perf import _unet_shapes
from nereid_export import configs
from nereid_export.checkpoint import Checkpoint
from nereid_export.components import components_of
from nereid_export.engines import BUILDERS, Engine
from nereid_export.engines.base import Target
from nereid_export.engines.precision import Precision
from nereid_export.frame import Device
from nereid_export.tensor_names import tell_names

pytestmark = pytest.mark.torch

TARGET = Target(precision=Precision.FP32, device=Device.CPU, max_batch_size=4, default_side=32, max_side=64, scale=4)


@pytest.mark.parametrize(
    ("engine", "shapes"),
    [
        (Engine.ONNXRUNTIME, ["sample:4,8,8", "encoder_hidden_states:16,32"]),
        (Engine.OPENVINO, ["sample:1,4,8,8", "timestep:1,1", "encoder_hidden_states:1,16,32"]),
        (Engine.TORCH, ["INPUT__0:1,4,8,8", "INPUT__1:1,1", "INPUT__2:1,16,32"]),
    ],
)
def test_every_engines_unet_is_given_shapes_by_its_own_names(
    engine: Engine, shapes: list[str], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    made = configs.pipeline_configs(prefix="", family="sd", channels=4, max_batch_size=4, force_zeros=False, unet_min_rows=1)
    for component in components_of(Checkpoint.open(checkpoints["sd"])):
        config = configs.engine_config(component, BUILDERS[engine], TARGET, prefix="")
        tell_names(component, config, made.values())
        configs.write_config(config, tmp_path / config.name)
    configs.write_config(made["denoise"], tmp_path / "denoise")
    assert _unet_shapes(tmp_path, 8) == [f"--shape={shape}" for shape in shapes]


def test_engines_that_the_peers_cannot_run_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    command = ["compare", "--repository", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "has no unet; `make export` puts it there" in " ".join(done.output.split())
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.pbtxt").write_text('backend: "pytorch"')
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "unet is for the backend pytorch; export with --engine onnxruntime" in " ".join(done.output.split())

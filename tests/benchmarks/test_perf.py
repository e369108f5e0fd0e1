"""`nereid bench perf`: what perf_analyzer is told of the UNet's inputs, whichever engine has which names and batches how."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
from nereid_bench.perf import _unet_shapes
from nereid_export import configs
from nereid_export.checkpoint import Checkpoint
from nereid_export.components import components_of
from nereid_export.engines import BUILDERS, Engine
from nereid_export.engines.base import Precision, Target
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

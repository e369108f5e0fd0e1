"""The samples of `model_warmup` that export writes: which sizes, how many rows, in whose batch."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn
from tritonclient.grpc import model_config_pb2 as pb

from nereid_export.components import Component, TensorSpec
from nereid_export.engines.base import Target
from nereid_export.engines.plan_options import PlanOptions
from nereid_export.engines.precision import Precision
from nereid_export.engines.triton_config import place_on_gpu
from nereid_export.frame import Device
from nereid_export.warm_up import MOST_BYTES, add_warm_up

SMALL = {"base_bytes": 0, "bytes_per_row": 1.0, "measured": []}
LARGE = {"base_bytes": 0, "bytes_per_row": MOST_BYTES / 16 + 1, "measured": []}


def component(name: str, **dims: tuple[int | str, ...]) -> Component:
    inputs = tuple(TensorSpec(name=key, dims=value) for key, value in dims.items())
    return Component(
        name=name,
        source=name,
        inputs=inputs,
        outputs=(),
        load=nn.Identity,
        example={"tokens": 5} if name == "unet" else {},
        checks=(),
    )


UNET = component("unet", sample=(4, "height", "width"), timestep=(1,), states=("tokens", 3))
DECODER = component("vae_decoder", latents=(4, "latent_height", "latent_width"))
ENCODER = component("text_encoder", input_ids=(77,))


def samples(part: Component, *, rows: int, memory: Any = None, on_gpu: bool = False, batched: bool = True, **plan: Any) -> Any:
    config = pb.ModelConfig(max_batch_size=rows if batched else 0)
    for spec in part.inputs:
        config.input.add(name=f"{spec.name}_of_config", data_type=pb.TYPE_FP32)
    if on_gpu:
        place_on_gpu(config)
    target = Target(
        precision=Precision.FP32,
        device=Device.CPU,
        max_batch_size=rows,
        default_side=64,
        max_side=2048,
        scale=8,
        plan=PlanOptions(**plan),
    )
    add_warm_up(config, part, target, memory)
    return {sample.name: sample for sample in config.model_warmup}


def dims(sample: Any) -> dict[str, list[int]]:
    assert all(entry.zero_data and entry.data_type == pb.TYPE_FP32 for entry in sample.inputs.values())
    return {name: list(entry.dims) for name, entry in sample.inputs.items()}


def test_a_unet_runs_two_rows_and_the_most_of_each_bucket() -> None:
    made = samples(UNET, rows=16, memory=SMALL, bucket=((64, 96), (32, 32)))
    assert list(made) == ["2 rows of 64x96", "16 rows of 64x96", "2 rows of 32x32", "16 rows of 32x32"]
    assert [sample.batch_size for sample in made.values()] == [2, 16, 2, 16]
    expected = {"sample_of_config": [4, 12, 8], "timestep_of_config": [1], "states_of_config": [5, 3]}
    assert dims(made["16 rows of 64x96"]) == expected


def test_where_the_batch_is_a_dimension_a_sample_is_one_request() -> None:
    made = samples(UNET, rows=16, memory=SMALL, batched=False)
    assert [sample.batch_size for sample in made.values()] == [1, 1]
    assert dims(made["16 rows of 64x64"])["sample_of_config"] == [16, 4, 8, 8]


@pytest.mark.parametrize(
    ("memory", "on_gpu", "names"),
    [
        (LARGE, False, ["2 rows of 64x64"]),
        (None, False, ["2 rows of 64x64"]),
        (None, True, ["2 rows of 64x64", "16 rows of 64x64"]),
    ],
)
def test_many_rows_are_not_run_where_they_may_take_the_machines_memory(memory: Any, on_gpu: bool, names: list[str]) -> None:
    assert list(samples(UNET, rows=16, memory=memory, on_gpu=on_gpu)) == names


def test_the_other_engines_run_one_row_and_a_vae_no_more_than_a_tile() -> None:
    assert list(samples(ENCODER, rows=16, bucket=((64, 64), (32, 32)))) == ["1 row"]
    made = samples(DECODER, rows=8, bucket=((2048, 1536), (1024, 2048), (64, 64)))
    assert list(made) == ["1 row of 1024x1024", "1 row of 64x64"]
    assert dims(made["1 row of 1024x1024"]) == {"latents_of_config": [4, 128, 128]}

"""Edits of a model's config.pbtxt that several engines share."""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import model_config_pb2 as pb


def place_on_gpu(config: Any) -> None:
    """One instance on the first graphics card."""
    del config.instance_group[:]
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_GPU, gpus=[0])


def batch_by_shape(config: Any) -> None:
    """The batch as an ordinary first dimension, for a backend that fixes the batch of a model that Triton batches."""
    config.max_batch_size = 0
    config.ClearField("dynamic_batching")
    for tensor in (*config.input, *config.output):
        tensor.dims.insert(0, -1)


def name_by_place(config: Any, inputs: str, outputs: str) -> None:
    """Tensors named by their place among the engine's, for a backend that knows no others; the patterns have one `{}`."""
    for pattern, tensors in ((inputs, config.input), (outputs, config.output)):
        for place, tensor in enumerate(tensors):
            tensor.name = pattern.format(place)

"""Triton's `model_warmup` of an engine: a run of zeros for each bucket, in the numbers of rows that the server asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from nereid.diffusion.settings import Limits
from nereid_export.components import Component, sizes_of
from nereid_export.engines.base import Target, input_shape
from nereid_export.memory import run_memory

MOST_BYTES = 2**30
"""What a sample of many rows may need on a processor: a start must not take the memory that `denoise` would not give a run."""


def add_warm_up(config: Any, component: Component, target: Target, memory: dict[str, Any] | None) -> None:
    """Add the samples to an engine's config, which has its tensors in the component's order, and its place."""
    batched = config.max_batch_size > 0
    # Not the target's device: a plan is a card's, whatever it says.
    on_gpu = any(group.kind == pb.ModelInstanceGroup.KIND_GPU for group in config.instance_group)
    for name, sizes in _samples(component, target, memory, on_gpu):
        # One request of several rows where the batch is a dimension, several requests where it is Triton's.
        sample = config.model_warmup.add(name=name, batch_size=sizes["batch"] if batched else 1)
        for tensor, spec in zip(config.input, component.inputs, strict=True):
            shape = input_shape(spec, sizes)
            entry = sample.inputs[tensor.name]
            entry.data_type, entry.zero_data = tensor.data_type, True  # random bytes would be tokens that no vocabulary has
            entry.dims.extend(shape[1:] if batched else shape)


def _samples(
    component: Component, target: Target, memory: dict[str, Any] | None, on_gpu: bool
) -> Iterator[tuple[str, Mapping[str, int]]]:
    if not component.spatial:
        yield _name(1), {**component.example, "batch": 1}
        return
    seen = []
    for width, height in target.plan.bucket or ((target.default_side, target.default_side),):
        if component.name.startswith("vae"):
            width, height = (min(side, Limits().tile_sample_min_size) for side in (width, height))
        for rows in _rows(component, target, memory, width * height, on_gpu):
            if (rows, width, height) not in seen:
                seen.append((rows, width, height))
                yield f"{_name(rows)} of {width}x{height}", {**sizes_of(component, width, height, target.scale), "batch": rows}


def _name(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"


def _rows(component: Component, target: Target, memory: dict[str, Any] | None, pixels: int, on_gpu: bool) -> list[int]:
    """One picture's, which guidance doubles, and the most that a call may have."""
    if not component.denoises:
        return [1]
    few, most = min(2, target.max_batch_size), target.max_batch_size
    needed = run_memory(memory)
    fits = needed is not None and needed.run_bytes(most, pixels) <= MOST_BYTES
    return [few, most] if most > few and (fits or on_gpu) else [few]

"""A child process that runs one engine or peer and prints what it took: `python -m nereid_bench.engine_turn TURN` (JSON)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from nereid.engines.arena import peak_bytes, reset_peak
from nereid_bench.engines import PEERS, network_of, target_of
from nereid_export.checkpoint import Checkpoint
from nereid_export.components import Component, sizes_at
from nereid_export.engines import BUILDERS, Engine
from nereid_export.engines.check import random_inputs
from nereid_export.timing import median_milliseconds


def main(text: str) -> None:
    turn = json.loads(text)
    if turn["name"] == "openvino-genai":
        print(json.dumps(_openvino_genai(turn)))
        return
    checkpoint = Checkpoint.open(Path(turn["checkpoint"])) if turn["checkpoint"] else None
    component, before = network_of(checkpoint), reset_peak()
    start = time.perf_counter()
    run = _peer(component, turn) if turn["name"] in PEERS else _engine(component, checkpoint, turn)
    load_seconds = time.perf_counter() - start
    sizes = sizes_at(component, turn["side"], target_of("fp32", turn["side"], checkpoint).scale)
    made = {}
    for rows in turn["rows"]:
        inputs = {name: value.numpy() for name, value in random_inputs(component, rows, sizes, 1).items()}
        made[rows] = median_milliseconds(partial(run, inputs), turn["seconds"])
    print(json.dumps({"load_seconds": load_seconds, "peak_bytes": peak_bytes() - before, "ms": made}))


def _openvino_genai(turn: dict[str, Any]) -> dict[str, Any]:
    """The pipeline's own account of its UNet, which is called for whole pictures: one row without guidance, two an image with."""
    import openvino_genai as og  # pyright: ignore[reportMissingImports]

    before, start = reset_peak(), time.perf_counter()
    hint = {"fp32": "f32", "bf16": "bf16"}[turn["precision"]]  # its own choice is the processor's, bf16 where that has it
    pipeline = og.Text2ImagePipeline(turn["folder"], "CPU", INFERENCE_PRECISION_HINT=hint)
    load_seconds, made = time.perf_counter() - start, {}
    for rows in turn["rows"]:
        if rows > 1 and rows % 2:
            continue
        sizes = {"width": turn["side"], "height": turn["side"], "num_images_per_prompt": max(1, rows // 2)}
        guidance = 1.0 if rows == 1 else 7.5

        def draw(steps: int, sizes: dict[str, int] = sizes, guidance: float = guidance) -> float:
            pipeline.generate("a red circle", num_inference_steps=steps, guidance_scale=guidance, **sizes)
            return float(pipeline.get_performance_metrics().get_unet_infer_duration().mean)

        first = draw(2)
        made[rows] = draw(max(3, min(50, round(1000 * turn["seconds"] / first))))
    return {"load_seconds": load_seconds, "peak_bytes": peak_bytes() - before, "ms": made}


def _engine(
    component: Component, checkpoint: Checkpoint | None, turn: dict[str, Any]
) -> Callable[[Mapping[str, NDArray]], object]:
    target = target_of(turn["precision"], turn["side"], checkpoint)
    loaded = BUILDERS[Engine(turn["name"])].load(component, Path(turn["folder"]), target)
    return lambda inputs: loaded(inputs, ["out_sample"])


def _peer(component: Component, turn: dict[str, Any]) -> Callable[[Mapping[str, NDArray]], object]:
    module: Any = component.load().requires_grad_(False)
    if turn["precision"] == "bf16":
        module = module.to(torch.bfloat16)
    module = module.to(memory_format=torch.channels_last)
    if turn["name"] == "torch.compile":
        import torch._inductor.config as inductor

        inductor.freezing = True
        module = torch.compile(module, dynamic=False)

    def run(inputs: Mapping[str, NDArray]) -> object:
        with torch.no_grad():
            return module(*(torch.from_numpy(value) for value in inputs.values()))

    return run


if __name__ == "__main__":
    main(*sys.argv[1:])

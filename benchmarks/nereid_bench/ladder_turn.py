"""A child process that draws pictures without Nereid and prints what they took: `python -m nereid_bench.ladder_turn TURN`.

TURN is JSON: one way, and what to draw; the pictures go to its file `pixels` (npz, by number), uint8.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from numpy.typing import NDArray

from nereid.engines.arena import peak_bytes, reset_peak
from nereid.flow.noise import Purpose, normal
from nereid_bench.ladder_rungs import PeerName, PeerWay
from nereid_bench.peers import diffusers_scheduler
from nereid_export.silence import quiet

_NOT_TELLING = ("Exception from ", "Check ", "backend=")
"""How lines begin that tell where something failed, and not what."""

DrawPictures = Callable[[list[str], list[int], int], NDArray[np.uint8]]
"""Draws prompts with seeds and so many steps."""


def main(text: str) -> None:
    turn = json.loads(text)
    way = PeerWay(**turn["way"] | {"name": PeerName(turn["way"]["name"])})
    torch.set_num_threads(turn["threads"])
    draw = (_openvino_genai if way.name is PeerName.OPENVINO_GENAI else _diffusers)(way, turn)
    prompts, seeds = turn["prompts"], turn["seeds"]
    draw(_filled(prompts, way.rows), _filled(seeds, way.rows), min(way.steps, 4))  # what is made once, and compiled
    reset_peak()
    taken: list[float] = []
    made: dict[str, NDArray[np.uint8]] = {}
    for start in range(0, len(seeds), way.rows):
        texts, numbers = (_filled(values[start : start + way.rows], way.rows) for values in (prompts, seeds))
        begin = time.perf_counter()
        pictures = draw(texts, numbers, way.steps)
        taken.append(1000 * (time.perf_counter() - begin) / way.rows)
        made |= {str(seed): picture for seed, picture in zip(numbers, pictures, strict=True)}
    np.savez(turn["pixels"], **made)
    print(json.dumps({"ms": taken, "peak_bytes": peak_bytes()}))


def _filled(values: Sequence[Any], count: int) -> list[Any]:
    """`count` of them, repeated where there are fewer: every call has equally many rows."""
    return [values[number % len(values)] for number in range(count)]


def _diffusers(way: PeerWay, turn: dict[str, Any]) -> DrawPictures:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[way.precision]
    with quiet():  # the last line of stderr is what is told of a failure
        pipeline = StableDiffusionPipeline.from_pretrained(way.checkpoint, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    if way.scheduler:
        pipeline.scheduler = diffusers_scheduler(way.scheduler, pipeline.scheduler.config)
    if way.tiny_vae:
        pipeline.vae = AutoencoderTiny.from_pretrained(way.tiny_vae, torch_dtype=dtype)
    begin = _adapted(pipeline, way)
    side = turn["side"]
    shape = (pipeline.unet.config.in_channels, side // pipeline.vae_scale_factor, side // pipeline.vae_scale_factor)

    def draw(prompts: list[str], seeds: list[int], steps: int) -> NDArray[np.uint8]:
        begin()
        noise = np.stack([normal(seed, Purpose.INITIAL_LATENTS, shape) for seed in seeds])  # as Nereid's
        images = pipeline(
            prompts,
            latents=torch.from_numpy(noise).to(dtype),
            num_inference_steps=steps,
            guidance_scale=way.guidance,
            height=side,
            width=side,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        ).images
        return np.rint(np.asarray(images, np.float32) * 255).astype(np.uint8)

    return draw


def _adapted(pipeline: Any, way: PeerWay) -> Callable[[], None]:
    """Put into the pipeline what this peer adds; what is returned is called before each picture."""
    match way.name:
        case PeerName.COMPILED:
            import torch._inductor.config as inductor

            inductor.freezing = True
            pipeline.unet = _compiled(pipeline.unet)
            pipeline.vae.decoder = _compiled(pipeline.vae.decoder)
        case PeerName.DEEPCACHE:
            from DeepCache import DeepCacheSDHelper  # pyright: ignore[reportMissingImports]

            helper = DeepCacheSDHelper(pipe=pipeline)
            helper.set_params(cache_interval=way.cache_interval, cache_branch_id=0)
            helper.enable()
        case PeerName.ATTENTION_BROADCAST:
            return _broadcast(pipeline, way.cache_interval)
        case PeerName.CACHE_DIT:
            import cache_dit  # pyright: ignore[reportMissingImports]

            cache_dit.enable_cache(pipeline)
    return lambda: None


def _compiled(module: Any) -> Any:
    return torch.compile(module.requires_grad_(False).to(memory_format=torch.channels_last))


def _broadcast(pipeline: Any, interval: int) -> Callable[[], None]:
    """diffusers' Pyramid Attention Broadcast, the one of its caches that takes a UNet, over all timesteps."""
    from diffusers import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast
    from diffusers.hooks import HookRegistry

    everywhere = (-1, pipeline.scheduler.config.num_train_timesteps + 1)
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=interval,
        spatial_attention_timestep_skip_range=everywhere,
        cross_attention_block_skip_range=interval,
        cross_attention_timestep_skip_range=everywhere,
        current_timestep_callback=lambda: 0,  # within the range, as every timestep is
    )
    apply_pyramid_attention_broadcast(pipeline.unet, config)
    return lambda: HookRegistry.check_if_exists_or_initialize(pipeline.unet).reset_stateful_hooks()


def _openvino_genai(way: PeerWay, turn: dict[str, Any]) -> DrawPictures:
    import openvino_genai as og  # pyright: ignore[reportMissingImports]

    hint = {"fp32": "f32", "bf16": "bf16"}[way.precision]  # its own choice is the processor's, bf16 where that has it
    threads = {"INFERENCE_NUM_THREADS": turn["threads"]}
    pipeline = og.Text2ImagePipeline(turn["genai"], "CPU", INFERENCE_PRECISION_HINT=hint, **threads)
    size = {"width": turn["side"], "height": turn["side"]}

    def draw(prompts: list[str], seeds: list[int], steps: int) -> NDArray[np.uint8]:
        asked = {"num_inference_steps": steps, "guidance_scale": way.guidance, "rng_seed": seeds[0]}
        return np.asarray(pipeline.generate(prompts[0], **asked, **size).data, np.uint8)

    return draw


def failure(error: Exception) -> str:
    """In one line, and that what it says: the last ones of compilers and engines are often hints and stack traces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(_NOT_TELLING)]
    return ": ".join([type(error).__name__, *(telling or lines)[:1]])


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        sys.exit(failure(error))

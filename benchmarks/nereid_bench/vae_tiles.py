"""The VAE's decode of large pictures, whole and by tiles, in ONNX Runtime and in diffusers: time, memory, and how far it is off.

Every decode is a process of its own (`python -m nereid_bench.vae_tiles TURN`), so that its peak of memory is its own. The
picture is a mosaic of scenes of the size that the VAE was trained at: alike (one scene everywhere) or unlike (another in each
place). Unlike parts are where a tile knows least of its picture.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nereid.diffusion.vae_tiles import VaeTiling, decode_latents
from nereid.engines.arena import Arena, peak_bytes, reset_peak
from nereid_bench.compare import Say
from nereid_bench.engines import build_engine, target_of
from nereid_export.checkpoint import Checkpoint
from nereid_export.components import Component, components_of
from nereid_export.engines import Engine
from nereid_zoo.shapes.scenes import IMAGE_SIZE, render, sample_scene
from nereid_zoo.shapes.score import CHECKPOINT

PICTURES = ("alike", "unlike")
WHOLE, TILED = "whole", "tiles"
ENGINES = ("diffusers", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeTilesPlan:
    """`sides` of the pictures, `tile` of the tiles, in pixels."""

    work: Path
    sides: tuple[int, ...] = (512, 1024, 2048)
    tile: int = 512
    overlap: float = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One process's work: what decodes the latents in `work`, how, and the file its picture goes to."""

    engine: str
    how: str
    work: str
    picture: str
    tile: int
    overlap: float
    scale: int

    @property
    def made(self) -> Path:
        return Path(self.work) / f"{self.picture}-{self.engine}-{self.how}.npy"

    @property
    def latents(self) -> Path:
        return Path(self.work) / f"{self.picture}.npy"


def vae_tiles(plan: VaeTilesPlan, say: Say) -> list[dict[str, Any]]:
    """Rows of picture, side, engine, whole or tiles, seconds, peak of memory, and differences from diffusers' whole picture."""
    plan.work.mkdir(parents=True, exist_ok=True)
    component = decoder_of(CHECKPOINT)
    target = target_of("fp32", plan.tile, Checkpoint.open(CHECKPOINT))
    build_engine(Engine.ONNXRUNTIME, Checkpoint.open(CHECKPOINT), component, plan.work / "decoder", target, say)
    made: list[dict[str, Any]] = []
    for side in plan.sides:
        for picture in PICTURES:
            np.save(plan.work / f"{picture}.npy", mosaic(side, alike=picture == "alike"))
            reference: NDArray | None = None
            for engine in ENGINES:
                for how in (WHOLE, TILED):
                    say(f"{side} px, {picture}: {engine}, {how}")
                    turn = Turn(
                        engine=engine,
                        how=how,
                        work=str(plan.work),
                        picture=picture,
                        tile=plan.tile,
                        overlap=plan.overlap,
                        scale=target.scale,
                    )
                    found = _take(turn)
                    if found is None:
                        say(f"{side} px, {picture}: {engine}, {how} did not run to its end")
                        continue
                    image = np.load(turn.made)
                    reference = image if reference is None and how == WHOLE else reference
                    made.append(
                        {"picture": picture, "side": side, "engine": engine, "how": how, **found, **_off(image, reference)}
                    )
    return made


def decoder_of(checkpoint: Path) -> Component:
    return next(part for part in components_of(Checkpoint.open(checkpoint)) if part.name == "vae_decoder")


def mosaic(side: int, *, alike: bool, seed: int = 3) -> NDArray:
    """Latents of a square of scenes, each encoded by itself: the form that the denoising loop keeps."""
    rng, count = Random(seed), -(-side // IMAGE_SIZE)
    scenes = [sample_scene(rng) for _ in range(1 if alike else count * count)]
    pixels = np.stack([render(scene) for scene in scenes]).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    encoder = next(part for part in components_of(Checkpoint.open(CHECKPOINT)) if part.name == "vae_encoder").load()
    with torch.no_grad():
        latents = encoder(torch.from_numpy(pixels))[0].numpy()
    places = latents[np.arange(count * count) % len(latents)].reshape(count, count, *latents.shape[1:])
    whole = places.transpose(2, 0, 3, 1, 4).reshape(latents.shape[1], count * latents.shape[2], -1)
    length = side * latents.shape[2] // IMAGE_SIZE
    return np.ascontiguousarray(whole[None, :, :length, :length])


def _off(image: NDArray, reference: NDArray | None) -> dict[str, Any]:
    """In 1/255, as pixels have them; None where the whole picture could not be made."""
    if reference is None:
        return {"largest_difference": None, "mean_difference": None, "percent_beyond_2": None}
    difference = np.abs(np.clip(image, -1, 1) - np.clip(reference, -1, 1)) * 127.5
    return {
        "largest_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "percent_beyond_2": float(100 * (difference > 2).mean()),
    }


def _take(turn: Turn) -> dict[str, Any] | None:
    command = [sys.executable, "-m", "nereid_bench.vae_tiles", json.dumps(asdict(turn))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode else dict(json.loads(done.stdout.splitlines()[-1]))


# --- the child process ---


def main(text: str) -> None:
    turn = Turn(**json.loads(text))
    latents = np.load(turn.latents)
    decode = _diffusers(turn) if turn.engine == "diffusers" else _onnxruntime(turn)
    decode(latents[:, :, :16, :16])
    before, start = reset_peak(), time.perf_counter()
    image = decode(latents)
    seconds = time.perf_counter() - start
    peak = peak_bytes() - before
    np.save(turn.made, image)
    print(json.dumps({"seconds": seconds, "peak_megabytes": peak / 1e6}))


def _diffusers(turn: Turn) -> Callable[[NDArray], NDArray]:
    decoder: Any = decoder_of(CHECKPOINT).load().requires_grad_(False)
    if turn.how == TILED:
        decoder.vae.enable_tiling()
        decoder.vae.tile_sample_min_size, decoder.vae.tile_latent_min_size = turn.tile, turn.tile // turn.scale
        decoder.vae.tile_overlap_factor = turn.overlap
    return lambda latents: np.asarray(decoder(torch.from_numpy(latents)).numpy())


def _onnxruntime(turn: Turn) -> Callable[[NDArray], NDArray]:
    import onnxruntime as ort

    session = ort.InferenceSession(str(Path(turn.work) / "decoder" / "model.onnx"), providers=["CPUExecutionProvider"])
    arena = Arena(devices="cpu:0")
    tiling = VaeTiling(tile_sample_min_size=turn.tile, tile_overlap_factor=turn.overlap, vae_scale_factor=turn.scale)

    def whole(latents: NDArray) -> NDArray:
        return arena.run(session, ["image"], {"latents": latents})[0]

    if turn.how == WHOLE:
        return whole
    return lambda latents: decode_latents(latents, tiling, whole, lambda: None)


if __name__ == "__main__":
    main(*sys.argv[1:])

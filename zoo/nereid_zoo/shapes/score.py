"""Scores drawings of held-out captions: by the PyTorch pipeline, and by served engines, with the same starting noise."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.settings import Pipeline
from nereid.flow.noise import Purpose, normal
from nereid_client import Client
from nereid_zoo.shapes.analyse import analyse, mistakes
from nereid_zoo.shapes.captions import Caption, write_caption
from nereid_zoo.shapes.scenes import IMAGE_SIZE, sample_scene

CHECKPOINT = Path(__file__).resolve().parents[2] / Path(__file__).parent.name / "checkpoint"
"""The trained checkpoint, an ordinary diffusers folder."""
STUDENTS = {steps: CHECKPOINT.parent / f"student-{steps}step" for steps in (4, 2)}
"""What was distilled from it, by the steps that it is for: LCMScheduler, no guidance. That for 2 steps is for one, too."""

Draw = Callable[[list[str], list[int]], Iterator[NDArray[np.uint8]]]
"""Pictures (uint8 128 x 128 x 3) for captions and seeds, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How many drawings were right; `wrong` holds a caption and its mistakes each."""

    drawn: int
    right: int
    wrong: tuple[tuple[str, list[str]], ...]

    @property
    def percent(self) -> float:
        return 100 * self.right / self.drawn


def held_out_captions(count: int, seed: int = 0) -> list[Caption]:
    """Captions of scenes whose combination of objects training has never seen."""
    rng = Random(seed)
    return [write_caption(sample_scene(rng, held_out=True), rng) for _ in range(count)]


def score(draw: Draw, captions: list[Caption], progress: Callable[[int], None] = lambda done: None) -> Score:
    """Draw every caption once, seeded by its number, and compare."""
    wrong = []
    texts = [caption.text for caption in captions]
    for done, (picture, caption) in enumerate(zip(draw(texts, list(range(len(texts)))), captions, strict=True), 1):
        if found := mistakes(analyse(picture), caption.demand):
            wrong.append((caption.text, found))
        progress(done)
    return Score(drawn=len(captions), right=len(captions) - len(wrong), wrong=tuple(wrong))


class ShapesScorer:
    """Scores exports of a painter of shapes (`nereid_export.scorers.Scorer`)."""

    name = "captions drawn right"

    def prompts(self, count: int) -> list[str]:
        return [caption.text for caption in held_out_captions(count, seed=77)]

    def scored(self, count: int) -> list[str]:
        return [caption.text for caption in held_out_captions(count)]

    def score(self, draw: Draw, count: int, told: Callable[[int], None]) -> float:
        return score(draw, held_out_captions(count), told).percent


def scorer_for(checkpoint: Path) -> ShapesScorer | None:
    """A scorer where this folder has a painter of the shipped one's form, however it was trained."""
    return ShapesScorer() if _form(CHECKPOINT) == _form(checkpoint) else None


def _form(checkpoint: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The UNet's settings, without what diffusers notes of where a file came from, and the tokenizer's vocabulary."""
    unet, tokenizer = (_read(checkpoint / file) for file in ("unet/config.json", "tokenizer/tokenizer.json"))
    return {key: value for key, value in unet.items() if not key.startswith("_")}, tokenizer.get("model", {}).get("vocab", {})


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawingSettings:
    """What a checkpoint is scored at where nothing else is asked for."""

    scheduler: str
    steps: int
    guidance: tuple[float, ...]

    @classmethod
    def of(cls, checkpoint: Path) -> DrawingSettings:
        """By its own scheduler: a consistency model takes few steps and no guidance."""
        name = json.loads((checkpoint / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))["_class_name"]
        few = name == "LCMScheduler"
        return cls(scheduler=name, steps=4 if few else 20, guidance=(1.0,) if few else (3.0, 5.0, 7.5))

    @classmethod
    def served(cls, repository: Path) -> DrawingSettings:
        """By what an exported pipeline knows of its checkpoint; raises ValueError where it is no painter of shapes' size."""
        pipeline = Pipeline.read(repository / "denoise" / "1")
        if (pipeline.default_width, pipeline.default_height) != (IMAGE_SIZE, IMAGE_SIZE):
            shown = f"{pipeline.default_width} x {pipeline.default_height}"
            raise ValueError(f"{repository} is not allowed; its pictures of {shown} are not those of a painter of shapes")
        few = pipeline.few_step
        guidance = (pipeline.default_guidance,) if few else (3.0, 5.0, 7.5)
        return cls(scheduler=str(pipeline.default_scheduler), steps=pipeline.default_steps, guidance=guidance)


def torch_drawer(checkpoint: Path, *, steps: int, guidance: float, batch: int = 16) -> Draw:
    """Draw with diffusers' own StableDiffusionPipeline in float32 and the checkpoint's own scheduler."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    shape = (4, IMAGE_SIZE // 8, IMAGE_SIZE // 8)

    def draw(texts: list[str], seeds: list[int]) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(texts), batch):
            chosen = slice(start, start + batch)
            noise = np.stack([normal(seed, Purpose.INITIAL_LATENTS, shape) for seed in seeds[chosen]])
            made = pipeline(
                texts[chosen],
                latents=torch.from_numpy(noise),
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[chosen]],  # noise of steps that take any
                output_type="np",
            )
            yield from np.rint(made.images * 255).astype(np.uint8)

    return draw


def served_drawer(client: Client, *, steps: int, guidance: float, at_once: int = 8) -> Draw:
    """Draw through a running server with the checkpoint's own scheduler, several requests in flight."""
    from concurrent.futures import ThreadPoolExecutor

    def draw(texts: list[str], seeds: list[int]) -> Iterator[NDArray[np.uint8]]:
        def one(text: str, seed: int) -> NDArray[np.uint8]:
            return client.generate_image(text, seed=seed, num_inference_steps=steps, guidance_scale=guidance).pixels[0]

        with ThreadPoolExecutor(at_once) as pool:
            yield from pool.map(one, texts, seeds)

    return draw

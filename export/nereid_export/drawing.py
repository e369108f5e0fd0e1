"""A whole pipeline in this process: prompts to pictures by whatever runs its components, as the server would make them.

Validation, solver and guidance are the served ones (`nereid.diffusion`); only the engines are called directly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nereid.diffusion.families import family_of
from nereid.diffusion.families.base import HALVES
from nereid.diffusion.images import from_pixels, to_pixels
from nereid.diffusion.plan import EngineCall, commit, pack
from nereid.diffusion.requests import parse_image_request
from nereid.diffusion.settings import Decoder, Limits, Pipeline
from nereid.diffusion.start import start_runs
from nereid.diffusion.state import ImageRun
from nereid.flow.errors import RequestError
from nereid_export.checkpoint import Checkpoint
from nereid_export.clip_tokenizers import read_tokenizers
from nereid_export.components import components_of
from nereid_export.engines.check import Run, torch_run
from nereid_export.errors import ExportError
from nereid_export.facts import pipeline_facts

Stepped = Callable[[Sequence[ImageRun], EngineCall, Mapping[str, NDArray]], None]
"""Shown every call of the UNet, its runs and its outputs before they are used."""
Called = Callable[[str, Mapping[str, NDArray]], None]
"""Told of every call of a component: its name and its inputs."""

MOST_DB = 100.0
"""Of pictures that are equal, whose PSNR is infinite."""
_LIMITS = Limits(max_pixels=2**40, max_steps=1000, max_images_per_request=Limits().max_inflight)


@dataclass(frozen=True, slots=True)
class Drawer:
    """Draws with one run for each component, by its name; `vae_encoder` is called only where pictures are encoded."""

    pipeline: Pipeline
    tokenizers: Mapping[str, Any]
    runs: Mapping[str, Run]
    called: Called = field(default=lambda name, inputs: None)
    asked: Mapping[str, Any] = field(default_factory=dict)
    """Further options of every request, by their fields' names."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, runs: Mapping[str, Run]) -> Drawer:
        """A drawer of this checkpoint's pictures; raises ExportError for tokenizers or settings that cannot be read."""
        return cls(pipeline_of(checkpoint), read_tokenizers(checkpoint), runs)

    @classmethod
    def by_torch(cls, checkpoint: Checkpoint) -> Drawer:
        """The same in PyTorch, with every component in memory."""
        return cls.of(checkpoint, {part.name: torch_run(part, part.load()) for part in components_of(checkpoint)})

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], *, steps: int | None = None) -> NDArray[np.uint8]:
        """One picture a prompt, of the usual size, at the usual guidance: uint8 N x H x W x 3.

        Raises ExportError where a component's output is none that a picture can be made of.
        """
        with refusals_told():
            return self.decode(self.denoise(self.request(prompts, seeds, steps=steps)))

    def decode(self, latents: NDArray[np.float32], decoder: Decoder = Decoder.FULL) -> NDArray[np.uint8]:
        """Pictures (uint8 N x H x W x 3) of finished latents; raises ExportError."""
        with refusals_told():
            return to_pixels(self._call(decoder.component, {"latents": latents}, "image")["image"])

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The mean of a picture's latents: uint8 H x W x 3 to float32 C x H/8 x W/8."""
        return self._call("vae_encoder", {"image": from_pixels(pixels)[None]}, "latents_mean", "latents_std")["latents_mean"][0]

    def request(self, prompts: Sequence[str], seeds: Sequence[int], *, steps: int | None = None) -> dict[str, NDArray]:
        """What the served pipeline is asked for these pictures, prompts embedded."""
        inputs: dict[str, NDArray] = {}
        for half in HALVES:
            inputs |= self._encoded(list(prompts) if half == "" else [""] * len(prompts), half)
        count = len(prompts)
        inputs["seed"] = np.array(seeds, dtype=np.uint64).reshape(count, 1)
        inputs["num_inference_steps"] = np.full((count, 1), steps or self.pipeline.default_steps, dtype=np.int32)
        if self.pipeline.inpainting:
            inputs |= _pictures(seeds, (self.pipeline.default_height, self.pipeline.default_width))
        for name, value in self.asked.items():
            kind = np.object_ if isinstance(value, str) else np.int32
            inputs[name] = np.full((count, 1), value.encode() if isinstance(value, str) else value, dtype=kind)
        return inputs

    def denoise(self, request: Mapping[str, NDArray], stepped: Stepped = lambda runs, call, outputs: None) -> NDArray[np.float32]:
        """Finished latents, float32 N x C x H x W; raises RequestError."""
        return denoised(self.pipeline, request, lambda call: self._call(call.variant, call.inputs, *call.outputs), stepped)

    def _encoded(self, texts: list[str], half: str) -> dict[str, NDArray[np.float32]]:
        made: dict[str, NDArray[np.float32]] = {}
        for encoder in family_of(self.pipeline.family).encoders:
            tokenizer = self.tokenizers[encoder.tokenizer]
            ids = tokenizer(
                texts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="np"
            ).input_ids.astype(np.int32)
            names = encoder.outputs(half)
            found = self._call(encoder.model, {"input_ids": ids}, *names)
            made |= {ours: found[theirs] for theirs, ours in names.items()}
        return made

    def _call(self, name: str, inputs: Mapping[str, NDArray], *outputs: str) -> dict[str, NDArray]:
        self.called(name, inputs)
        return self.runs[name](inputs, outputs)


@contextmanager
def refusals_told() -> Iterator[None]:
    """Turn what no picture can be made of into an ExportError."""
    try:
        yield
    except RequestError as error:
        raise ExportError(f"a picture cannot be drawn: {error}") from None


def pipeline_of(checkpoint: Checkpoint) -> Pipeline:
    """What is served of this checkpoint."""
    return Pipeline.from_json(json.dumps(pipeline_facts(checkpoint, [])))


def denoised(
    pipeline: Pipeline,
    request: Mapping[str, NDArray],
    engines: Callable[[EngineCall], Mapping[str, NDArray]],
    stepped: Stepped = lambda runs, call, outputs: None,
) -> NDArray[np.float32]:
    """The latents, float32 N x C x H x W, of a request whose prompts are embedded; `engines` answer calls.

    Raises RequestError for an output that no run can go on from.
    """
    runs = start_runs(parse_image_request(request, pipeline, _LIMITS), partial(_as_latents, pipeline), lambda: False)
    while going := [run for run in runs if not run.done]:
        least = min(run.step for run in going)
        together = [run for run in going if run.step == least]
        together = [run for run in together if run.variant is together[0].variant]
        call = pack(together)
        outputs = engines(call)
        stepped(together, call, outputs)
        for error in commit(together, call, outputs):
            if error is not None:
                raise error
    return np.stack([run.state.sample for run in runs])


def _pictures(seeds: Sequence[int], size: tuple[int, int]) -> dict[str, NDArray[np.uint8]]:
    """What a UNet that draws parts of pictures is given to draw: smooth colours, of which one half is drawn anew."""
    height, width = size
    pictures, masks = [], np.zeros((len(seeds), height, width), np.uint8)
    for mask, seed in zip(masks, seeds, strict=True):
        colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
        pictures.append(np.asarray(Image.fromarray(colours).resize((width, height), Image.Resampling.BILINEAR)))
        half = mask if seed % 2 else mask.T
        half[: len(half) // 2] = 255
    return {"init_image": np.stack(pictures), "mask_image": masks}


def _as_latents(pipeline: Pipeline, picture: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Its colours in place of its latents' moments: about as large, and no encoder is needed."""
    scale, channels = pipeline.vae_scale_factor, np.arange(pipeline.latent_channels) % picture.shape[1]
    small = np.ascontiguousarray(picture[:, channels, ::scale, ::scale])
    return small, np.zeros_like(small)


def psnr(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of pictures, in dB; MOST_DB where they are equal."""
    error = float(np.mean((ours.astype(np.float64) - theirs) ** 2))
    return MOST_DB if error == 0 else min(float(10 * np.log10(255.0**2 / error)), MOST_DB)

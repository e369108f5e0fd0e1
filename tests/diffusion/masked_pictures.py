"""Requests that draw a part of a picture anew, with a VAE encoder and a UNet whose answers are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nereid.diffusion.loop import DenoisingLoop
from nereid.diffusion.state import ImageTask
from nereid.flow.noise import Purpose, normal

from image_forms import Array, Unet, begun, finish, request

PICTURE = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), np.uint8)
MASK = np.zeros((1, 64, 64), np.uint8)
MASK[:, 8:40, 16:64] = 255
DRAWN = MASK[0, ::8, ::8] > 0
POINT = np.array([[0.5]], np.float32)


def encode(images: Array) -> tuple[Array, Array]:
    """Every fourth pixel's colours, twice, as if they were latents."""
    small = images[:, [0, 1, 2, 0], 4::8, 4::8]
    return small, np.full_like(small, 0.1)


def answer(inputs: Mapping[str, Array]) -> Array:
    """What no row shares with another: it follows the sample, the timestep and the embeddings."""
    told = inputs["encoder_hidden_states"].mean((1, 2)) + inputs["timestep"][:, 0] / np.float32(300)
    return np.sin(np.float32(0.8) * inputs["sample"] + told[:, None, None, None])


def masked(**inputs: Array) -> dict[str, Array]:
    return request(**{"init_image": PICTURE, "mask_image": MASK, **inputs})


def drawn(*requests: dict[str, Array], unet: Any = None) -> list[ImageTask]:
    tasks = [begun(inputs, encode=encode) for inputs in requests]
    finish(DenoisingLoop(unet or Unet(answer), 16), *tasks)
    assert [task.error for task in tasks] == [None] * len(tasks)
    return tasks


def sample(task: ImageTask) -> Array:
    return task.runs[0].state.sample


def latents(seed: int = 3) -> Array:
    mean, deviation = encode(np.ascontiguousarray(PICTURE.transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1)))
    return mean[0] + deviation[0] * normal(seed, Purpose.IMAGE_POSTERIOR, (4, 8, 8))

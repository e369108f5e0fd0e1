"""What diffusers' own inpaint pipelines make of a part of a picture, with the noise that the server draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from nereid.flow.noise import Purpose, normal


def drawn_by_diffusers(
    pipeline: Any,
    picture: np.ndarray,
    mask: np.ndarray,
    seed: int,
    patch: Callable[..., None],
    *,
    fill: str = "original",
    **options: Any,
) -> np.ndarray:
    """Its images of "a box", as `output_type` says. The posteriors' noise and the starting noise are the server's.

    `mask` is uint8 greys, or truth values; `patch` sets an attribute for the time of the test. `fill` is what the picture's
    latents are given as where it is drawn anew: diffusers knows no `inpainting_fill`.
    """

    def noise(purpose: Purpose, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.from_numpy(normal(seed, purpose, shape))[None]

    drawn_anew = torch.from_numpy(mask if mask.dtype == np.bool_ else mask >= 128)

    def encode(image: torch.Tensor, generator: Any) -> torch.Tensor:
        posterior = pipeline.vae.encode(image).latent_dist
        covered = not image[:, :, drawn_anew].any()
        purpose = Purpose.MASKED_IMAGE_POSTERIOR if covered else Purpose.IMAGE_POSTERIOR
        drawn = posterior.mean + posterior.std * noise(purpose, tuple(posterior.mean.shape[1:]))
        scaled = drawn * pipeline.vae.config.scaling_factor
        if covered or fill == "original":
            return scaled
        start = noise(Purpose.INITIAL_LATENTS, tuple(scaled.shape[1:]))
        at_latents = torch.nn.functional.interpolate(drawn_anew[None, None].float(), size=scaled.shape[2:]) > 0
        return torch.where(at_latents, start if fill == "latent_noise" else torch.zeros_like(start), scaled)

    pipeline.set_progress_bar_config(disable=True)
    patch(pipeline, "_encode_vae_image", encode)
    start = f"{type(pipeline).__module__}.randn_tensor"
    patch(start, lambda shape, **_: noise(Purpose.INITIAL_LATENTS, tuple(shape[1:])))
    height, width = mask.shape
    asked = {"image": Image.fromarray(picture), "mask_image": Image.fromarray(mask), "width": width, "height": height, **options}
    return np.asarray(pipeline("a box", **asked).images)

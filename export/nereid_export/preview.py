"""Fits the small matrix that turns latents into a rough picture, for previews while an image is being made."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from nereid_export.components import VaeEncoder


def fit_latents_to_rgb(encoder: VaeEncoder, pictures: int = 24) -> list[list[float]]:
    """(channels + 1) x 3 weights, offset last: least squares from latents to the picture's colours at their size.

    The pictures are flat patches of random colours, which is what latents tell most directly.
    """
    generator = torch.Generator().manual_seed(0)
    scale = 2 ** (len(encoder.vae.config.block_out_channels) - 1)
    patches = torch.rand(pictures, 3, 3, 3, generator=generator) * 2 - 1
    images = F.interpolate(patches, size=(12 * scale, 12 * scale), mode="nearest")
    with torch.no_grad():
        latents = encoder(images)[0]
    colours = F.adaptive_avg_pool2d(images, latents.shape[-2:])
    rows = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    known = torch.cat([rows, torch.ones(len(rows), 1)], dim=1).double()
    wanted = colours.permute(0, 2, 3, 1).reshape(-1, 3).double()
    # A ridge keeps the weights sane for encoders whose channels are nearly dependent.
    ridge = 1e-4 * len(rows) * torch.eye(known.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(known.T @ known + ridge, known.T @ wanted)
    return [[round(float(weight), 6) for weight in row] for row in solution]

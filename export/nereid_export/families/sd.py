"""Stable Diffusion 1 and 2, latent consistency models among them."""

from __future__ import annotations

from nereid.diffusion.families.sd import SD as SERVING
from nereid_export.families.base import ExportFamily

SD = ExportFamily(
    serving=SERVING,
    pipelines=(
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "LatentConsistencyModelPipeline",
    ),
)

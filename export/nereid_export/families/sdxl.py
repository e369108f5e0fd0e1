"""Stable Diffusion XL."""

from __future__ import annotations

from nereid.diffusion.families.sdxl import SDXL as SERVING
from nereid_export.families.base import ExportFamily, ExtraInput, ReadConfig


def _extra_inputs(config: ReadConfig) -> tuple[ExtraInput, ...]:
    pooled = int(config(SERVING.encoders[-1].model)["projection_dim"])
    return ExtraInput(name="text_embeds", width=pooled), ExtraInput(name="time_ids", width=6, high=1024)


SDXL = ExportFamily(
    serving=SERVING,
    pipelines=("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
    text_layer=-2,
    addition_embed_type="text_time",
    default_guidance=5.0,
    extra_inputs=_extra_inputs,
)

"""Fields that say what an image's run starts from: another picture, a part of it, or given latents."""

from __future__ import annotations

from nereid_protocol.field import DType, Field, Model

_NO_PICTURES = frozenset({Model.ENSEMBLE, Model.STREAM, Model.DENOISE})

START_FIELDS: tuple[Field, ...] = (
    Field(
        name="init_image",
        dtype=DType.UINT8,
        shape=(-1, -1, 3),
        help="Start from this picture: height x width x 3.",
        default="none",
        models=_NO_PICTURES,
    ),
    Field(
        name="mask_image",
        dtype=DType.UINT8,
        shape=(-1, -1),
        help="Which part of init_image is drawn anew, where it is 128 or more, height x width; the rest of the picture stays.",
        default="all of it",
        models=_NO_PICTURES,
    ),
    Field(
        name="strength",
        dtype=DType.FP32,
        help="How much of init_image, or of its part that is drawn anew, is replaced, 0 to 1.",
        default="0.8; 1 with mask_image",
        low=0.0,
        high=1.0,
        models=_NO_PICTURES,
        option="--strength",
    ),
    Field(
        name="inpainting_fill",
        dtype=DType.STRING,
        help="What the part of init_image that is drawn anew begins as: original, latent_noise or latent_nothing.",
        default="original",
        models=_NO_PICTURES,
        option="--inpainting-fill",
    ),
    Field(
        name="latent_upscale",
        dtype=DType.STRING,
        help="How latents of an init_image of another size are brought to width x height: nearest-exact, bilinear or bicubic.",
        default="init_image must be width x height",
        models=_NO_PICTURES,
        option="--latent-upscale",
    ),
    Field(
        name="latents",
        dtype=DType.FP32,
        shape=(-1, -1, -1),
        help="Starting noise instead of the seed's own: channels x height/8 x width/8, standard normal.",
        default="made from the seed",
        models=frozenset({Model.ENSEMBLE, Model.DENOISE}),
    ),
)

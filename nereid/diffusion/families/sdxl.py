"""Stable Diffusion XL (Podell et al., 2023): two text encoders side by side, a pooled embedding, and the picture's size."""

from __future__ import annotations

import numpy as np

from nereid.diffusion.families.base import Conditioning, Embeds, Family, TextEncoder
from nereid.flow.errors import InvalidRequestError

_SECOND = TextEncoder(suffix="_2", pooled=True)


def _condition(embeds: Embeds, half: str, size: tuple[int, int]) -> Conditioning:
    first = embeds(f"{half}prompt_embeds", 3)
    names = _SECOND.outputs(half)
    second = embeds(names["prompt_embeds"], 3)
    if second.shape[0] != first.shape[0]:
        raise InvalidRequestError.of(f"tokens of {names['prompt_embeds']}", second.shape[0], f"{first.shape[0]}")
    height, width = size
    return Conditioning(
        states=np.concatenate([first, second], axis=-1),
        extra={
            "text_embeds": embeds(names["pooled_prompt_embeds"], 2),
            # Original size, crop corner, target size.
            "time_ids": np.array([height, width, 0, 0, height, width], dtype=np.float32),
        },
    )


SDXL = Family(name="sdxl", encoders=(TextEncoder(), _SECOND), condition=_condition, zeroed=frozenset({"text_embeds"}))

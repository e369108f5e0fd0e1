"""Stable Diffusion 1 and 2, and whatever has one text encoder and nothing more."""

from __future__ import annotations

from nereid.diffusion.families.base import Conditioning, Embeds, Family, TextEncoder


def _condition(embeds: Embeds, half: str, size: tuple[int, int]) -> Conditioning:
    return Conditioning(states=embeds(f"{half}prompt_embeds", 3), extra={})


SD = Family(name="sd", encoders=(TextEncoder(),), condition=_condition)

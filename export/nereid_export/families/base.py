"""One family's checkpoints, as export meets them; knows no family by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nereid.diffusion.families import Family

ReadConfig = Callable[[str], Mapping[str, Any]]
"""A component's config.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraInput:
    """A further input of the UNet: a vector of `width` for each row, traced with values up to `high` where it has units."""

    name: str
    width: int
    high: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFamily:
    """`text_layer` is the hidden layer of the text encoders that the UNet is told, None for the last, normalised one."""

    serving: Family
    pipelines: tuple[str, ...]
    text_layer: int | None = None
    addition_embed_type: str | None = None
    default_guidance: float = 7.5
    extra_inputs: Callable[[ReadConfig], tuple[ExtraInput, ...]] = lambda config: ()

    @property
    def components(self) -> tuple[str, ...]:
        """The folders that a checkpoint of this family must have."""
        encoders = self.serving.encoders
        return (
            *(encoder.model for encoder in encoders),
            *(encoder.tokenizer for encoder in encoders),
            "unet",
            "vae",
            "scheduler",
        )

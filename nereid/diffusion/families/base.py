"""What a family of diffusion checkpoints is, to everything that serves one; knows no family by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

HALVES = ("", "negative_")
"""Prefixes of the tensors of a prompt and of its negative prompt."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conditioning:
    """What the UNet is told besides the latents, for one half of the guidance.

    `states` is float32 tokens x width, None for a network that attends to none; `extra` holds the family's further inputs (XL:
    `text_embeds`, `time_ids`).
    """

    states: Array | None
    extra: Mapping[str, NDArray[Any]]
    shapes: tuple[object, ...] = field(init=False)
    """What two rows must share to share a call."""

    def __post_init__(self) -> None:
        states = () if self.states is None else (self.states.shape,)
        object.__setattr__(self, "shapes", (*states, *((name, value.shape) for name, value in sorted(self.extra.items()))))

    @property
    def inputs(self) -> dict[str, NDArray[Any]]:
        """By the names of an engine's inputs."""
        return {**({} if self.states is None else {"encoder_hidden_states": self.states}), **self.extra}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoder:
    """One text encoder: its model, its tokenizer's folder, and the names of the tensors it is joined by."""

    suffix: str = ""
    pooled: bool = False

    @property
    def model(self) -> str:
        return f"text_encoder{self.suffix}"

    @property
    def tokenizer(self) -> str:
        return f"tokenizer{self.suffix}"

    def ids(self, half: str) -> str:
        return f"{half}input_ids{self.suffix}"

    def outputs(self, half: str) -> dict[str, str]:
        """The encoder's outputs, each with its name as an input of `denoise`."""
        made = {"prompt_embeds": f"{half}prompt_embeds{self.suffix}"}
        if self.pooled:
            made["pooled_prompt_embeds"] = f"pooled_{half}prompt_embeds"
        return made


class Embeds(Protocol):
    """Reads one prompt's embeddings from a request, checked."""

    def __call__(self, name: str, rank: int) -> Array: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """`condition` makes one prompt's conditioning from (embeddings, half, (height, width)); `zeroed` names the extra inputs
    that are zero where an empty negative prompt is."""

    name: str
    encoders: tuple[TextEncoder, ...]
    condition: Callable[[Embeds, str, tuple[int, int]], Conditioning]
    zeroed: frozenset[str] = frozenset()

    def zeros_like(self, made: Conditioning) -> Conditioning:
        """The conditioning of an empty negative prompt, for checkpoints that want zeros there (diffusers' option)."""
        extra = {name: np.zeros_like(value) if name in self.zeroed else value for name, value in made.extra.items()}
        return Conditioning(states=None if made.states is None else np.zeros_like(made.states), extra=extra)

"""How many tokens MLPs that pass over some were computed for, as their engines tell it, and what that is in FLOPs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nereid.diffusion.dynamic_width import TokenEngine
from nereid.diffusion.plan import EngineCall
from nereid.layout.settings import KEPT
from nereid_zoo.layout.draw import DYNAMIC
from nereid_zoo.layout.model import Block
from nereid_zoo.layout.skipping import SkippingBlock


def has_token_routers(checkpoint: Path) -> bool:
    """Whether the dynamic transformer of this folder has been trained with routers of tokens."""
    config = json.loads((checkpoint / DYNAMIC / "config.json").read_text(encoding="utf-8"))
    return bool(config.get("tokens"))


@dataclass(frozen=True, slots=True)
class KeptTokens:
    """By engine and block, tokens that MLPs were computed for; by engine, tokens that there were, padded ones aside."""

    kept: dict[TokenEngine, NDArray[np.float64]] = field(default_factory=dict)
    tokens: dict[TokenEngine, float] = field(default_factory=dict)

    def take(self, places: Sequence[int], call: EngineCall, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Of a call that a drawer has made."""
        if isinstance(call.variant, TokenEngine):
            self._add(call.variant, outputs[KEPT].sum(0, dtype=np.float64), float(call.inputs["valid"].sum() + call.rows))

    def add(self, other: KeptTokens) -> None:
        for engine, kept in other.kept.items():
            self._add(engine, kept, other.tokens[engine])

    def _add(self, engine: TokenEngine, kept: NDArray[np.float64], tokens: float) -> None:
        self.kept[engine] = self.kept.get(engine, np.zeros(len(kept))) + kept
        self.tokens[engine] = self.tokens.get(engine, 0.0) + tokens

    @property
    def percent(self) -> float:
        """Of all tokens at all MLPs, those that they were computed for; 100 where none may be passed over."""
        every = sum(len(self.kept[engine]) * tokens for engine, tokens in self.tokens.items())
        return 100 * float(sum(kept.sum() for kept in self.kept.values())) / every if every else 100.0

    def shares(self, engine: TokenEngine) -> list[float]:
        """Of an engine's tokens, those that each block kept; all where nothing was drawn with it."""
        return (self.kept[engine] / self.tokens[engine]).tolist() if engine in self.kept else [1.0]

    def flops(self, each: Mapping[StrEnum, Sequence[float]]) -> float:
        """Of all MLPs that were computed, where each block's takes so many for a token."""
        return float(sum((kept * each[engine]).sum() for engine, kept in self.kept.items()))


def token_flops(block: Block) -> float:
    """Of a block's MLP for one token: two for each multiplication and addition."""
    return 2.0 * (block.fc1.weight.numel() + block.fc2.weight.numel())


def pass_over_all(module: nn.Module) -> list[SkippingBlock]:
    """Have MLPs that pass over tokens be computed for none; the blocks that have them."""
    blocks = [its for its in module.modules() if isinstance(its, SkippingBlock)]
    for block in blocks:
        nn.init.constant_(block.router.bias, -torch.inf)
    return blocks

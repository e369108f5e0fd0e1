"""The network behind `features`, a small encoder of drawn layouts, pooled over a section's elements, and its training."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nereid.layout.tokens import Tokens
from nereid_zoo.layout.batches import sample_row
from nereid_zoo.layout.features import Spoiled, drawn_tokens, spoil
from nereid_zoo.layout.model import LayoutTransformer, waves
from nereid_zoo.optimisation import optimizer_of, optimizer_step, report, schedule
from nereid_zoo.stages import finished_stage


class LayoutFeatures(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Features of layouts, and what they tell of how a layout was spoiled."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, width: int = 96, layers: int = 3, heads: int = 3) -> None:
        super().__init__()
        self.encoder = LayoutTransformer(width=width, layers=layers, heads=heads, mlp_ratio=2, grid_periods=(), related=False)
        self.tell = nn.Linear(width, len(Spoiled))

    def forward(self, tokens: Tokens, boxes: NDArray[np.float32]) -> Tensor:
        """float32 rows x width: the mean over valid tokens."""
        given = {name: torch.from_numpy(value) for name, value in tokens.as_inputs().items()}
        drawn, nothing = torch.from_numpy(boxes), torch.zeros(boxes.shape)
        numbers = torch.cat([drawn, nothing, nothing, waves(drawn), 0 * waves(drawn), given["content"]], -1)
        names = ("classes", "parents", "depths", "canvas", "valid")
        hidden = self.encoder.hidden(numbers, torch.zeros(len(boxes)), *(given[name] for name in names))
        weights = given["valid"][..., None]
        return (hidden[:, 1:] * weights).sum(1) / weights.sum(1)


def train_features(work: Path, minutes: float, destination: Path, *, seed: int = 0) -> None:
    """Train on layouts made on the way, and save to `destination`. A finished training in `work` is not done again."""
    facts = {"minutes": minutes, "seed": seed}
    finished = finished_stage(work / "features", facts, lambda folder: fit(minutes, seed).save_pretrained(folder))
    shutil.copytree(finished, destination, dirs_exist_ok=True, ignore=shutil.ignore_patterns("stage.json"))


def fit(minutes: float, seed: int, batch_size: int = 64) -> LayoutFeatures:
    """One in five layouts is left as it is, the others are spoiled in one of four ways: which is to be told."""
    torch.manual_seed(seed)
    rng, network = Random(seed), LayoutFeatures()
    optimizer = optimizer_of(network.parameters())
    for step, rate in schedule("features", minutes, peak=1.5e-3):
        sections, layouts = zip(*(sample_row(rng) for _ in range(batch_size)), strict=True)
        spoiled, kinds = [], []
        for section, boxes in zip(sections, layouts, strict=True):
            kind = rng.choice(tuple(Spoiled))
            spoiled.append(spoil(section, boxes, kind, rng))
            kinds.append(Spoiled.NOT if spoiled[-1] == boxes else kind)
        answers, labels = network.tell(network(*drawn_tokens(sections, spoiled))), torch.tensor(kinds)
        loss = functional.cross_entropy(answers, labels)
        optimizer_step(optimizer, loss, rate)
        if step % 50 == 0:
            report("features", step, loss=loss.item(), right=(answers.argmax(-1) == labels).float().mean().item())
    return network

"""Trains `layout` on layouts made on the way: a rectified flow in three phases, each resumable; two hours on two CPU cores."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nereid.layout.settings import TRAIN_TIMESTEPS
from nereid.layout.tokens import Tokens
from nereid_zoo.layout.batches import Batch, Batches
from nereid_zoo.layout.folders import save
from nereid_zoo.layout.losses import Losses, losses
from nereid_zoo.layout.model import LayoutTransformer
from nereid_zoo.optimisation import in_bf16, optimizer_of, optimizer_step, report, schedule, update_ema
from nereid_zoo.stages import finished_stage

LEVEL_POWER = 1.5
"""Noise levels are u to this power, u uniform: more of them near the data, where pixels are decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """How long all phases train together, in minutes of wall clock, and where."""

    work: Path
    device: str = "cpu"
    minutes: float = 120
    batch_size: int = 64
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Phase:
    """Its share of the minutes, and the highest learning rate."""

    name: str
    share: float
    peak: float


PHASES = (Phase("coarse", 0.4, 2e-3), Phase("fine", 0.35, 1.2e-3), Phase("finest", 0.25, 6e-4))


def train(plan: TrainingPlan, destination: Path) -> None:
    """Run the phases that `plan.work` does not hold yet and save a diffusers folder in float16 to `destination`."""
    torch.manual_seed(plan.seed)
    plan.work.mkdir(parents=True, exist_ok=True)
    transformer = LayoutTransformer()
    facts = {
        "architecture": transformer.described,
        "minutes": plan.minutes,
        "batch_size": plan.batch_size,
        "seed": plan.seed,
    }
    for number, phase in enumerate(PHASES, 1):
        write = partial(_write, plan, phase, transformer, plan.seed + number)
        finished = finished_stage(plan.work / f"{number}-{phase.name}", facts, write)
        transformer = LayoutTransformer.from_pretrained(finished, use_safetensors=True)
    save(transformer.half(), destination)


def _write(plan: TrainingPlan, phase: Phase, transformer: LayoutTransformer, seed: int, folder: Path) -> None:
    fit(plan, phase, transformer.to(plan.device), seed=seed).save_pretrained(folder)


def fit(plan: TrainingPlan, phase: Phase, transformer: LayoutTransformer, *, seed: int) -> LayoutTransformer:
    """One phase; returns the moving average of the weights."""
    transformer.train()
    average = deepcopy(transformer)
    optimizer = optimizer_of(transformer.parameters())
    supply = Batches(plan.batch_size, seed)
    generator = torch.Generator(plan.device).manual_seed(seed)
    for step, rate in schedule(phase.name, plan.minutes * phase.share, peak=phase.peak):
        made = step_losses(transformer, supply.next(), generator, plan.device)
        optimizer_step(optimizer, made.total, rate)
        update_ema(average, transformer, decay=min(0.999, (step + 1) / (step + 20)))
        if step % 100 == 0:
            figures = {field.name: getattr(made, field.name).item() for field in fields(made)}
            report(phase.name, step, rows=(step + 1) * plan.batch_size, rate=rate, **figures)
    return average


@dataclass(frozen=True, slots=True)
class Noisy:
    """A batch on its way to noise: all B x N x 4, `levels` B (0 is clean), and what is given, by the transformer's inputs."""

    boxes: Tensor
    clean: Tensor
    noise: Tensor
    levels: Tensor
    given: dict[str, Tensor]

    @property
    def timesteps(self) -> Tensor:
        return self.levels * TRAIN_TIMESTEPS

    def losses(self, predicted: Tensor) -> Losses:
        return losses(predicted, self.boxes, self.clean, self.noise, self.levels, self.given)


def step_losses(transformer: LayoutTransformer, batch: Batch, generator: torch.Generator, device: str) -> Losses:
    """The losses of one batch."""
    its = noisy(batch, generator, device)
    with in_bf16(device):
        predicted = transformer(boxes=its.boxes, timestep=its.timesteps, **its.given)
    return its.losses(predicted.float())


def noisy(batch: Batch, generator: torch.Generator, device: str) -> Noisy:
    """The batch at stratified noise levels: the same spread in every batch keeps the gradient calm."""
    given = tensors(batch.tokens, device)
    clean = torch.from_numpy(batch.clean).to(device)
    rows = len(clean)
    offsets = torch.rand(rows, generator=generator, device=device)
    order = torch.randperm(rows, generator=generator, device=device)
    levels = ((order + offsets) / rows) ** LEVEL_POWER
    noise = torch.randn(clean.shape, generator=generator, device=device)
    level = levels[:, None, None]
    boxes = torch.where(given["field_mask"] >= 1, clean, (1 - level) * clean + level * noise)
    return Noisy(boxes, clean, noise, levels, given)


def tensors(tokens: Tokens, device: str) -> dict[str, Tensor]:
    """By the names of the transformer's inputs."""
    return {name: torch.from_numpy(value).to(device) for name, value in tokens.as_inputs().items()}

"""Trains routers of tokens with a transformer of settled widths: which tokens need a block's MLP (SDT of DyDiT).

One transformer serves all that a request may ask for: its widths with all tokens, the whole of it with the tokens that routers
keep, and both together. Steps take turns.
"""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from nereid_zoo.layout.batches import Batch, Batches
from nereid_zoo.layout.dynamic import DynamicLayoutTransformer, straight_through
from nereid_zoo.layout.model import LayoutTransformer
from nereid_zoo.layout.skipping import Routing, above, counted
from nereid_zoo.layout.teaching import PEAK, RAMP, Step, taught_by
from nereid_zoo.layout.train import LEVEL_POWER, noisy
from nereid_zoo.optimisation import optimizer_of, optimizer_step, report, schedule, update_ema

DRAWN = 0.7
"""Share of the minutes in which gates are drawn by their chances; after it they are as they are served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPlan:
    """To which share of the MLPs' FLOPs, of runs of a flow with this shift, and how long, in minutes."""

    share: float
    minutes: float
    shift: float = 1.0
    device: str = "cpu"
    batch_size: int = 64
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Mode:
    """What a step of training computes."""

    widths: bool
    tokens: bool


BOTH, WIDTHS, TOKENS = Mode(widths=True, tokens=True), Mode(widths=True, tokens=False), Mode(widths=False, tokens=True)
MODES = (BOTH, WIDTHS, BOTH, TOKENS)
"""In turn."""


def fit_tokens(plan: TokenPlan, teacher: LayoutTransformer, network: DynamicLayoutTransformer) -> DynamicLayoutTransformer:
    """Returns the moving average of the weights. Widths and their routers stay as they are."""
    network.train()
    average = deepcopy(network)
    optimizer = optimizer_of(network.transformer.parameters())
    supply, generator = Batches(plan.batch_size, plan.seed), torch.Generator(plan.device).manual_seed(plan.seed)
    start = time.monotonic()
    for step, rate in schedule("tokens", plan.minutes, peak=PEAK):
        done, mode = (time.monotonic() - start) / (60 * plan.minutes), MODES[step % len(MODES)]
        target = 1 - (1 - plan.share) * min(1.0, done / RAMP)
        batch, drawn = supply.next(), done < DRAWN
        made = step_losses(network, teacher, batch, mode, generator, plan.device, target, plan.shift, drawn=drawn)
        optimizer_step(optimizer, made.total, rate)
        update_ema(average, network, decay=min(0.999, (step + 1) / (step + 20)))
        if step % 48 == 0:
            figures = {"own": made.own.item(), "taught": made.taught.item(), "flops": made.flops.item(), "target": target}
            report("tokens", step, rows=(step + 1) * plan.batch_size, rate=rate, **figures)
    return average


def step_losses(
    network: DynamicLayoutTransformer,
    teacher: LayoutTransformer,
    batch: Batch,
    mode: Mode,
    generator: torch.Generator,
    device: str,
    target: float,
    shift: float = 1.0,
    *,
    drawn: bool,
) -> Step:
    """The losses of one batch; `flops` is the share of its MLPs' that is left, all noise levels counting as runs take them."""
    its = noisy(batch, generator, device)
    gates = network.settled_gates(its.timesteps) if mode.widths else None

    def decide(logits: Tensor) -> Tensor:
        if drawn:
            return straight_through(logits, generator)
        soft = logits.sigmoid()
        return above(logits) + (soft - soft.detach())

    routing = Routing(counted(its.given["valid"]), decide) if mode.tokens else None
    predicted = network(gates, routing, boxes=its.boxes, timestep=its.timesteps, **its.given)
    flops, off = torch.ones((), device=device), torch.zeros((), device=device)
    if routing is not None:
        weights = as_runs(its.levels, shift)
        flops = (network.token_flops(gates, routing) * weights).sum() / weights.sum()
        off = (flops - target).square()
    return Step(its.losses(predicted).total, taught_by(teacher, its, predicted), flops, off)


def as_runs(levels: Tensor, shift: float) -> Tensor:
    """How much each of training's noise levels counts, so that they are spread as those of runs with this shift are."""
    evenly = levels ** (1 - 1 / LEVEL_POWER)  # training has more of the levels near the data
    return evenly * shift / (shift + (1 - shift) * levels) ** 2

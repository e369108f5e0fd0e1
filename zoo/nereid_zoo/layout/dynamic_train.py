"""Trains dynamic width from a finished layout transformer: routers with it, then what they have led to without them.

The whole transformer stays as it is, and is the teacher of the copy that is trained. Routers of tokens may be trained with that
afterwards (`nereid_zoo.layout.token_train`). All phases are resumable.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nereid.engines.digests import digest_of_files
from nereid_zoo.layout.batches import Batch, Batches
from nereid_zoo.layout.draw import DYNAMIC, flow_of
from nereid_zoo.layout.dynamic import DynamicLayoutTransformer, run_timesteps, straight_through
from nereid_zoo.layout.folders import load
from nereid_zoo.layout.model import LayoutTransformer
from nereid_zoo.layout.teaching import PEAK, RAMP, Step, taught_by
from nereid_zoo.layout.token_train import TokenPlan, fit_tokens
from nereid_zoo.layout.train import noisy
from nereid_zoo.optimisation import optimizer_of, optimizer_step, report, schedule, update_ema
from nereid_zoo.stages import finished_stage, forget_places

ROUTED = 0.6
"""Share of the minutes in which routers are trained."""
LEVELS = 32
"""Noise levels that FLOPs are counted at: as the checkpoint's scheduler spaces those of runs, and not as training does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicPlan:
    """What is trained from which finished checkpoint, to which share of the blocks' FLOPs, and how long, in minutes."""

    source: Path
    work: Path
    flops: float = 0.6
    device: str = "cpu"
    minutes: float = 30
    batch_size: int = 64
    groups: int = 12
    """Of MLP channels, in every block."""
    seed: int = 0
    tokens: float | None = None
    """Share of the MLPs' FLOPs that routers of tokens are to leave of a run; None: there are none."""
    token_minutes: float = 15
    """Of the routers of tokens, after the others."""

    @property
    def shift(self) -> float:
        """Of the checkpoint's runs."""
        return flow_of(self.source).shift


Gates = Callable[[Tensor], Tensor]
"""Of timesteps."""


def train_dynamic(plan: DynamicPlan, destination: Path) -> DynamicLayoutTransformer:
    """Run the phases that `plan.work` does not hold yet, and save a copy of the checkpoint with what was trained beside it.

    Returns that, in float16. Finished phases of other plans are refused.
    """
    torch.manual_seed(plan.seed)
    plan.work.mkdir(parents=True, exist_ok=True)
    teacher = load(plan.source).to(plan.device)
    facts = {
        "source": digest_of_files(plan.source, sorted((plan.source / "transformer").iterdir())),
        **{name: getattr(plan, name) for name in ("shift", "flops", "minutes", "batch_size", "groups", "seed")},
    }
    network = DynamicLayoutTransformer.of(teacher, plan.groups)
    write = partial(_write, plan, teacher, network, routing=True)
    network = _read(finished_stage(plan.work / "1-routed", facts, write))
    write = partial(_write, plan, teacher, network, routing=False)
    network = _read(finished_stage(plan.work / "2-settled", facts, write))
    if plan.tokens is not None:
        tokens = TokenPlan(
            share=plan.tokens,
            shift=plan.shift,
            device=plan.device,
            minutes=plan.token_minutes,
            batch_size=plan.batch_size,
            seed=plan.seed + 3,
        )
        facts |= {"tokens": plan.tokens, "token_minutes": plan.token_minutes}
        network = _read(finished_stage(plan.work / "3-tokens", facts, partial(_write_tokens, tokens, teacher, network)))
    save_dynamic(network.half(), plan.source, destination)
    return network


def _write_tokens(plan: TokenPlan, teacher: LayoutTransformer, network: DynamicLayoutTransformer, folder: Path) -> None:
    fit_tokens(plan, teacher, network.with_token_routers().to(plan.device)).to("cpu").save_pretrained(folder)


def _read(folder: Path) -> DynamicLayoutTransformer:
    made: DynamicLayoutTransformer = DynamicLayoutTransformer.from_pretrained(folder, use_safetensors=True)
    return made


def _write(
    plan: DynamicPlan, teacher: LayoutTransformer, network: DynamicLayoutTransformer, folder: Path, *, routing: bool
) -> None:
    fitted = fit(plan, teacher, network.to(plan.device), routing=routing).to("cpu")
    if routing:
        fitted.settle(plan.flops, plan.shift)
    fitted.save_pretrained(folder)


def fit(
    plan: DynamicPlan, teacher: LayoutTransformer, network: DynamicLayoutTransformer, *, routing: bool
) -> DynamicLayoutTransformer:
    """One phase, with routers or with the widths that they have led to; returns the moving average of the weights."""
    name, minutes = ("routed", plan.minutes * ROUTED) if routing else ("settled", plan.minutes * (1 - ROUTED))
    network.train()
    average = deepcopy(network)
    trained = network.parameters() if routing else network.transformer.parameters()
    optimizer = optimizer_of(trained)
    seed = plan.seed + (1 if routing else 2)
    supply, generator = Batches(plan.batch_size, seed), torch.Generator(plan.device).manual_seed(seed)
    start = time.monotonic()

    def drawn(timesteps: Tensor) -> Tensor:
        return straight_through(network.logits(timesteps), generator)

    gates: Gates = drawn if routing else network.settled_gates
    for step, rate in schedule(name, minutes, peak=PEAK):
        done = (time.monotonic() - start) / (60 * minutes)
        target = 1 - (1 - plan.flops) * min(1.0, done / RAMP)
        made = step_losses(network, teacher, supply.next(), gates, generator, plan.device, target, plan.shift)
        optimizer_step(optimizer, made.total, rate)
        update_ema(average, network, decay=min(0.999, (step + 1) / (step + 20)))
        if step % 50 == 0:
            figures = {"own": made.own.item(), "taught": made.taught.item(), "flops": made.flops.item(), "target": target}
            report(name, step, rows=(step + 1) * plan.batch_size, rate=rate, **figures)
    return average


def step_losses(
    network: DynamicLayoutTransformer,
    teacher: LayoutTransformer,
    batch: Batch,
    gates: Gates,
    generator: torch.Generator,
    device: str,
    target: float,
    shift: float = 1.0,
) -> Step:
    """The losses of one batch with what these gates open at its noise levels; `flops` are those of runs with this shift."""
    its = noisy(batch, generator, device)
    predicted = network(gates(its.timesteps), boxes=its.boxes, timestep=its.timesteps, **its.given)
    left = (torch.arange(LEVELS, device=device) + torch.rand(LEVELS, generator=generator, device=device)) / LEVELS
    flops = network.flops(gates(run_timesteps(left, shift)))
    return Step(its.losses(predicted).total, taught_by(teacher, its, predicted), flops, (flops - target).square())


def save_dynamic(network: DynamicLayoutTransformer, source: Path, destination: Path) -> None:
    """A copy of the checkpoint `source` whose index says that it has a transformer with dynamic width, too."""
    index = json.loads((source / "model_index.json").read_text(encoding="utf-8"))
    index[DYNAMIC] = ["nereid_zoo.layout.dynamic", "DynamicLayoutTransformer"]
    for part in ("transformer", "scheduler") if source.resolve() != destination.resolve() else ():
        shutil.copytree(source / part, destination / part, dirs_exist_ok=True)
    network.save_pretrained(destination / DYNAMIC, safe_serialization=True)
    (destination / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    forget_places(destination)

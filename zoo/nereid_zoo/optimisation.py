"""What every stage of training shares: optimizer, schedule by the clock, one step, moving average, a line of figures."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def optimizer_of(parameters: Iterator[nn.Parameter] | list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW; `optimizer_step` sets its rate."""
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-2, betas=(0.9, 0.99), fused=True)


def optimizer_step(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    """One step down the gradient, whose norm is cut to 1."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


def cosine_rate(peak: float, done: float, *, rise: float, floor: float = 0.02) -> float:
    """The learning rate where this share of a training is `done`: a cosine from the peak to `floor` of it.

    `rise` is how much of that the warm-up allows; all from 1 on.
    """
    return peak * min(1.0, rise) * (floor + (1 - floor) / 2 * (1 + math.cos(math.pi * done)))


def schedule(stage: str, minutes: float, *, peak: float, start: float = 0.01, floor: float = 0.02) -> Iterator[tuple[int, float]]:
    """Steps and learning rates until the time is up: 2% warm-up from `start` of the peak, then a cosine to `floor` of it."""
    begun = time.monotonic()
    for step in itertools.count():
        done = (time.monotonic() - begun) / (60 * minutes)
        if done >= 1:
            report(stage, step, minutes=minutes)
            return
        yield step, cosine_rate(peak, done, rise=done / 0.02 + start, floor=floor)


def in_bf16(device: str) -> torch.autocast:
    """Matrix products in bfloat16, as a context: everywhere but on a processor that has no instructions for them."""
    return torch.autocast(device, torch.bfloat16, enabled=device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported())


def report(stage: str, step: int, **figures: float) -> None:
    """Print the time, where the training stands, and its figures."""
    print(time.strftime("%H:%M:%S"), stage, step, *(f"{name}={value:.4g}" for name, value in figures.items()), flush=True)


@torch.no_grad()
def update_ema(average: nn.Module, weights: nn.Module, *, decay: float) -> None:
    """Move the average towards the weights; what it keeps of itself is `decay`."""
    torch._foreach_lerp_(list(average.parameters()), list(weights.parameters()), 1 - decay)

"""Draws layouts with a transformer: steps of a rectified flow from noise to boxes, over any predict callable."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.solvers import ScheduleError, SchedulerName, default_scheduler, noise_levels
from nereid.flow.errors import first_line
from nereid.flow.noise import Purpose, normal
from nereid.layout.elements import Box, Section
from nereid.layout.known_widths import KnownWidths
from nereid.layout.settings import TRAIN_TIMESTEPS, layout_schedule
from nereid.layout.tokens import Floats, Tokens, boxes_of, bucket_of, tokens_of
from nereid_zoo.layout.weights import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 8
"""Of the flow, where nothing is said."""
DYNAMIC = "dynamic_transformer"
"""The folder, in a checkpoint, of the transformer with dynamic width."""

Array = TypeVar("Array", Floats, "Tensor")
Predict = Callable[[Mapping[str, NDArray]], Floats]
"""The velocity (B x N x 4) for an engine's inputs: `Tokens`' arrays, `boxes` and `timestep`."""


@dataclass(frozen=True, slots=True)
class Flow:
    """How a flow is stepped along: `shift` as `noise_levels` has it, and whether each step starts from fresh noise.

    `stochastic` is diffusers' stochastic_sampling: the boxes that a step predicts, and new noise up to the next level. What one
    step has got wrong, later ones can mend then.
    """

    shift: float = 1.0
    stochastic: bool = False

    def moved(self, boxes: Array, velocity: Array, level: float, following: float, fresh: Callable[[], Array]) -> Array:
        """Boxes one step on, from a noise level to the `following` one; `fresh` gives noise of their shape, where it is taken."""
        if not self.stochastic:
            return boxes + (following - level) * velocity
        # Also of the last step, which multiplies it by 0: where `fresh` draws from a stream, what comes after it must stay.
        return (1 - following) * (boxes - level * velocity) + following * fresh()


def flow_of(folder: Path) -> Flow:
    """The checkpoint's own, from its scheduler's file, as the server reads it; raises ScheduleError where that refuses it."""
    file = folder / "scheduler" / "scheduler_config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScheduleError(f"{file} cannot be read: {error}") from None
    if not isinstance(settings, dict):
        raise ScheduleError(f"{file} holds no JSON object")
    return Flow(layout_schedule(settings).shift, default_scheduler(settings) is SchedulerName.LCM)


def canvas_widths_of(folder: Path) -> KnownWidths | None:
    """Those that the checkpoint was trained on, where it tells; raises WeightsError where it tells what no widths are."""
    file = folder / "model_index.json"
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read: {first_line(error)}") from None
    if not isinstance(index, dict):
        raise WeightsError(f"{file} holds no JSON object")
    try:
        return KnownWidths.parse(index["canvas_widths"]) if "canvas_widths" in index else None
    except ValueError as error:
        raise WeightsError(f"{file}: {error}") from None


def noise_of(seeds: Sequence[int], count: int, purpose: Purpose = Purpose.INITIAL_LATENTS, step: int = 0) -> Floats:
    """B x count x 4: a function of each row's seed alone, whatever it is padded to."""
    return np.stack([normal(seed, purpose, (count, 4), step=step) for seed in seeds])


def draw_tokens(predict: Predict, tokens: Tokens, seeds: Sequence[int], *, steps: int = STEPS, flow: Flow = Flow()) -> Floats:
    """Boxes in units, B x N x 4. Known fields are kept clean in every step; drafts only guide."""
    levels = noise_levels(steps, flow.shift)
    given, count = tokens.field_mask >= 1, tokens.valid.shape[1]
    boxes = np.where(given, tokens.known, noise_of(seeds, count))
    inputs = tokens.as_inputs()
    for step, (level, following) in enumerate(itertools.pairwise(levels.tolist())):
        timestep = np.full(len(boxes), level * TRAIN_TIMESTEPS, np.float32)
        velocity = predict({**inputs, "boxes": boxes, "timestep": timestep})
        fresh = partial(noise_of, seeds, count, Purpose.SOLVER_STEP, step)
        boxes = np.where(given, tokens.known, flow.moved(boxes, velocity, level, following, fresh))
    return boxes


def draw(
    predict: Predict,
    sections: Sequence[Section],
    seeds: Sequence[int],
    *,
    drafts: Sequence[Sequence[Box] | None] | None = None,
    steps: int = STEPS,
    flow: Flow = Flow(),
    rows: int = 64,
) -> list[list[Box]]:
    """Boxes in whole CSS pixels for each section and its seed; sections of one bucket are drawn together, `rows` at once.

    `drafts` has the boxes to refine of each section, or None.
    """
    made: list[list[Box]] = [[]] * len(sections)
    ordered = sorted(range(len(sections)), key=lambda place: len(sections[place]))
    by_bucket: dict[int, list[int]] = {}
    for place in ordered:
        by_bucket.setdefault(bucket_of(len(sections[place])), []).append(place)
    for bucket, places in by_bucket.items():
        for start in range(0, len(places), rows):
            chosen = places[start : start + rows]
            own = None if drafts is None else [drafts[place] for place in chosen]
            tokens = tokens_of([sections[place] for place in chosen], bucket, own)
            units = draw_tokens(predict, tokens, [seeds[place] for place in chosen], steps=steps, flow=flow)
            for place, row in zip(chosen, units, strict=True):
                made[place] = boxes_of(sections[place], row)
    return made


def torch_predict(folder: Path, *, widths: bool = False, tokens: bool = False) -> Predict:
    """The transformer of a diffusers folder, in float32 by PyTorch; with dynamic `widths` or `tokens` the one beside it."""
    import torch

    from nereid_zoo.layout.dynamic import load_dynamic
    from nereid_zoo.layout.folders import load

    transformer: Callable[..., torch.Tensor] = load(folder)
    if widths or tokens:
        transformer = partial(load_dynamic(folder).settled, widths=widths, tokens=tokens)

    def predict(inputs: Mapping[str, NDArray]) -> Floats:
        given = {name: torch.from_numpy(value) for name, value in inputs.items()}
        with torch.inference_mode():
            made: Floats = transformer(**given).numpy()
        return made

    return predict

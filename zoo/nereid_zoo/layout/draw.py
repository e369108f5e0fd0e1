"""Draws layouts with a transformer: Euler steps of a rectified flow from noise to boxes, over any predict callable."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nereid.flow.noise import Purpose, normal
from nereid.layout.elements import MAX_ELEMENTS, Box, Section
from nereid.layout.tokens import Floats, Tokens, boxes_of, bucket_of, tokens_of

STEPS = 8
"""Of the flow, where nothing is said."""
TRAIN_TIMESTEPS = 1000
DYNAMIC = "dynamic_transformer"
"""The folder, in a checkpoint, of the transformer with dynamic width."""

Predict = Callable[[Mapping[str, NDArray]], Floats]
"""The velocity (B x N x 4) for an engine's inputs: `Tokens`' arrays, `boxes` and `timestep`."""


def noise_levels(steps: int, shift: float) -> NDArray[np.float64]:
    """steps + 1 levels from 1 to 0: equal steps of u, level = shift x u / (1 + (shift - 1) x u) (Esser et al., 2024, eq. 23).

    Below 1, a shift has more of them near the data.
    """
    u = np.linspace(1.0, 0.0, steps + 1)
    return shift * u / (1 + (shift - 1) * u)


def shift_of(folder: Path) -> float:
    """The checkpoint's own, from its scheduler's settings."""
    return float(json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))["shift"])


def starting_noise(seeds: Sequence[int], count: int) -> Floats:
    """B x count x 4: a function of each row's seed alone, whatever it is padded to."""
    return np.stack([normal(seed, Purpose.INITIAL_LATENTS, (MAX_ELEMENTS, 4))[:count] for seed in seeds])


def draw_tokens(predict: Predict, tokens: Tokens, seeds: Sequence[int], *, steps: int = STEPS, shift: float = 1.0) -> Floats:
    """Boxes in units, B x N x 4. Known fields are kept clean in every step; drafts only guide."""
    levels = noise_levels(steps, shift)
    given = tokens.field_mask >= 1
    boxes = np.where(given, tokens.known, starting_noise(seeds, tokens.valid.shape[1]))
    inputs = tokens.as_inputs()
    for level, following in itertools.pairwise(levels):
        timestep = np.full(len(boxes), level * TRAIN_TIMESTEPS, np.float32)
        velocity = predict({**inputs, "boxes": boxes, "timestep": timestep})
        boxes = np.where(given, tokens.known, boxes + np.float32(following - level) * velocity)
    return boxes


def draw(
    predict: Predict,
    sections: Sequence[Section],
    seeds: Sequence[int],
    *,
    drafts: Sequence[Sequence[Box] | None] | None = None,
    steps: int = STEPS,
    shift: float = 1.0,
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
            units = draw_tokens(predict, tokens, [seeds[place] for place in chosen], steps=steps, shift=shift)
            for place, row in zip(chosen, units, strict=True):
                made[place] = boxes_of(sections[place], row)
    return made


def torch_predict(folder: Path, *, widths: bool = False, tokens: bool = False) -> Predict:
    """The transformer of a diffusers folder, in float32 by PyTorch; with dynamic `widths` or `tokens` the one beside it."""
    import torch

    from nereid_zoo.layout.dynamic import load_dynamic
    from nereid_zoo.layout.model import load

    transformer: Callable[..., torch.Tensor] = load(folder)
    if widths or tokens:
        transformer = partial(load_dynamic(folder).settled, widths=widths, tokens=tokens)

    def predict(inputs: Mapping[str, NDArray]) -> Floats:
        given = {name: torch.from_numpy(value) for name, value in inputs.items()}
        with torch.inference_mode():
            made: Floats = transformer(**given).numpy()
        return made

    return predict

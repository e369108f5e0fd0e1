"""Batches of training rows: sections with valid layouts, and what of each layout is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random

import numpy as np

from nereid.layout.elements import Box, Section
from nereid.layout.tokens import DRAFT, SCALE, Floats, Tokens, to_units, tokens_of
from nereid_zoo.layout.briefs import sample_layout_brief
from nereid_zoo.layout.layouts import sample_layout

AHEAD = 8
"""Batches that are made at once and sorted by length: little of a batch is padding then."""
USES = 3
"""Times that a layout is trained on before others are made, each with other noise and another task: making one takes a third as
long as a step with it."""
DRAFTED = (4.0, 32.0)
"""CSS pixels by which a draft to refine is off (standard deviation)."""


class Task(StrEnum):
    """What of a layout is given."""

    ALL = "all"
    PLACE = "place"
    SIZE = "size"
    COMPLETE = "complete"
    REFINE = "refine"


SHARES = {Task.ALL: 0.6, Task.PLACE: 0.1, Task.SIZE: 0.1, Task.COMPLETE: 0.1, Task.REFINE: 0.1}
"""Of the training rows. ALL draws everything; PLACE is given sizes, SIZE places, COMPLETE whole boxes of some elements."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Clean boxes in units, float32 B x N x 4, and what is given of them."""

    clean: Floats
    tokens: Tokens


def sample_row(rng: Random, *, held_out: bool = False, width: int | None = None) -> tuple[Section, list[Box]]:
    """A section and a layout of it that passes every check."""
    while True:
        section = sample_layout_brief(rng, held_out=held_out, width=width).section
        boxes = sample_layout(section, rng)
        if boxes is not None:
            return section, boxes


class Batches:
    """An endless supply of training batches, each of rows of like length."""

    def __init__(self, rows: int, seed: int) -> None:
        self._rows, self._rng, self._numpy = rows, Random(seed), np.random.default_rng(seed)
        self._parts: list[list[tuple[Section, list[Box]]]] = []
        self._uses = 0
        self._ready: list[Batch] = []

    def next(self) -> Batch:
        if not self._ready:
            if not self._uses:
                drawn = sorted((sample_row(self._rng) for _ in range(AHEAD * self._rows)), key=lambda row: len(row[0]))
                self._parts = [drawn[start : start + self._rows] for start in range(0, len(drawn), self._rows)]
                self._uses = USES
            self._uses -= 1
            self._rng.shuffle(self._parts)
            self._ready = [batch_of(part, self._numpy) for part in self._parts]
        return self._ready.pop()


def batch_of(rows: list[tuple[Section, list[Box]]], rng: np.random.Generator) -> Batch:
    """The rows' arrays, with a random task each."""
    size = max(len(section) for section, _ in rows)
    tokens = tokens_of([section for section, _ in rows], size)
    pixels = np.zeros((len(rows), size, 4))
    for row, (section, boxes) in enumerate(rows):
        pixels[row, : len(section)] = boxes
    clean = to_units(pixels, tokens.canvas) * tokens.valid[..., None]
    tasks = rng.choice(list(SHARES), len(rows), p=list(SHARES.values()))
    known, mask = np.zeros_like(clean), np.zeros_like(clean)
    for row, task in enumerate(tasks):
        known[row], mask[row] = _given(Task(task), clean[row], rng)
    mask *= tokens.valid[..., None]
    return Batch(clean, replace(tokens, known=np.where(mask > 0, known, np.float32(0)), field_mask=mask))


def _given(task: Task, clean: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """What is known of one row's fields, and the mask of that."""
    mask = np.zeros_like(clean)
    match task:
        case Task.PLACE:
            mask[:, 2:] = 1
        case Task.SIZE:
            mask[:, :2] = 1
        case Task.COMPLETE:
            mask[rng.random(len(clean)) < rng.uniform(0.1, 0.9)] = 1
        case Task.REFINE:
            off = rng.standard_normal(clean.shape, np.float32) * np.float32(rng.uniform(*DRAFTED) / SCALE)
            return clean + off, np.full_like(clean, DRAFT)
    return clean, mask

"""The vectorised update: moves rows of different runs, each by its own table row, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.solvers.table import SolverTable
from nereid.diffusion.solvers.terms import HISTORY, Term
from nereid.diffusion.stacked import stacked

Latents = NDArray[np.float32]

LATEST_CLEAN = 1
"""Where a solver's memory has what the image was predicted to be in the step before."""


@dataclass(slots=True, eq=False)
class SolverState:
    """Where one run stands: what it will feed its network next, and what its solver remembers.

    `sample` is float32 C x H x W, or of another rank where it is no image's; `memory` is float32 4 x that: BASE, then earlier
    clean predictions, latest first.
    """

    sample: Latents
    memory: Latents

    @classmethod
    def start(cls, sample: Latents) -> SolverState:
        return cls(sample, np.zeros((1 + len(HISTORY), *sample.shape), dtype=np.float32))


def predict_clean(tables: Sequence[SolverTable], steps: Sequence[int], samples: Latents, outputs: Latents) -> Latents:
    """What each row's image is now predicted to be: float32 rows x C x H x W, from samples and model outputs of that shape."""
    weights = stacked([table.clean[step] for table, step in zip(tables, steps, strict=True)])
    return _by_row(weights[:, 0], samples) * samples + _by_row(weights[:, 1], outputs) * outputs


def advance(
    tables: Sequence[SolverTable],
    steps: Sequence[int],
    states: Sequence[SolverState],
    clean: Latents,
    noises: Sequence[Latents | None],
) -> None:
    """Move every row one step on, in place: `clean` is float32 rows x C x H x W, `noises` one array (or None) a row."""
    to_sample = stacked([table.next_sample[step] for table, step in zip(tables, steps, strict=True)])
    to_base = stacked([table.next_base[step] for table, step in zip(tables, steps, strict=True)])
    samples = stacked([state.sample for state in states])
    memory = stacked([state.memory for state in states])
    fresh = None
    if any(noise is not None for noise in noises):
        nothing = np.zeros_like(samples[0])
        fresh = stacked([nothing if noise is None else noise for noise in noises])
    values: dict[Term, Latents | None] = {
        Term.SAMPLE: samples,
        Term.BASE: memory[:, 0],
        Term.CLEAN: clean,
        Term.NOISE: fresh,
        **{term: memory[:, 1 + i] for i, term in enumerate(HISTORY)},
    }
    moved, base = _combine(to_sample, values, samples), _combine(to_base, values, samples)
    for row, state in enumerate(states):
        state.sample = moved[row]
        state.memory = np.concatenate([base[row : row + 1], clean[row : row + 1], memory[row, 1:-1]])


def needs_noise(table: SolverTable, step: int) -> bool:
    """Whether this step of the table takes fresh noise."""
    return bool(table.next_sample[step, Term.NOISE] != 0)


def _by_row(numbers: NDArray[np.float32], like: Latents) -> Latents:
    """One number a row, to be multiplied with rows of whatever rank."""
    return numbers.reshape(-1, *(1,) * (like.ndim - 1))


def _combine(weights: NDArray[np.float32], values: dict[Term, Latents | None], like: Latents) -> Latents:
    total = np.zeros_like(like)
    for term, value in values.items():
        column = weights[:, term]
        if value is not None and column.any():
            # A row whose weight is zero must stay exactly as it would be alone.
            weight = _by_row(column, like)
            total += weight * (value if column.all() else np.where(weight != 0, value, np.float32(0)))
    return total

"""From logits to tokens, vectorised over rows, each row with its own parameters and its own counter-based randomness.

Order of the filters, as in vLLM and transformers: bias and penalties, temperature, top-k, top-p (of what top-k left),
min-p (of the most likely token). A row's token depends on its logits, its parameters, its seed and its position alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nereid.llm import kernels

Floats = NDArray[np.float32]

_SUMMED = 256
"""Weights that are summed at once."""
_SEED_BITS = 2**64 - 1
_NUCLEUS = 256
"""How many of the most likely tokens a top-p row looks at first; nearly every nucleus is smaller."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one row's tokens are drawn. `top_k` 0, `top_p` 1 and `min_p` 0 switch those filters off; `temperature` 0 is greedy."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalised(self) -> bool:
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)

    @cached_property
    def adjusts(self) -> bool:
        """Whether logits are changed before anything is drawn."""
        return self.penalised or bool(self.logit_bias)

    @cached_property
    def numbers(self) -> tuple[float, float, float]:
        """What a draw needs as an array: 1 / temperature, top-p, min-p."""
        return 1 / self.temperature, self.top_p, self.min_p


@dataclass(slots=True)
class TokenCounts:
    """How often each token occurred, kept sparsely: in the prompt, and in what was written since."""

    prompt: NDArray[np.int64]
    written: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, prompt: Sequence[int]) -> TokenCounts:
        return cls(np.unique(np.asarray(prompt, np.int64)))

    def add(self, token: int) -> None:
        self.written[token] = self.written.get(token, 0) + 1


class Row(NamedTuple):
    """One distribution to draw from: `position` counts the tokens drawn before with the same seed.

    `banned` tokens are never drawn; `allowed` (bool, vocabulary), where given, is all that may be.
    """

    sampling: Sampling
    position: int
    counts: TokenCounts | None = None
    banned: Sequence[int] = ()
    allowed: NDArray[np.bool_] | None = None


NOTHING_ALLOWED, NOT_FINITE = -1, -2
"""What `sample` gives for a row that cannot be drawn from: every token is banned, or a logit is NaN or plus infinity."""


def sample(logits: Floats, rows: Sequence[Row]) -> NDArray[np.int64]:
    """One token a row from `logits` (float32, rows x vocabulary), which are changed where a row's settings ask for it.

    A row that cannot be drawn from gets NOTHING_ALLOWED or NOT_FINITE, whatever its logits; the others are drawn as ever.
    """
    vocabulary = logits.shape[1]
    greedy, limited, whole = [], [], []
    for i, row in enumerate(rows):
        sampling = row.sampling
        if sampling.adjusts or row.banned or row.allowed is not None:
            adjust(logits[i], row)
        if sampling.temperature == 0:
            greedy.append(i)
        elif 0 < sampling.top_k < vocabulary:
            limited.append(i)
        else:
            whole.append(i)
    tokens = np.empty(len(rows), np.int64)
    peaks = logits.max(axis=1)  # NaN where there is one
    if greedy:
        tokens[greedy] = (logits if len(greedy) == len(rows) else logits[greedy]).argmax(axis=1)
    if limited:
        tokens[limited] = _sample_top_k(logits if len(limited) == len(rows) else logits[limited], [rows[i] for i in limited])
    for i in whole:
        tokens[i] = _sample_whole(logits[i], rows[i]) if np.isfinite(peaks[i]) else NOT_FINITE
    tokens[~np.isfinite(peaks)] = NOT_FINITE
    tokens[peaks == -np.inf] = NOTHING_ALLOWED
    return tokens


def adjust(values: Floats, row: Row) -> None:
    """Apply bias, penalties and bans to one row's logits in place; only the tokens concerned are touched.

    Tokens beyond the logits are passed over: a draft model's may be narrower than those that the row was made for.
    """
    sampling, width = row.sampling, len(values)
    for token, bias in sampling.logit_bias.items():
        if token < width:
            values[token] += np.float32(bias)
    if sampling.penalised and row.counts is not None:
        written = np.fromiter(row.counts.written, np.int64, len(row.counts.written))
        if sampling.repetition_penalty != 1:
            seen = np.union1d(row.counts.prompt, written)
            seen = seen[seen < width]
            penalty = np.float32(sampling.repetition_penalty)
            values[seen] = np.where(values[seen] > 0, values[seen] / penalty, values[seen] * penalty)
        times = np.fromiter(row.counts.written.values(), np.float32, len(written))
        known = written < width
        less = np.float32(sampling.frequency_penalty) * times + np.float32(sampling.presence_penalty)
        values[written[known]] -= less[known]
    if row.allowed is not None:
        values[~row.allowed[:width]] = -np.inf
    for token in row.banned:
        if token < width:
            values[token] = -np.inf


def largest(values: Floats, count: int) -> tuple[NDArray[np.int64], Floats]:
    """Tokens and logits of one row's `count` largest, largest first; ties go to the smaller token, minus infinity to none."""
    tokens, chosen = np.empty(count, np.int64), np.empty(count, np.float32)
    found = kernels.likeliest(values, count, tokens, chosen)
    return tokens[:found], chosen[:found]


def _sample_top_k(logits: Floats, rows: Sequence[Row]) -> NDArray[np.int64]:
    tokens = np.empty(len(rows), np.int64)
    top_k = np.array([row.sampling.top_k for row in rows])
    numbers = np.array([row.sampling.numbers for row in rows])
    draws = np.array([(row.sampling.seed & _SEED_BITS, row.position) for row in rows], np.uint64)
    kernels.draw_limited(np.ascontiguousarray(logits), top_k, numbers, draws, tokens)
    return tokens


def _sample_whole(values: Floats, row: Row) -> int:
    """A row without top-k, its largest logit finite: a nucleus is looked for among the likeliest tokens first, then among all."""
    sampling = row.sampling
    uniform = kernels.uniform(np.uint64(sampling.seed & _SEED_BITS), np.uint64(row.position))
    weights = np.exp((values - values.max()) * np.float32(1 / sampling.temperature))
    if sampling.top_p == 1 and sampling.min_p == 0:
        return _draw_weighted(weights, uniform)
    total = weights.sum(dtype=np.float64)
    tokens, likely = largest(values, min(_NUCLEUS, len(values)))
    if weights[tokens].sum(dtype=np.float64) < sampling.top_p * total and weights[tokens[-1]] >= sampling.min_p:
        # Tokens below the mean share of what top-p leaves out cannot belong to the nucleus; the others are sorted.
        least = max((1 - sampling.top_p) * total / len(values), sampling.min_p)
        tokens = np.flatnonzero(weights >= least)
        tokens = tokens[np.argsort(-values[tokens], kind="stable")]
        likely = values[tokens]
    return int(kernels.draw(tokens, likely, len(tokens), np.array(sampling.numbers), total, uniform))


def _draw_weighted(weights: Floats, uniform: float) -> int:
    """The token at which the running sum passes `uniform` of the whole: its block first, then its index there."""
    starts = np.arange(0, len(weights), _SUMMED)
    ends = np.add.reduceat(weights, starts).cumsum(dtype=np.float64)
    target = uniform * ends[-1]
    block = min(int(ends.searchsorted(target, side="right")), len(starts) - 1)
    within = weights[starts[block] : starts[block] + _SUMMED].cumsum(dtype=np.float64)
    rest = min(target - (ends[block - 1] if block else 0.0), np.nextafter(within[-1], 0))  # rounding must not step out
    return int(starts[block] + within.searchsorted(rest, side="right"))


def log_total(values: Floats) -> float:
    """The logarithm of the sum of all tokens' weights: a token's log probability is its logit less this."""
    peak = values.max()
    return float(peak) + float(np.log(np.exp(values - peak).sum(dtype=np.float64)))


def log_softmax(values: Floats) -> Floats:
    """Natural-log probabilities of one row's raw logits."""
    return (values.astype(np.float64) - log_total(values)).astype(np.float32)

"""From logits to tokens, vectorised over rows, each row with its own parameters and its own counter-based randomness.

Order of the filters, as in vLLM and transformers: bias and penalties, temperature, top-k, top-p (of what top-k left),
min-p (of the most likely token). A row's token depends on its logits, its parameters, its seed and its position alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_SPLIT = 8
_LAST = np.int64(2**63 - 1)
"""Sorts behind every token."""
_NUCLEUS = 256
"""How many of the most likely tokens a top-p row looks at first; nearly every nucleus is smaller."""


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True)
class Row:
    """One distribution to draw from: `position` counts the tokens drawn before with the same seed.

    `banned` tokens are never drawn; `allowed` (bool, vocabulary), where given, is all that may be.
    """

    sampling: Sampling
    position: int
    counts: TokenCounts | None = None
    banned: Sequence[int] = ()
    allowed: NDArray[np.bool_] | None = None


def sample(logits: Floats, rows: Sequence[Row]) -> NDArray[np.int64]:
    """One token a row from `logits` (float32, rows x vocabulary), which are changed where a row's settings ask for it."""
    for values, row in zip(logits, rows, strict=True):
        adjust(values, row)
    tokens = np.empty(len(rows), np.int64)
    greedy = [i for i, row in enumerate(rows) if row.sampling.greedy]
    if greedy:
        tokens[greedy] = (logits if len(greedy) == len(rows) else logits[greedy]).argmax(axis=1)
    limited = [i for i, row in enumerate(rows) if not row.sampling.greedy and 0 < row.sampling.top_k < logits.shape[1]]
    if limited:
        chosen = logits if len(limited) == len(rows) else logits[limited]
        tokens[limited] = _sample_top_k(chosen, [rows[i] for i in limited])
    taken = {*greedy, *limited}
    for i, row in enumerate(rows):
        if i not in taken:
            tokens[i] = _sample_whole(logits[i], row)
    return tokens


def adjust(values: Floats, row: Row) -> None:
    """Apply bias, penalties and bans to one row's logits in place; only the tokens concerned are touched."""
    sampling = row.sampling
    for token, bias in sampling.logit_bias.items():
        values[token] += np.float32(bias)
    if sampling.penalised and row.counts is not None:
        written = np.fromiter(row.counts.written, np.int64, len(row.counts.written))
        if sampling.repetition_penalty != 1:
            seen = np.union1d(row.counts.prompt, written)
            penalty = np.float32(sampling.repetition_penalty)
            values[seen] = np.where(values[seen] > 0, values[seen] / penalty, values[seen] * penalty)
        times = np.fromiter(row.counts.written.values(), np.float32, len(written))
        values[written] -= np.float32(sampling.frequency_penalty) * times + np.float32(sampling.presence_penalty)
    if row.allowed is not None:
        values[~row.allowed] = -np.inf
    for token in row.banned:
        values[token] = -np.inf


def uniform(seeds: NDArray[np.uint64], positions: NDArray[np.uint64]) -> NDArray[np.float64]:
    """One number in [0, 1) for each seed and position: SplitMix64 (Steele et al., 2014), seeded by its own first output."""
    with np.errstate(over="ignore"):
        state = _mix(seeds + np.uint64(0x9E3779B97F4A7C15)) + positions * np.uint64(0x9E3779B97F4A7C15)
        return (_mix(state + np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _uniform_of(rows: Sequence[Row]) -> NDArray[np.float64]:
    seeds = np.array([row.sampling.seed & (2**64 - 1) for row in rows], np.uint64)
    return uniform(seeds, np.array([row.position for row in rows], np.uint64))


def largest(logits: Floats, count: int) -> tuple[NDArray[np.int64], Floats]:
    """Tokens and logits of (at least) the `count` largest of every row, largest first; ties go to the smaller token.

    Rows are padded with minus infinity. The maxima of interleaved eighths, and of eighths of these, bound the `count`-th
    largest logit from below in one pass over memory; only what reaches the bound is looked at again.
    """
    rows, vocabulary = logits.shape
    parts = vocabulary // _SPLIT**2
    if count >= parts:
        order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
        return order, np.take_along_axis(logits, order, axis=1)
    width = parts * _SPLIT
    whole = logits[:, : width * _SPLIT].reshape(rows, _SPLIT, width)
    peaks = whole.max(axis=1)
    summits = peaks.reshape(rows, _SPLIT, parts).max(axis=1)
    least = np.partition(summits, parts - count, axis=1)[:, parts - count]
    where, part = np.divmod(np.flatnonzero(peaks >= least[:, None]), width)
    found = whole[where, :, part]
    tokens = part[:, None] + np.arange(0, width * _SPLIT, width)
    keys = np.where(found >= least[where, None], _sort_keys(found, tokens), _LAST)
    if rest := vocabulary - width * _SPLIT:
        tail = logits[:, -rest:]
        reach, offset = np.divmod(np.flatnonzero(tail >= least[:, None]), rest)
        extra = np.full((len(reach), _SPLIT), _LAST)
        extra[:, 0] = _sort_keys(tail[reach, offset], offset + width * _SPLIT)
        order = np.argsort(np.concatenate([where, reach]), kind="stable")
        where, keys = np.concatenate([where, reach])[order], np.concatenate([keys, extra])[order]
    sizes = np.bincount(where, minlength=rows)
    columns = np.arange(len(where)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    padded = np.full((rows, int(sizes.max()), _SPLIT), _LAST)
    padded[where, columns] = keys
    ranked = np.sort(padded.reshape(rows, -1), axis=1)
    ranked = ranked[:, : max(count, int((ranked != _LAST).sum(axis=1).max()))]
    chosen = ranked & 0xFFFFFFFF
    values = np.take_along_axis(logits, np.minimum(chosen, vocabulary - 1), axis=1)
    real = ranked != _LAST
    return np.where(real, chosen, 0), np.where(real, values, np.float32(-np.inf))


def _sort_keys(values: Floats, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Whole numbers that sort as (falling logit, rising token): the float's bits, made monotone, over the token's."""
    bits = values.view(np.int32) if values.flags.c_contiguous else np.ascontiguousarray(values).view(np.int32)
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (~rising).astype(np.int64) << 32 | tokens


def _sample_top_k(logits: Floats, rows: Sequence[Row]) -> NDArray[np.int64]:
    tops = np.array([row.sampling.top_k for row in rows])
    tokens, values = largest(logits, int(tops.max()))
    values = np.where(np.arange(values.shape[1]) < tops[:, None], values, np.float32(-np.inf))
    return _draw(tokens, values, rows, None)


def _sample_whole(values: Floats, row: Row) -> int:
    """A row without top-k: a nucleus is looked for among the likeliest tokens first, then among all."""
    sampling = row.sampling
    scaled = values.astype(np.float64) / sampling.temperature
    peak = scaled.max()
    weights = np.exp(scaled - peak)
    total = weights.sum()
    if sampling.top_p < 1:
        tokens, likely = largest(values[None], _NUCLEUS)
        mass = np.exp(likely[0].astype(np.float64) / sampling.temperature - peak).sum()
        if mass >= sampling.top_p * total:
            return int(_draw(tokens, likely, [row], np.array([total]))[0])
    elif sampling.min_p == 0:
        steps = np.cumsum(weights)
        return int(np.searchsorted(steps, _uniform_of([row])[0] * steps[-1], side="right"))
    order = np.argsort(-values, kind="stable")
    return int(_draw(order[None], values[order][None], [row], np.array([total]))[0])


def _draw(
    tokens: NDArray[np.int64], values: Floats, rows: Sequence[Row], totals: NDArray[np.float64] | None
) -> NDArray[np.int64]:
    """Draw from candidates sorted by falling logit; `totals` are the rows' whole weights where these are not all tokens."""
    temperature = np.array([row.sampling.temperature for row in rows])[:, None]
    top_p = np.array([row.sampling.top_p for row in rows])[:, None]
    min_p = np.array([row.sampling.min_p for row in rows])[:, None]
    scaled = values.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled[:, :1])
    before = np.cumsum(weights, axis=1) - weights
    whole = weights.sum(axis=1, keepdims=True) if totals is None else totals[:, None]
    kept = (before < top_p * whole) & (weights >= min_p)
    kept[:, 0] = True  # the likeliest token always stays
    steps = np.cumsum(np.where(kept, weights, 0), axis=1)
    target = _uniform_of(rows)[:, None] * steps[:, -1:]
    at = (steps <= target).sum(axis=1)
    return tokens[np.arange(len(rows)), at]


def log_softmax(values: Floats) -> Floats:
    """Natural-log probabilities of one row's raw logits."""
    wide = values.astype(np.float64)
    peak = wide.max()
    return (wide - peak - np.log(np.exp(wide - peak).sum())).astype(np.float32)

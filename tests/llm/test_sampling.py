"""Sampling: exact candidates, the right distributions, and nothing of a neighbour in a row's token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nereid.llm.kernels import uniform
from nereid.llm.sampling import Row, Sampling, TokenCounts, adjust, largest, log_softmax, sample

rng = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("vocabulary", "count"), [(32_000, 40), (2048, 1), (2048, 50), (5000, 77), (70, 3), (64, 64), (65, 65), (32_001, 499), (1, 1)]
)
def test_largest_finds_what_sorting_finds(vocabulary: int, count: int) -> None:
    for logits in rng.standard_normal((5, vocabulary)).astype(np.float32):
        logits[rng.integers(vocabulary, size=vocabulary // 3)] = 1.0  # ties
        tokens, values = largest(logits, count)
        order = np.argsort(-logits, kind="stable")[:count]
        assert np.array_equal(tokens, order)
        assert np.array_equal(values, logits[order])


def test_largest_leaves_infinities_out() -> None:
    logits = np.full(4096, -np.inf, np.float32)
    assert len(largest(logits, 5)[0]) == 0
    logits[[7, 4000]] = 1.0
    assert largest(logits, 5)[0].tolist() == [7, 4000]
    assert largest(np.full(4096, 3.0, np.float32), 5)[0].tolist() == [0, 1, 2, 3, 4]


def reference(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The distribution that the parameters describe, plainly: filters one after the other over the whole vocabulary."""
    values = logits.astype(np.float64) / sampling.temperature
    order = np.argsort(-values, kind="stable")
    chances = np.exp(values - values.max())
    if sampling.top_k:
        chances[order[sampling.top_k :]] = 0
    chances /= chances.sum()
    before = np.cumsum(chances[order]) - chances[order]
    lost = order[before >= sampling.top_p]
    peak = chances.max()
    chances[lost] = 0
    chances[chances < sampling.min_p * peak] = 0
    return chances / chances.sum()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 5},
        {"top_p": 0.7},
        {"top_p": 0.9999},
        {"min_p": 0.2},
        {"top_k": 20, "top_p": 0.8, "temperature": 1.3},
        {"top_k": 50, "min_p": 0.05},
        {"top_p": 0.9, "min_p": 0.1, "temperature": 1.7},
    ],
)
def test_tokens_follow_the_distribution(settings: dict[str, float]) -> None:
    """A chi-squared test over 6,000 draws; a right sampler fails it once in a hundred thousand times."""
    logits = (np.random.default_rng(1).standard_normal(300) * 2).astype(np.float32)
    draws = 6_000
    rows = [Row(Sampling(**settings, seed=seed), 3) for seed in range(draws)]  # type: ignore[arg-type]
    tokens = sample(np.repeat(logits[None], draws, axis=0), rows)
    expected = reference(logits, rows[0].sampling) * draws
    seen = np.bincount(tokens, minlength=300)
    assert seen[expected == 0].sum() == 0
    many = expected >= 5
    statistic = ((seen[many] - expected[many]) ** 2 / expected[many]).sum()
    rest, rest_seen = expected[~many].sum(), seen[~many].sum()
    if rest >= 5:
        statistic += (rest_seen - rest) ** 2 / rest
    freedom = many.sum()
    assert statistic < freedom + 4.5 * np.sqrt(2 * freedom) + 12


@pytest.mark.parametrize(("vocabulary", "top_p"), [(2000, 0.9), (2000, 0.3), (400, 0.9)])
def test_a_wide_nucleus_is_drawn_from_whole(vocabulary: int, top_p: float) -> None:
    """Tokens of much the same weight: about the `top_p` likeliest share of them belongs to the nucleus, the others do not."""
    logits = np.linspace(0.02, 0, vocabulary, dtype=np.float32)
    rows = [Row(Sampling(top_p=top_p, seed=seed), 0) for seed in range(4000)]
    tokens = sample(np.repeat(logits[None], len(rows), axis=0), rows)
    last = np.flatnonzero(reference(logits, rows[0].sampling))[-1]
    assert abs(last - top_p * vocabulary) < 20
    assert tokens.min() >= 0
    assert last - 20 < tokens.max() <= last
    assert abs(tokens.mean() - last / 2) < 0.035 * last
    assert len(np.unique(tokens)) > 0.77 * last


@pytest.mark.parametrize("more", [{}, {"top_k": 9}, {"min_p": 0.01}, {"temperature": 50.0}])
def test_a_nucleus_of_nothing_is_the_likeliest_token(more: dict[str, Any]) -> None:
    logits = rng.standard_normal((40, 900)).astype(np.float32)
    rows = [Row(Sampling(top_p=0.0, seed=seed, **more), 0) for seed in range(len(logits))]
    np.testing.assert_array_equal(sample(logits, rows), logits.argmax(axis=1))


def test_a_rows_token_does_not_depend_on_its_neighbours() -> None:
    logits = rng.standard_normal((6, 3000)).astype(np.float32)
    settings = [
        Sampling(temperature=0),
        Sampling(seed=1),
        Sampling(seed=2, top_k=40, top_p=0.9),
        Sampling(seed=3, top_k=7),
        Sampling(seed=4, top_p=0.5),
        Sampling(seed=5, min_p=0.1),
    ]
    rows = [Row(sampling, position) for position, sampling in enumerate(settings)]
    together = sample(logits.copy(), rows)
    alone = [int(sample(logits[i : i + 1].copy(), [row])[0]) for i, row in enumerate(rows)]
    assert together.tolist() == alone


def test_seed_and_position_decide_the_draw() -> None:
    logits = np.zeros((1, 5000), np.float32)
    draws = {(seed, at): int(sample(logits.copy(), [Row(Sampling(seed=seed), at)])[0]) for seed in range(20) for at in range(20)}
    assert len(set(draws.values())) > 370
    again = {(seed, at): int(sample(logits.copy(), [Row(Sampling(seed=seed), at)])[0]) for seed, at in draws}
    assert again == draws


def test_uniform_numbers_are_uniform_and_unrelated() -> None:
    seeds, positions = np.meshgrid(np.arange(300, dtype=np.uint64), np.arange(300, dtype=np.uint64))
    values = np.array([uniform(seed, position) for seed, position in zip(seeds.ravel(), positions.ravel(), strict=True)])
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, 100, (0, 1))[0]
    assert ((counts - 900) ** 2 / 900).sum() < 170
    grid = values.reshape(300, 300)
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.02


def test_penalties_bias_and_bans_change_the_logits_as_documented() -> None:
    logits = np.array([2.0, -2.0, 1.0, 0.5, 3.0], np.float32)
    counts = TokenCounts.of([0, 1])
    for token in (2, 2, 1):
        counts.add(token)
    sampling = Sampling(repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5, logit_bias={3: 1.5})
    adjust(logits, Row(sampling, 0, counts, banned=(4,)))
    assert logits.tolist() == [1.0, -4.0 - 0.75, 0.5 - 1.25, 2.0, -np.inf]


def test_only_allowed_tokens_are_drawn() -> None:
    allowed = np.zeros(1000, np.bool_)
    allowed[[5, 900]] = True
    for sampling in (Sampling(temperature=0), Sampling(), Sampling(top_k=50), Sampling(top_p=0.5), Sampling(min_p=0.3)):
        for position in range(50):
            logits = rng.standard_normal((1, 1000)).astype(np.float32)
            assert sample(logits, [Row(sampling, position, allowed=allowed)])[0] in (5, 900)


def test_log_softmax_is_normalised() -> None:
    values = log_softmax(rng.standard_normal(1000).astype(np.float32) * 30)
    assert np.exp(values.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)

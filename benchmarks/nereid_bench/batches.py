"""A batch in the gaps of interactive load: what it costs those who wait, and what it gets done there and alone."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nereid.llm.settings import LlmFacts
from nereid.serving.errors import ServingError
from nereid_bench.batch_api import BatchApi, Progress
from nereid_bench.llm_batching import SHORT_ANSWERS, TextJob, TextOutcome, drive_texts
from nereid_bench.servers import serving_with_gateway
from nereid_bench.turns import turned
from nereid_bench.vllm_peer import stream_completion

Say = Callable[[str], None]

MODEL = "llm"
AIM = 1.1
"""How much of an interactive p95 without a batch one with a batch may be."""
_WARMING = 4
"""Requests before the first that counts."""
_FIRST_TOKEN = 3
"""Below it the checkpoint's special tokens are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchesPlan:
    """In each of `rounds`, for each of `rates` (interactive requests a second): `seconds` without and as many with a batch.

    Then `seconds` of a batch with nobody else. `requests` must be more than a batch can have answered by then.
    """

    repository: Path
    rates: tuple[float, ...] = (0.5, 1.0, 2.0)
    seconds: float = 60.0
    rounds: int = 3
    requests: int = 5000
    answers: tuple[int, ...] = SHORT_ANSWERS
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """How long the callers of one turn waited, and what a batch beside them had answered by its end."""

    latencies: tuple[float, ...] = ()
    first_tokens: tuple[float, ...] = ()
    done: Progress | None = None


def batches(plan: BatchesPlan, say: Say) -> list[dict[str, Any]]:
    """Rows for each rate, without and with a batch, and the one by the other; last, the batch alone."""
    folder = plan.repository / MODEL / "1"
    if not folder.is_dir():
        raise ServingError(f"--repository: {plan.repository} has no {MODEL}; write one with `nereid export llm PATH`")
    vocabulary = LlmFacts.read(folder).vocabulary
    with (
        tempfile.TemporaryDirectory() as kept,
        serving_with_gateway(plan.repository, "--openai-batches", kept) as server,
    ):
        api = BatchApi(server.url)
        body = partial(_batch_body, random.Random(plan.seed), vocabulary, plan.answers)
        _callers(server.url, interactive_jobs(1.0, _WARMING, vocabulary, plan.answers, (plan.seed, "warming")))
        turns: dict[float, list[tuple[Turn, Turn]]] = {rate: [] for rate in plan.rates}
        alone: list[Turn] = []
        for turn in range(plan.rounds):
            for rate in plan.rates:
                made: dict[bool, Turn] = {}
                for beside in turned([False, True], turn):
                    say(f"round {turn + 1} of {plan.rounds}: {rate:g} a second, {'with' if beside else 'without'} a batch")
                    jobs = interactive_jobs(rate, plan.seconds, vocabulary, plan.answers, (plan.seed, turn, rate, beside))
                    made[beside] = _turn(plan, server.url, api, body, jobs) if beside else _callers(server.url, jobs)
                turns[rate].append((made[False], made[True]))
            say(f"round {turn + 1} of {plan.rounds}: a batch alone")
            alone.append(_turn(plan, server.url, api, body, []))
    return table(turns, alone)


def interactive_jobs(
    rate: float, seconds: float, vocabulary: int, answers: Sequence[int], seed: tuple[Any, ...]
) -> list[TextJob]:
    """Those that arrive within `seconds`, at least one, at exponential gaps.

    Arrivals and lengths are drawn from all of `seed` but its last member, so that turns of one round are alike; prompts are
    nobody else's, so that no turn finds another's in the prefix cache.
    """
    shared, own = random.Random(repr(seed[:-1])), random.Random(repr(seed))
    now, jobs = 0.0, list[TextJob]()
    while (now := now + shared.expovariate(rate)) < seconds or not jobs:
        length, tokens = shared.randint(10, 200), shared.choice(answers)
        prompt = tuple(own.randrange(_FIRST_TOKEN, vocabulary) for _ in range(length))
        jobs.append(TextJob(arrival=now, prompt=prompt, tokens=tokens))
    return jobs


def _batch_body(draw: random.Random, vocabulary: int, answers: Sequence[int]) -> dict[str, Any]:
    """A request of a batch: like an interactive one."""
    prompt = [draw.randrange(_FIRST_TOKEN, vocabulary) for _ in range(draw.randint(10, 200))]
    return {"model": MODEL, "prompt": prompt, "max_tokens": draw.choice(answers), "ignore_eos": True, "temperature": 0}


def _turn(plan: BatchesPlan, url: str, api: BatchApi, body: Callable[[], dict[str, Any]], jobs: Sequence[TextJob]) -> Turn:
    """A batch, and callers beside it where there are any."""
    batch = api.begin([body() for _ in range(plan.requests)])
    start = time.monotonic()
    callers = _callers(url, jobs) if jobs else Turn()
    time.sleep(max(0.0, plan.seconds - (time.monotonic() - start)))
    done = api.end(batch, time.monotonic() - start)
    if done.requests >= plan.requests:
        raise ServingError(f"--requests: the {plan.requests} of a batch were answered before its turn was over; it must be more")
    return Turn(latencies=callers.latencies, first_tokens=callers.first_tokens, done=done)


def _callers(url: str, jobs: Sequence[TextJob]) -> Turn:
    outcomes, _ = drive_texts(jobs, partial(_ask, url))
    return turn_of(outcomes)


def turn_of(outcomes: Sequence[TextOutcome]) -> Turn:
    """Seconds from arrivals to last and to first tokens."""
    return Turn(
        latencies=tuple(outcome.times[-1] for outcome in outcomes), first_tokens=tuple(outcome.times[0] for outcome in outcomes)
    )


def _ask(url: str, job: TextJob, told: Callable[[], None]) -> int:
    return stream_completion(url, job.prompt, told, max_tokens=job.tokens, ignore_eos=True, temperature=0)


def table(turns: dict[float, list[tuple[Turn, Turn]]], alone: Sequence[Turn]) -> list[dict[str, Any]]:
    """Medians of the rounds; `ratio` is the median of each round's own, of turns with the same arrivals and lengths.

    A batch's ratios are those to the batch alone.
    """
    by_itself = _median_row([_batch_numbers(turn) for turn in alone])
    rows = []
    for rate, pairs in turns.items():
        without = [_latency_numbers(turn) for turn, _ in pairs]
        beside = [{**_latency_numbers(turn), **_batch_numbers(turn)} for _, turn in pairs]
        ratios = [{name: late[name] / soon[name] for name in soon} for soon, late in zip(without, beside, strict=True)]
        middle = _median_row(beside)
        of_alone = {name: middle[name] / value if value else float("nan") for name, value in by_itself.items()}
        lead = {"a_second": rate, "rounds": len(pairs)}
        rows.append({"batch": "none", **lead, **_median_row(without), **dict.fromkeys(by_itself)})
        rows.append({"batch": "beside", **lead, **middle})
        rows.append({"batch": "ratio", **lead, **_median_row(ratios), **of_alone})
    blank = dict.fromkeys(name for name in rows[0] if name not in ("batch", *by_itself))
    return [*rows, {"batch": "alone", **blank, "rounds": len(alone), **by_itself}]


def _latency_numbers(turn: Turn) -> dict[str, float]:
    return {
        f"{lead}p{share}": float(np.percentile(values, share))
        for lead, values in (("", turn.latencies), ("first_token_", turn.first_tokens))
        for share in (50, 95, 99)
    }


def _batch_numbers(turn: Turn) -> dict[str, float]:
    assert turn.done is not None
    return {"batch_requests": turn.done.requests / turn.done.seconds, "batch_tokens": turn.done.tokens / turn.done.seconds}


def _median_row(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """By how much a batch moves an interactive p95, in words."""
    ratios = [row for row in rows if row["batch"] == "ratio"]
    moved = ", ".join(f"{100 * (row['p95'] - 1):+.1f}% at {row['a_second']:g} a second" for row in ratios)
    met = "met" if all(row["p95"] < AIM for row in ratios) else "missed"
    return f"an interactive p95 moves by {moved}; the aim, less than {100 * (AIM - 1):.0f}%, is {met}"

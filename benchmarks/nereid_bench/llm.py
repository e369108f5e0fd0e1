"""The language model measured: engines side by side, the served path against the bare engine, and what each feature brings."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from nereid.llm.sampling import Row, Sampling, sample
from nereid_bench.llm_adapters import adapter_speeds
from nereid_bench.llm_batching import in_flight_against_static
from nereid_bench.llm_peers import Engine, Weights, bare_speed, installed, loaded
from nereid_bench.llm_speculation import draft_speculation, speculation
from nereid_bench.llm_weights import prepare, random_llama
from nereid_bench.servers import serving, serving_with
from nereid_bench.vllm_peer import require_vllm
from nereid_client import Client
from nereid_zoo.sections.chat import conversation
from nereid_zoo.sections.score import held_out_briefs

Say = Callable[[str], None]

PARTS = ("decode", "sampler", "served", "batching", "prefix", "speculation", "draft", "adapters")


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmPlan:
    """What to measure, and where engines and checkpoints are kept."""

    work: Path
    checkpoint: Path
    threads: int
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    tokens: int = 48
    requests: int = 32
    parts: tuple[str, ...] = PARTS
    optimum_cli: Path | None = None
    """What makes OpenVINO GenAI's models; without it those are measured that are there."""
    vllm: Path | None = None
    """vLLM's command, where it is to be measured as a served peer."""


def measure(plan: LlmPlan, say: Say) -> dict[str, Any]:
    """The parts asked for, as one report."""
    if plan.vllm is not None:
        require_vllm(plan.vllm)
    cli = plan.optimum_cli
    zoo = prepare(plan.checkpoint, plan.work / "sections", say, cli)
    large = prepare(random_llama(plan.work / "llama-200m" / "checkpoint", plan.checkpoint), plan.work / "llama-200m", say, cli)
    report: dict[str, Any] = {"threads": plan.threads}
    repository = zoo.engine.parent.parent
    work: dict[str, Callable[[], Any]] = {
        "decode": lambda: decode_speeds({"200 M random": large, "sections": zoo}, plan, say),
        "sampler": lambda: [{"rows": rows, "microseconds_a_row": sampler_cost(rows)} for rows in (1, 8, 16)],
        "served": lambda: served_against_bare({"200 M random": large, "sections": zoo}, plan),
        "batching": lambda: in_flight_against_static(zoo, plan.requests * 3, plan.threads, say, plan.vllm),
        "prefix": lambda: prefix_cache(repository, plan),
        "speculation": lambda: speculation(repository),
        "draft": lambda: draft_speculation(plan.checkpoint, plan.work / "deep", say),
        "adapters": lambda: adapter_speeds(
            large.checkpoint, plan.work / "adapters", plan.batches, plan.tokens, plan.threads, say
        ),
    }
    for part in plan.parts:
        say(part)
        report[part] = work[part]()
    return report


def decode_speeds(models: Mapping[str, Weights], plan: LlmPlan, say: Say, rounds: int = 5) -> list[dict[str, Any]]:
    """Tokens a second of every engine at every batch size, all rows together: medians of rounds in which engines take turns.

    An engine whose process dies, as one does that was built for another processor, is left out and named.
    """
    found: list[dict[str, Any]] = []
    for name, weights in models.items():
        with ExitStack() as stack:
            engines = {engine: stack.enter_context(loaded(engine, weights, plan.threads)) for engine in installed(weights)}
            rows_of: dict[Engine, dict[str, Any]] = {e: {"model": name, "engine": str(e)} for e in engines}
            for rows in plan.batches:
                say(f"{name}: {rows} rows")
                taken: dict[Engine, list[float]] = {engine: [] for engine in engines}
                for tokens in (4, *[plan.tokens] * rounds):  # the first is to warm up
                    for engine, speed in list(engines.items()):
                        try:
                            taken[engine].append(speed(rows, tokens))
                        except BrokenExecutor:
                            say(f"{name}: {engine} is left out: its process died")
                            del engines[engine]
                for engine in engines:
                    rows_of[engine][f"batch {rows}"] = statistics.median(taken[engine][1:])
            found += [rows_of[engine] for engine in engines]
    return found


def sampler_cost(rows: int, vocabulary: int = 32_000, repeats: int = 200) -> float:
    """Microseconds a row with top-k 40 and top-p 0.9, the median."""
    logits = np.random.default_rng(0).standard_normal((rows, vocabulary)).astype(np.float32) * 3
    settings = [Row(Sampling(top_k=40, top_p=0.9, seed=row), 5) for row in range(rows)]
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        sample(logits, settings)
        taken.append(time.perf_counter() - start)
    return 1e6 * statistics.median(taken) / rows


def served_against_bare(
    models: Mapping[str, Weights], plan: LlmPlan, streams: int = 8, tokens: int = 128
) -> list[dict[str, Any]]:
    """Tokens a second of eight streams through Triton, and of the bare engine reading the same prompts and decoding
    eight rows greedily, in turn; with the engine on all cores, and on half of them.

    Without the prefix cache: it would spare the served prompts, and read answers again while the bare engine is measured.
    """
    prompt = conversation("features section for a museum")
    rows = []
    for (name, weights), threads in itertools.product(models.items(), sorted({plan.threads, max(1, plan.threads // 2)})):
        ids = Tokenizer.from_file(str(weights.engine / "tokenizer.json")).encode(prompt).ids
        served, bare = [], []
        with serving_with(weights.engine.parent.parent, threads=threads, prefix_cache_megabytes=0) as (client, _):
            options = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0.8, "top_k": 40}

            def stream(seed: int, client: Client = client, options: dict[str, Any] = options) -> int:
                return sum(len(delta.token_ids) for delta in client.stream_text(prompt, seed=seed, **options))

            with ThreadPoolExecutor(streams) as pool:
                list(pool.map(stream, range(streams)))
                for _ in range(3):
                    start = time.perf_counter()
                    total = sum(pool.map(stream, range(streams)))
                    served.append(total / (time.perf_counter() - start))
                    bare.append(bare_speed(weights, ids, streams, tokens, threads))
        whole, part = statistics.median(bare), statistics.median(served)
        rows.append({"model": name, "engine threads": threads, "served": part, "bare": whole, "lost": 1 - part / whole})
    return rows


def prefix_cache(repository: Path, plan: LlmPlan) -> dict[str, float]:
    """Questions under one long system prompt: share of prompt tokens found, and time to the first token, cold and warm."""
    system = " ".join(brief.text for brief in held_out_briefs(40, seed=5))
    questions = [brief.text for brief in held_out_briefs(plan.requests, seed=6)]
    firsts, cached, total = [], 0, 0
    with serving(repository) as (client, _):
        list(client.stream_text("warm up", max_tokens=2))
        for question in questions:
            start = time.perf_counter()
            stream = client.stream_text(f"<|im_start|>system\n{system}<|im_end|>\n{conversation(question)}", max_tokens=4)
            delta = next(stream)
            firsts.append(time.perf_counter() - start)
            cached, total = cached + delta.num_cached_tokens, total + delta.num_input_tokens
            list(stream)
    cold, warm = firsts[0], statistics.median(firsts[1:])
    return {"hit_rate": cached / total, "ttft_cold": cold, "ttft_warm": warm, "ratio": cold / warm}

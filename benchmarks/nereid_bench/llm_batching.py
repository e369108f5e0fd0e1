"""Continuous batching measured: the same arrivals through Triton, without it, and by static batches."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nereid.engines.onnx_causal import OnnxCausalEngine
from nereid.flow.metrics import Recorder
from nereid.llm.observer import LlmObserver
from nereid.llm.service import LlmModel, LlmService
from nereid.llm.settings import LlmFacts, LlmLimits
from nereid_bench.llm_peers import Weights
from nereid_bench.servers import serving_with
from nereid_bench.vllm_peer import serving_vllm, stream_completion
from nereid_client import Client
from nereid_client.texts import text_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class TextJob:
    """One request: when it arrives, its prompt, how many tokens it wants."""

    arrival: float
    prompt: tuple[int, ...]
    tokens: int


@dataclass(slots=True)
class TextOutcome:
    """Seconds from arrival to the first and the last token, and between tokens."""

    first: float
    last: float
    gaps: list[float] = field(default_factory=list)


SHORT_ANSWERS = (10, 25, 50, 100, 200)
LONG_ANSWERS = (20, 50, 100, 200, 400)


def text_jobs(count: int, rate: float, vocabulary: int, answers: Sequence[int] = SHORT_ANSWERS, seed: int = 0) -> list[TextJob]:
    """Poisson arrivals; prompts of 10 to 200 tokens, answers of the lengths given."""
    rng, now, jobs = random.Random(seed), 0.0, []
    for _ in range(count):
        now += rng.expovariate(rate)
        prompt = tuple(rng.randrange(3, vocabulary) for _ in range(rng.randint(10, 200)))
        jobs.append(TextJob(arrival=now, prompt=prompt, tokens=rng.choice(answers)))
    return jobs


def in_flight_against_static(weights: Weights, count: int, threads: int, vllm: Path | None = None) -> list[dict[str, Any]]:
    """The same arrivals, fast enough to fill all, answered greedily: in flight through Triton (both engines, each with the rows
    that its export gives it), in flight without Triton, by static batches of 8 or 100 ms around the bare engine, and by vLLM's
    server of the checkpoint where its command is given."""
    folder = weights.engine
    vocabulary = LlmFacts.read(folder).vocabulary
    rows: list[dict[str, Any]] = []
    for name, lengths in {"10 to 200": SHORT_ANSWERS, "20 to 400": LONG_ANSWERS}.items():
        jobs = text_jobs(count, 100.0, vocabulary, lengths)
        made = {}
        for engine, served in {"ONNX Runtime": weights.engine, "OpenVINO": weights.openvino}.items():
            with serving_with(served.parent.parent, threads=threads, prefix_cache_megabytes=0) as (client, _):
                made[f"in flight, served, {engine}"] = _drive(jobs, partial(_stream, client))
        with in_process(folder, threads) as ask:
            made["in flight, no Triton"] = _drive(jobs, ask)
        static = StaticBatcher(OnnxCausalEngine.load(folder / "model.onnx", tokens=32_768, threads=threads))
        made["static batches"] = _drive(jobs, static.ask)
        static.stop()
        if vllm is not None:
            with serving_vllm(vllm, weights.checkpoint, threads) as url:
                made["vLLM, served"] = _drive(jobs, partial(_complete, url))
        rows += [{"answers": name, "batching": kind, **_summary(jobs, *outcomes)} for kind, outcomes in made.items()]
    return rows


Ask = Callable[[TextJob, Callable[[], None]], None]
"""Answers a job, and tells of each token; returns when all are there."""


def _sampling(job: TextJob) -> dict[str, Any]:
    return {"max_tokens": job.tokens, "ignore_eos": True, "temperature": 0}


def _stream(client: Client, job: TextJob, told: Callable[[], None]) -> None:
    for delta in client.stream_text(list(job.prompt), **_sampling(job)):
        for _ in delta.token_ids:
            told()


def _complete(url: str, job: TextJob, told: Callable[[], None]) -> None:
    stream_completion(url, job.prompt, told, **_sampling(job))


@dataclass(slots=True, eq=False)
class _Caller:
    """One request's way back where there is no Triton."""

    told: Callable[[], None]
    done: threading.Event = field(default_factory=threading.Event)

    def send(self, outputs: Mapping[str, np.ndarray]) -> None:
        for _ in outputs["output_ids"]:
            self.told()

    def close(self, error: Exception | None = None) -> None:
        self.done.set()

    def is_cancelled(self) -> bool:
        return False


@contextmanager
def in_process(folder: Path, threads: int) -> Iterator[Ask]:
    """The `llm` service of an engine's folder, without Triton: in this process, its engine in the worker it starts."""
    limits = LlmLimits(prefix_cache_megabytes=0, threads=threads)
    observer = LlmObserver(Recorder(lambda metric, value, labels: None))
    service = LlmService(LlmModel.read("llm", folder, limits, None), observer)

    def ask(job: TextJob, told: Callable[[], None]) -> None:
        caller = _Caller(told)
        service.handle(text_tensors(job.prompt, _sampling(job), stream=True), caller)
        caller.done.wait()

    yield ask
    service.stop()


class StaticBatcher:
    """What people build around an engine: collect up to 8 requests or 100 ms, answer all when the longest is done."""

    def __init__(self, engine: OnnxCausalEngine) -> None:
        self._engine = engine
        engine.arrange(8, 1024)
        self._waiting: list[tuple[TextJob, threading.Event]] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ask(self, job: TextJob, told: Callable[[], None]) -> None:
        done = threading.Event()
        with self._changed:
            self._waiting.append((job, done))
            self._changed.notify()
        done.wait()
        for _ in range(job.tokens):
            told()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._stopping):
                    self._changed.wait()
                if self._stopping:
                    return
            time.sleep(0.1)
            with self._changed:
                batch, self._waiting = self._waiting[:8], self._waiting[8:]
            self._answer([job for job, _ in batch])
            for _, done in batch:
                done.set()

    def _answer(self, jobs: Sequence[TextJob]) -> None:
        last = []
        for row, job in enumerate(jobs):
            last.append(int(self._engine.extend(row, 0, job.prompt)[0].argmax()))
        for place in range(max(job.tokens for job in jobs)):
            last = self._engine.decode(last, [len(job.prompt) + place for job in jobs]).argmax(axis=1).tolist()


def _drive(jobs: Sequence[TextJob], ask: Callable[[TextJob, Callable[[], None]], None]) -> tuple[list[TextOutcome], float]:
    """Send each job at its time; outcomes, and the seconds from the first arrival to the last answer."""
    start = time.perf_counter() + 0.1
    outcomes = [TextOutcome(0, 0) for _ in jobs]

    def one(index: int) -> None:
        job, times = jobs[index], []
        time.sleep(max(0.0, start + job.arrival - time.perf_counter()))
        ask(job, lambda: times.append(time.perf_counter() - start - job.arrival))
        outcomes[index] = TextOutcome(times[0], times[-1], [b - a for a, b in itertools.pairwise(times)])

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes, time.perf_counter() - start - jobs[0].arrival


def _summary(jobs: Sequence[TextJob], outcomes: Sequence[TextOutcome], seconds: float) -> dict[str, float]:
    """`goodput`: first token within half a second and the answer within 20 ms a token beyond it."""
    firsts = [outcome.first for outcome in outcomes]
    gaps = [gap for outcome in outcomes for gap in outcome.gaps]
    good = [o.first <= 0.5 and o.last <= 0.5 + 0.02 * job.tokens for job, o in zip(jobs, outcomes, strict=True)]
    return {
        "tokens_per_second": sum(job.tokens for job in jobs) / seconds,
        "ttft_p50": float(np.percentile(firsts, 50)),
        "ttft_p95": float(np.percentile(firsts, 95)),
        "itl_p50": float(np.percentile(gaps, 50)),
        "itl_p95": float(np.percentile(gaps, 95)),
        "goodput": sum(good) / len(good),
    }

"""Continuous batching measured: the same arrivals through Triton, without it, and by static batches."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from nereid.serving.errors import ServingError
from nereid_bench.llm_peers import Weights
from nereid_bench.servers import serving_with
from nereid_bench.vllm_peer import serving_vllm, stream_completion
from nereid_client import Client
from nereid_client.texts import text_tensors

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextJob:
    """One request: when it arrives, its prompt, how many tokens it wants."""

    arrival: float
    prompt: tuple[int, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class TextOutcome:
    """How many tokens came, and when, in seconds from arrival: an entry for each piece of the answer, however many it held."""

    tokens: int
    times: tuple[float, ...]


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


def in_flight_against_static(
    weights: Weights, count: int, threads: int, say: Say, vllm: Path | None = None
) -> list[dict[str, Any]]:
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
                made[f"in flight, served, {engine}"] = drive_texts(jobs, partial(_stream, client))
        with in_process(folder, threads) as ask:
            made["in flight, no Triton"] = drive_texts(jobs, ask)
        static = StaticBatcher(OnnxCausalEngine.load(folder / "model.onnx", tokens=32_768, threads=threads))
        made["static batches"] = drive_texts(jobs, static.ask)
        static.stop()
        if vllm is not None:
            try:
                with serving_vllm(vllm, weights.checkpoint, threads) as url:
                    made["vLLM, served"] = drive_texts(jobs, partial(_complete, url))
            except ServingError as error:
                say(f"vLLM is left out: {error}")
        rows += [{"answers": name, "batching": kind, **_summary(*outcomes)} for kind, outcomes in made.items()]
    return rows


Ask = Callable[[TextJob, Callable[[], None]], int]
"""Answers a job, and tells of each piece when it comes; returns how many tokens came, once all are there."""


def _sampling(job: TextJob) -> dict[str, Any]:
    return {"max_tokens": job.tokens, "ignore_eos": True, "temperature": 0}


def _stream(client: Client, job: TextJob, told: Callable[[], None]) -> int:
    tokens = 0
    for delta in client.stream_text(list(job.prompt), **_sampling(job)):
        told()
        tokens += len(delta.token_ids)
    return tokens


def _complete(url: str, job: TextJob, told: Callable[[], None]) -> int:
    return stream_completion(url, job.prompt, told, **_sampling(job))


@dataclass(slots=True, eq=False)
class _Caller:
    """One request's way back where there is no Triton."""

    told: Callable[[], None]
    tokens: int = 0
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def send(self, outputs: Mapping[str, np.ndarray]) -> None:
        self.told()
        self.tokens += len(outputs["output_ids"])

    def close(self, error: Exception | None = None) -> None:
        self.error = error
        self.done.set()

    def is_cancelled(self) -> bool:
        return False


@contextmanager
def in_process(folder: Path, threads: int) -> Iterator[Ask]:
    """The `llm` service of an engine's folder, without Triton: in this process, its engine in the worker it starts."""
    limits = LlmLimits(prefix_cache_megabytes=0, threads=threads)
    observer = LlmObserver(Recorder(lambda metric, value, labels: None))
    service = LlmService(LlmModel.read("llm", folder, limits, None), observer)

    def ask(job: TextJob, told: Callable[[], None]) -> int:
        caller = _Caller(told)
        service.handle(text_tensors(job.prompt, _sampling(job), stream=True), caller)
        caller.done.wait()
        if caller.error is not None:
            raise caller.error
        return caller.tokens

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

    def ask(self, job: TextJob, told: Callable[[], None]) -> int:
        done = threading.Event()
        with self._changed:
            self._waiting.append((job, done))
            self._changed.notify()
        done.wait()
        told()
        return job.tokens

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


def drive_texts(jobs: Sequence[TextJob], ask: Ask) -> tuple[list[TextOutcome], float]:
    """Send each job at its time; outcomes, and the seconds from the first arrival to the last answer. Raises ServingError where
    one was not answered."""
    start = time.perf_counter() + 0.1

    def one(job: TextJob) -> TextOutcome:
        times: list[float] = []
        time.sleep(max(0.0, start + job.arrival - time.perf_counter()))
        tokens = ask(job, lambda: times.append(time.perf_counter() - start - job.arrival))
        if tokens != job.tokens:
            raise ServingError(f"{tokens} tokens came where {job.tokens} were asked for")
        return TextOutcome(tokens, tuple(times))

    with ThreadPoolExecutor(len(jobs)) as pool:
        asked = [pool.submit(one, job) for job in jobs]
    seconds = time.perf_counter() - start - jobs[0].arrival
    failed = [str(error) for future in asked if (error := future.exception()) is not None]
    if failed:  # what is left says nothing of the load that was meant
        raise ServingError(f"{len(failed)} of {len(jobs)} requests failed, the first: {failed[0]}")
    return [future.result() for future in asked], seconds


def _summary(outcomes: Sequence[TextOutcome], seconds: float) -> dict[str, float]:
    """`goodput`: first token within half a second and the answer within 20 ms a token beyond it. `gap`: between two pieces of an
    answer as its reader sees them, which may hold several tokens."""
    firsts = [outcome.times[0] for outcome in outcomes]
    gaps = [after - before for outcome in outcomes for before, after in itertools.pairwise(outcome.times)] or [0.0]
    good = [o.times[0] <= 0.5 and o.times[-1] <= 0.5 + 0.02 * o.tokens for o in outcomes]
    return {
        "tokens_per_second": sum(outcome.tokens for outcome in outcomes) / seconds,
        "ttft_p50": float(np.percentile(firsts, 50)),
        "ttft_p95": float(np.percentile(firsts, 95)),
        "gap_p50": float(np.percentile(gaps, 50)),
        "gap_p95": float(np.percentile(gaps, 95)),
        "goodput": sum(good) / len(good),
    }

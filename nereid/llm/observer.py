"""A language model's loop as metrics, under the field's names; knows nothing of Triton."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from nereid.flow.metrics import Kind, Metric, Recorder
from nereid.llm.settings import LlmFacts

if TYPE_CHECKING:
    from nereid.llm.scheduler import LlmScheduler, Tick

_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
    1800.0,
    3600.0,
)

REQUESTS = Metric("nereid_llm_requests_total", Kind.COUNTER, "Requests by outcome", labelled=True)
TIME_TO_FIRST_TOKEN = Metric("nereid_llm_time_to_first_token_seconds", Kind.HISTOGRAM, "Arrival to first token", _SECONDS)
INTER_TOKEN_LATENCY = Metric(
    "nereid_llm_inter_token_latency_seconds", Kind.HISTOGRAM, "Between two tokens of a request (sampled)", _SECONDS
)
TIME_PER_OUTPUT_TOKEN = Metric(
    "nereid_llm_time_per_output_token_seconds", Kind.HISTOGRAM, "Mean time between an answer's tokens", _SECONDS
)
E2E_LATENCY = Metric("nereid_llm_e2e_request_latency_seconds", Kind.HISTOGRAM, "Arrival to last token", _SECONDS)
QUEUE_SECONDS = Metric("nereid_llm_request_queue_seconds", Kind.HISTOGRAM, "Time a request waited to join", _SECONDS)
PROMPT_TOKENS = Metric("nereid_llm_prompt_tokens_total", Kind.COUNTER, "Prompt tokens computed")
GENERATION_TOKENS = Metric("nereid_llm_generation_tokens_total", Kind.COUNTER, "Tokens written")
TICK_SECONDS = Metric("nereid_llm_tick_seconds", Kind.HISTOGRAM, "Time of one tick (sampled)", _SECONDS)
BATCH_SIZE = Metric(
    "nereid_llm_batch_size", Kind.HISTOGRAM, "Rows of one decode call (sampled)", (1, 2, 4, 6, 8, 12, 16, 24, 32, 64)
)
RUNNING = Metric("nereid_llm_requests_running", Kind.GAUGE, "Requests being answered")
WAITING = Metric("nereid_llm_requests_waiting", Kind.GAUGE, "Requests waiting to join")
KV_USAGE = Metric("nereid_llm_kv_cache_usage_ratio", Kind.GAUGE, "Share of the KV memory in use")
PREFIX_QUERIES = Metric("nereid_llm_prefix_cache_queried_tokens_total", Kind.COUNTER, "Prompt tokens looked up")
PREFIX_HITS = Metric("nereid_llm_prefix_cache_hit_tokens_total", Kind.COUNTER, "Prompt tokens found")
DRAFT_TOKENS = Metric("nereid_llm_draft_tokens_total", Kind.COUNTER, "Tokens guessed")
ACCEPTED_TOKENS = Metric("nereid_llm_accepted_draft_tokens_total", Kind.COUNTER, "Guessed tokens that were right")
PREEMPTIONS = Metric("nereid_llm_preemptions_total", Kind.COUNTER, "Sequences sent back to the queue for lack of memory")
WORKER_DEATHS = Metric("nereid_llm_worker_deaths_total", Kind.COUNTER, "Worker processes that died and were replaced")
REPLAYS = Metric("nereid_llm_replayed_requests_total", Kind.COUNTER, "Requests given to a new worker after a death")
BANDWIDTH_UTILISATION = Metric(
    "nereid_llm_model_bandwidth_utilization_ratio", Kind.GAUGE, "Bytes read in a decode call against the measured peak"
)
FLOP_UTILISATION = Metric(
    "nereid_llm_model_flop_utilization_ratio", Kind.GAUGE, "FLOPs of a decode call against the measured peak"
)

LLM_METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


@dataclass(frozen=True, slots=True)
class Peak:
    """What this machine can do, measured once: bytes read and float32 operations, each per second."""

    bytes_per_second: float
    flops: float

    @classmethod
    def measure(cls) -> Peak:
        """A pass over 64 MB and a product of two 768 x 768 matrices, the best of three; about 50 ms."""
        data = np.ones(16 * 2**20, np.float32)
        square = np.ones((768, 768), np.float32)
        return cls(data.nbytes / _best(data.sum), 2 * 768**3 / _best(lambda: square @ square))


def _best(work: object) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()  # type: ignore[operator]
        times.append(time.perf_counter() - start)
    return min(times)


@dataclass(slots=True)
class LlmObserver:
    """The batcher's and the scheduler's events, recorded."""

    recorder: Recorder
    peak: Peak = field(default_factory=Peak.measure)
    _facts: LlmFacts | None = None
    _cache_seen: tuple[int, int] = (0, 0)
    _occupancy: tuple[int, int] = (0, 0)
    _sampled: dict[Metric, float] = field(default_factory=dict)

    def start(self, facts: LlmFacts) -> None:
        self._facts = facts

    def stop(self) -> None:
        self.recorder.stop()

    def _sample(self, metric: Metric, value: float) -> None:
        """Observe at most twenty values a second: an observation crosses a process border, and ticks are short."""
        now = time.monotonic()
        if now - self._sampled.get(metric, 0.0) >= 0.05:
            self._sampled[metric] = now
            self.recorder.record(metric, value)

    # --- what the batcher tells ---

    def admitted(self, queue_seconds: float) -> None:
        self.recorder.record(QUEUE_SECONDS, queue_seconds)

    def ticked(self, seconds: float, rows: int) -> None:
        self._sample(TICK_SECONDS, seconds)

    def occupancy(self, active: int, queued: int) -> None:
        if (active, queued) != self._occupancy:
            self._occupancy = (active, queued)
            self.recorder.record(RUNNING, active)
            self.recorder.record(WAITING, queued)

    def finished(self, outcome: str, seconds: float) -> None:
        self.recorder.record(REQUESTS, 1, outcome=outcome)

    def refused(self, outcome: str) -> None:
        """A request that never reached the queue."""
        self.recorder.record(REQUESTS, 1, outcome=outcome)

    # --- what requests tell ---

    def first_token(self, seconds: float) -> None:
        self.recorder.record(TIME_TO_FIRST_TOKEN, seconds)

    def token(self, seconds: float) -> None:
        self._sample(INTER_TOKEN_LATENCY, seconds)

    def answered(self, seconds: float, seconds_per_token: Sequence[float]) -> None:
        self.recorder.record(E2E_LATENCY, seconds)
        for value in seconds_per_token:
            self.recorder.record(TIME_PER_OUTPUT_TOKEN, value)

    # --- what the scheduler tells ---

    def tick(self, tick: Tick, scheduler: LlmScheduler) -> None:
        for metric, value in (
            (PROMPT_TOKENS, tick.prompt_tokens),
            (GENERATION_TOKENS, tick.new_tokens),
            (DRAFT_TOKENS, tick.guessed_tokens),
            (ACCEPTED_TOKENS, tick.accepted_tokens),
            (PREEMPTIONS, tick.preempted),
        ):
            if value:
                self.recorder.record(metric, value)
        cache = scheduler.cache
        seen = (cache.queried_tokens, cache.hit_tokens)
        for metric, value, before in zip((PREFIX_QUERIES, PREFIX_HITS), seen, self._cache_seen, strict=True):
            if value > before:
                self.recorder.record(metric, value - before)
        self._cache_seen = seen
        used = scheduler.used_tokens
        self.recorder.record(KV_USAGE, used / scheduler.engine.tokens)
        if tick.decoded_rows and self._facts is not None:
            self._sample(BATCH_SIZE, tick.decoded_rows)
            read = self._facts.weight_bytes + used * self._facts.kv_bytes_per_token
            self.recorder.record(BANDWIDTH_UTILISATION, read / tick.decode_seconds / self.peak.bytes_per_second)
            work = self._facts.flops_per_token * tick.decoded_rows
            self.recorder.record(FLOP_UTILISATION, work / tick.decode_seconds / self.peak.flops)

"""A language model's loop as metrics, under the field's names; knows nothing of Triton."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from nereid.flow.metrics import Recorder
from nereid.llm.settings import LlmFacts
from nereid_protocol.metric import Metric
from nereid_protocol.metrics import (
    LLM_ACCEPTED_TOKENS,
    LLM_ADAPTER_REQUESTS,
    LLM_ADAPTER_TOKENS,
    LLM_BANDWIDTH_UTILISATION,
    LLM_BATCH_SIZE,
    LLM_DRAFT_TOKENS,
    LLM_E2E_LATENCY,
    LLM_EMBEDDED_TOKENS,
    LLM_EMBEDDINGS,
    LLM_FLOP_UTILISATION,
    LLM_GENERATION_TOKENS,
    LLM_INTER_TOKEN_LATENCY,
    LLM_KV_USAGE,
    LLM_PREEMPTIONS,
    LLM_PREFIX_HITS,
    LLM_PREFIX_QUERIES,
    LLM_PROMPT_TOKENS,
    LLM_QUEUE_SECONDS,
    LLM_REQUESTS,
    LLM_RUNNING,
    LLM_TICK_SECONDS,
    LLM_TIME_PER_OUTPUT_TOKEN,
    LLM_TIME_TO_FIRST_TOKEN,
    LLM_WAITING,
)

if TYPE_CHECKING:
    from nereid.llm.scheduler import LlmScheduler
    from nereid.llm.tick import Tick


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
        self.recorder.record(LLM_QUEUE_SECONDS, queue_seconds)

    def ticked(self, seconds: float, rows: int) -> None:
        self._sample(LLM_TICK_SECONDS, seconds)

    def occupancy(self, active: int, queued: int) -> None:
        if (active, queued) != self._occupancy:
            self._occupancy = (active, queued)
            self.recorder.record(LLM_RUNNING, active)
            self.recorder.record(LLM_WAITING, queued)

    def finished(self, outcome: str, seconds: float) -> None:
        self.recorder.record(LLM_REQUESTS, 1, outcome=outcome)

    def refused(self, outcome: str) -> None:
        """A request that never reached the queue."""
        self.recorder.record(LLM_REQUESTS, 1, outcome=outcome)

    # --- what requests tell ---

    def first_token(self, seconds: float) -> None:
        self.recorder.record(LLM_TIME_TO_FIRST_TOKEN, seconds)

    def token(self, seconds: float) -> None:
        self._sample(LLM_INTER_TOKEN_LATENCY, seconds)

    def answered(self, seconds: float, seconds_per_token: Sequence[float]) -> None:
        self.recorder.record(LLM_E2E_LATENCY, seconds)
        for value in seconds_per_token:
            self.recorder.record(LLM_TIME_PER_OUTPUT_TOKEN, value)

    def adapted(self, adapter: int, outcome: str, tokens: int) -> None:
        """A request for one of the model's adapters has ended, with so many tokens written."""
        if adapter and self._facts is not None:
            name = self._facts.adapters[adapter - 1]
            self.recorder.record(LLM_ADAPTER_REQUESTS, 1, adapter=name, outcome=outcome)
            self.recorder.record(LLM_ADAPTER_TOKENS, tokens, adapter=name)

    def embedded(self, tokens: int) -> None:
        """The mean over a prompt of so many tokens is told."""
        self.recorder.record(LLM_EMBEDDINGS, 1)
        self.recorder.record(LLM_EMBEDDED_TOKENS, tokens)

    # --- what the scheduler tells ---

    def tick(self, tick: Tick, scheduler: LlmScheduler) -> None:
        for metric, value in (
            (LLM_PROMPT_TOKENS, tick.prompt_tokens),
            (LLM_GENERATION_TOKENS, tick.new_tokens),
            (LLM_DRAFT_TOKENS, tick.draft_tokens),
            (LLM_ACCEPTED_TOKENS, tick.accepted_tokens),
            (LLM_PREEMPTIONS, tick.preempted),
        ):
            if value:
                self.recorder.record(metric, value)
        memory = scheduler.memory
        seen = memory.prefix_hits
        for metric, value, before in zip((LLM_PREFIX_QUERIES, LLM_PREFIX_HITS), seen, self._cache_seen, strict=True):
            if value > before:
                self.recorder.record(metric, value - before)
        self._cache_seen = seen
        used = memory.used_tokens
        self.recorder.record(LLM_KV_USAGE, used / memory.tokens)
        if tick.decoded_rows and self._facts is not None:
            self._sample(LLM_BATCH_SIZE, tick.decoded_rows)
        if tick.decode_seconds and self._facts is not None:
            read = self._facts.weight_bytes + used * self._facts.kv_bytes_per_token
            self.recorder.record(LLM_BANDWIDTH_UTILISATION, read / tick.decode_seconds / self.peak.bytes_per_second)
            work = self._facts.flops_per_token * tick.decoded_rows
            self.recorder.record(LLM_FLOP_UTILISATION, work / tick.decode_seconds / self.peak.flops)

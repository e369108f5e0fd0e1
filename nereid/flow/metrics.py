"""Recording of metrics off the hot path; their names lie in nereid_protocol.metrics. Knows nothing of Triton.

A sink (Triton's, or a test's) turns a Metric into a series.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from nereid_protocol.metric import Kind, LoopMetrics, Metric

log = logging.getLogger(__name__)


Record = Callable[[Metric, float, Mapping[str, str]], None]
"""Writes a value: adds to a counter, sets a gauge, observes into a histogram."""

_Item = tuple[Metric, float, Mapping[str, str]]
_GATHER_SECONDS = 0.1
"""Values are gathered this long before they are written: a busy loop makes thousands a second."""


@dataclass(slots=True)
class Recorder:
    """Hands values to a sink on a thread of its own, because Triton's metric calls cross a process border."""

    sink: Record
    _waiting: queue.SimpleQueue[_Item | None] = field(default_factory=queue.SimpleQueue, init=False)
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._write_forever, name="metrics", daemon=True)
        self._thread.start()

    def record(self, metric: Metric, value: float, **labels: str) -> None:
        self._waiting.put((metric, value, labels))

    def stop(self) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _write_forever(self) -> None:
        while True:
            items = [self._waiting.get()]
            if items[0] is not None:
                time.sleep(_GATHER_SECONDS)
            while not self._waiting.empty():
                items.append(self._waiting.get())
            for metric, value, labels in _condense(item for item in items if item is not None):
                try:
                    self.sink(metric, value, labels)
                except Exception:
                    log.exception("a metric could not be written")
            if None in items:
                return


def _condense(items: Iterable[_Item]) -> list[_Item]:
    """One value for each counter (the sum) and gauge (the latest); histograms keep all of theirs."""
    kept: dict[object, _Item] = {}
    for number, (metric, value, labels) in enumerate(items):
        if metric.kind is Kind.HISTOGRAM:
            kept[number] = (metric, value, labels)
            continue
        key = (metric.name, tuple(sorted(labels.items())))
        before = kept[key][1] if key in kept and metric.kind is Kind.COUNTER else 0.0
        kept[key] = (metric, before + value, labels)
    return list(kept.values())


@dataclass(slots=True)
class LoopObserver:
    """A denoising loop's view of its batcher, as the metrics of what it makes."""

    recorder: Recorder
    metrics: LoopMetrics
    _occupancy: tuple[int, int] = (0, 0)

    def admitted(self, queue_seconds: float) -> None:
        self.recorder.record(self.metrics.queue_seconds, queue_seconds)

    def ticked(self, seconds: float, rows: int) -> None:
        """A tick may wait for a call that it did not send; what calls take is told by `stepped`."""

    def stepped(self, engine: str, rows: int, seconds: float) -> None:
        """A call of this engine has moved so many rows one step on."""
        self.recorder.record(self.metrics.step_seconds, seconds)
        self.recorder.record(self.metrics.rows_per_tick, rows)
        self.recorder.record(self.metrics.steps, rows, engine=str(engine))

    def occupancy(self, active: int, queued: int) -> None:
        if (active, queued) != self._occupancy:
            self._occupancy = (active, queued)
            self.recorder.record(self.metrics.active_requests, active)
            self.recorder.record(self.metrics.queued_requests, queued)

    def finished(self, outcome: str, seconds: float) -> None:
        self.recorder.record(self.metrics.requests, 1, outcome=outcome)
        self.recorder.record(self.metrics.request_seconds, seconds)

    def refused(self, outcome: str) -> None:
        """A request that never reached the batcher's queue."""
        self.recorder.record(self.metrics.requests, 1, outcome=outcome)

    def engine_died(self) -> None:
        self.recorder.record(self.metrics.engine_deaths, 1)

    def made(self, count: int) -> None:
        """So many rows have been denoised to the end."""
        self.recorder.record(self.metrics.made, count)

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

from nereid_protocol.metrics import (
    IMAGE_ACTIVE_REQUESTS,
    IMAGE_ENGINE_DEATHS,
    IMAGE_QUEUE_SECONDS,
    IMAGE_QUEUED_REQUESTS,
    IMAGE_REQUEST_SECONDS,
    IMAGE_REQUESTS,
    IMAGE_ROWS_PER_TICK,
    IMAGE_STEP_SECONDS,
    IMAGE_STEPS,
    IMAGES,
    Kind,
    Metric,
)

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
class ImageObserver:
    """The image pipeline's view of its batcher, as metrics."""

    recorder: Recorder
    _occupancy: tuple[int, int] = (0, 0)

    def admitted(self, queue_seconds: float) -> None:
        self.recorder.record(IMAGE_QUEUE_SECONDS, queue_seconds)

    def ticked(self, seconds: float, rows: int) -> None:
        """A tick may wait for a call that it did not send; what calls take is told by `stepped`."""

    def stepped(self, engine: str, images: int, seconds: float) -> None:
        """A call of this engine has moved so many images one step on."""
        self.recorder.record(IMAGE_STEP_SECONDS, seconds)
        self.recorder.record(IMAGE_ROWS_PER_TICK, images)
        self.recorder.record(IMAGE_STEPS, images, engine=str(engine))

    def occupancy(self, active: int, queued: int) -> None:
        if (active, queued) != self._occupancy:
            self._occupancy = (active, queued)
            self.recorder.record(IMAGE_ACTIVE_REQUESTS, active)
            self.recorder.record(IMAGE_QUEUED_REQUESTS, queued)

    def finished(self, outcome: str, seconds: float) -> None:
        self.recorder.record(IMAGE_REQUESTS, 1, outcome=outcome)
        self.recorder.record(IMAGE_REQUEST_SECONDS, seconds)

    def refused(self, outcome: str) -> None:
        """A request that never reached the batcher's queue."""
        self.recorder.record(IMAGE_REQUESTS, 1, outcome=outcome)

    def engine_died(self) -> None:
        self.recorder.record(IMAGE_ENGINE_DEATHS, 1)

    def imaged(self, count: int) -> None:
        self.recorder.record(IMAGES, count)

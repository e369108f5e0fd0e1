"""The names of every metric this project exports, and their recording off the hot path; knows nothing of Triton.

Prometheus conventions: base units, `_total` for counters. A sink (Triton's, or a test's) turns a Metric into a series.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

log = logging.getLogger(__name__)


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric family, itself and no copy; histograms have bucket bounds, `labelled` ones have no series without labels."""

    name: str
    kind: Kind
    description: str
    buckets: tuple[float, ...] = ()
    labelled: bool = False


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

REQUESTS = Metric("nereid_image_requests_total", Kind.COUNTER, "Image requests by outcome", labelled=True)
REQUEST_SECONDS = Metric("nereid_image_request_seconds", Kind.HISTOGRAM, "Time from arrival at denoise to its answer", _SECONDS)
QUEUE_SECONDS = Metric("nereid_image_queue_seconds", Kind.HISTOGRAM, "Time an image request waited to join", _SECONDS)
STEP_SECONDS = Metric("nereid_image_step_seconds", Kind.HISTOGRAM, "Time of one call of the UNet", _SECONDS)
ROWS_PER_TICK = Metric(
    "nereid_image_rows_per_tick", Kind.HISTOGRAM, "Images moved by one call of the UNet", (1, 2, 4, 6, 8, 12, 16, 24, 32, 64)
)
ACTIVE_REQUESTS = Metric("nereid_image_active_requests", Kind.GAUGE, "Image requests being denoised")
QUEUED_REQUESTS = Metric("nereid_image_queued_requests", Kind.GAUGE, "Image requests waiting to join")
IMAGES = Metric("nereid_images_total", Kind.COUNTER, "Images denoised to the end")

IMAGE_METRICS = (
    REQUESTS,
    REQUEST_SECONDS,
    QUEUE_SECONDS,
    STEP_SECONDS,
    ROWS_PER_TICK,
    ACTIVE_REQUESTS,
    QUEUED_REQUESTS,
    IMAGES,
)

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
        self.recorder.record(QUEUE_SECONDS, queue_seconds)

    def ticked(self, seconds: float, rows: int) -> None:
        """A tick may wait for a call that it did not send; what calls take is told by `stepped`."""

    def stepped(self, rows: int, seconds: float) -> None:
        """A call has moved so many images one step on."""
        self.recorder.record(STEP_SECONDS, seconds)
        self.recorder.record(ROWS_PER_TICK, rows)

    def occupancy(self, active: int, queued: int) -> None:
        if (active, queued) != self._occupancy:
            self._occupancy = (active, queued)
            self.recorder.record(ACTIVE_REQUESTS, active)
            self.recorder.record(QUEUED_REQUESTS, queued)

    def finished(self, outcome: str, seconds: float) -> None:
        self.recorder.record(REQUESTS, 1, outcome=outcome)
        self.recorder.record(REQUEST_SECONDS, seconds)

    def refused(self, outcome: str) -> None:
        """A request that never reached the batcher's queue."""
        self.recorder.record(REQUESTS, 1, outcome=outcome)

    def imaged(self, count: int) -> None:
        self.recorder.record(IMAGES, count)

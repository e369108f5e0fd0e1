"""What a metric is: its kind, buckets and labels; knows no metric."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric family, itself and no copy; histograms have bucket bounds. Triton's carry a label `model` besides `labels`."""

    name: str
    kind: Kind
    description: str
    buckets: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def labelled(self) -> bool:
        """A family with labels has no series without them."""
        return bool(self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopMetrics:
    """What a denoising loop tells, whatever it makes."""

    requests: Metric
    request_seconds: Metric
    queue_seconds: Metric
    step_seconds: Metric
    rows_per_tick: Metric
    steps: Metric
    active_requests: Metric
    queued_requests: Metric
    made: Metric
    engine_deaths: Metric

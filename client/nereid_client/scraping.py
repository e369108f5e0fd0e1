"""Pages of metrics, fetched and read: samples by name and labels, and how fast counters grew; knows no metric by name."""

from __future__ import annotations

import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import Metric, UnknownMetricFamily
from prometheus_client.parser import text_string_to_metric_families

Labels = Mapping[str, str]


def families(text: str) -> Iterator[Metric]:
    """A page's families, every sample by the name that it has there: the parser gives all counters a name in `_total`.

    A counter without it, as Triton's are, is of no type that OpenMetrics has.
    """
    for family in text_string_to_metric_families(text):
        if family.type == "counter" and f"{family.name}_total" not in text:
            plain = UnknownMetricFamily(family.name, family.documentation)
            plain.samples = [sample._replace(name=sample.name.removesuffix("_total")) for sample in family.samples]
            yield plain
        else:
            yield family


@dataclass(frozen=True, slots=True)
class Page:
    """All samples of one page, read at `taken`."""

    samples: Mapping[str, list[tuple[Labels, float]]] = field(default_factory=dict)
    taken: float = field(default_factory=time.monotonic)

    @classmethod
    def parse(cls, text: str) -> Page:
        """Raises ValueError for what is no page of metrics."""
        samples: dict[str, list[tuple[Labels, float]]] = defaultdict(list)
        for family in families(text):
            for sample in family.samples:
                samples[sample.name].append((sample.labels, sample.value))
        return cls(samples)

    @classmethod
    def fetch(cls, address: str, timeout: float) -> Page | None:
        """The page at host:port, or at an address with http, /metrics behind it or not; None where none answers there."""
        base = address if "://" in address else f"http://{address}"
        url = f"{base.removesuffix('/').removesuffix('/metrics')}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=timeout) as answer:
                return cls.parse(answer.read().decode(errors="replace"))
        except (OSError, ValueError):
            return None

    def matching(self, name: str, **labels: str) -> Iterator[tuple[Labels, float]]:
        for found, value in self.samples.get(name, ()):
            if all(found.get(key) == wanted for key, wanted in labels.items()):
                yield found, value

    def total(self, name: str, **labels: str) -> float | None:
        """The sum of the series with these labels; None where there is none."""
        values = [value for _, value in self.matching(name, **labels)]
        return sum(values) if values else None

    def values_of(self, name: str, label: str) -> list[str]:
        """What the label is in the series of this name, sorted."""
        return sorted({found[label] for found, _ in self.matching(name) if label in found})


@dataclass(frozen=True, slots=True)
class Change:
    """What has happened between two pages; a server that was started again counts from zero."""

    before: Page
    after: Page

    @property
    def seconds(self) -> float:
        return max(self.after.taken - self.before.taken, 1e-9)

    def growth(self, name: str, **labels: str) -> float | None:
        """By how much counters grew together; None where there are none."""
        now = self.after.total(name, **labels)
        if now is None:
            return None
        grown = now - (self.before.total(name, **labels) or 0.0)
        return grown if grown >= 0 else now

    def rate(self, name: str, **labels: str) -> float | None:
        """The same for a second."""
        grown = self.growth(name, **labels)
        return None if grown is None else grown / self.seconds

    def mean(self, total: str, count: str, **labels: str) -> float | None:
        """The mean of what was observed meanwhile; None where nothing was."""
        grown, times = self.growth(total, **labels), self.growth(count, **labels)
        return None if grown is None or not times else grown / times

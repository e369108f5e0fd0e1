"""The gateway's own numbers, and its page of them with Triton's behind; names come from nereid_protocol.metrics.

Histograms and counters carry the id of a request that they counted as an OpenMetrics exemplar: a scraper that accepts OpenMetrics
gets it. Labels are bounded: routes are those there are, pipelines those of the repository,
keys those of the operator's file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from nereid.serving.gateway.batches.numbers import BatchNumbers
from nereid.serving.gateway.picture_store import PictureStore
from nereid.serving.pages import fetch
from nereid_client.scraping import families
from nereid_client.server import Statistics
from nereid_protocol.metric import Metric
from nereid_protocol.metrics import (
    GATEWAY_BATCH_PUT_BACK,
    GATEWAY_BATCH_REQUESTS,
    GATEWAY_BATCH_RUNNING,
    GATEWAY_BATCH_WAITING,
    GATEWAY_BATCHES,
    GATEWAY_FILE_BYTES,
    GATEWAY_FILES,
    GATEWAY_FIRST_TOKEN_SECONDS,
    GATEWAY_IN_FLIGHT,
    GATEWAY_KEY_REQUESTS,
    GATEWAY_LOST,
    GATEWAY_PICTURE_BYTES,
    GATEWAY_PICTURES,
    GATEWAY_REPLAYS,
    GATEWAY_REQUEST_SECONDS,
    GATEWAY_REQUESTS,
    GATEWAY_RETRIES,
)

log = logging.getLogger("nereid.gateway")

ROUTES = (
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/responses",
    "POST /v1/embeddings",
    "POST /v1/images/generations",
    "POST /v1/images/edits",
    "POST /v1/images/variations",
    "POST /v1/layouts",
    "POST /v1/pages",
    "GET /v1/models",
    "POST /v1/responses/input_tokens",
    "GET /v1/responses",
    "DELETE /v1/responses",
    "POST /tokenize",
    "POST /detokenize",
    "GET /tokenizer_info",
    "GET /version",
    "POST /v1/files",
    "GET /v1/files",
    "DELETE /v1/files",
    "POST /v1/batches",
    "GET /v1/batches",
    "GET /pictures",
    "POST /sdapi/v1/txt2img",
    "POST /sdapi/v1/img2img",
    "POST /sdapi/v1/png-info",
    "POST /sdapi/v1/interrupt",
    "POST /sdapi/v1/skip",
    "POST /sdapi/v1/options",
    "GET /sdapi/v1/options",
    "GET /sdapi/v1/progress",
    "GET /sdapi/v1/samplers",
    "GET /sdapi/v1/schedulers",
    "GET /sdapi/v1/sd-models",
    "GET /health",
    "GET /metrics",
)
_SEVERAL = ("/v1/models", "/v1/responses", "/v1/files", "/v1/batches", "/pictures")
"""Paths with one thing's own behind them."""
OTHER = "other"
_OPENMETRICS = "application/openmetrics-text"
TRITON_SECONDS = 3.0
"""What Triton's page may take; without it the gateway's own is given."""


class GatewayMetrics:
    """Safe between threads."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # series of start times, which no other metric here has
        self.registry = CollectorRegistry()
        self._requests = Counter(*_arguments(GATEWAY_REQUESTS), registry=self.registry)
        self._by_key = Counter(*_arguments(GATEWAY_KEY_REQUESTS), registry=self.registry)
        self._seconds = _histogram(GATEWAY_REQUEST_SECONDS, self.registry)
        self._first = _histogram(GATEWAY_FIRST_TOKEN_SECONDS, self.registry)
        self._in_flight = Gauge(*_arguments(GATEWAY_IN_FLIGHT), registry=self.registry)
        for route in ROUTES[:8]:  # series stand at zero from the start, so that rates have a first point
            self._seconds.labels(route)
            self._in_flight.labels(route)

    def watch(self, statistics: Mapping[str, Statistics]) -> None:
        """Tell the clients' counts of retries and replays, by pipeline."""
        self.registry.register(_ClientCounts(statistics))

    def watch_batches(self, read: Callable[[], BatchNumbers]) -> None:
        """Tell how batches and files stand when the page is asked for."""
        self.registry.register(_BatchCounts(read))

    def watch_pictures(self, store: PictureStore) -> None:
        """Tell what is kept for callers to fetch."""
        Gauge(*_arguments(GATEWAY_PICTURES), registry=self.registry).set_function(lambda: len(store))
        Gauge(*_arguments(GATEWAY_PICTURE_BYTES), registry=self.registry).set_function(lambda: store.held_bytes)

    @staticmethod
    def route_of(method: str, path: str) -> str:
        """A request's route as a label; whatever is asked for that there is not, is one route."""
        route = f"{method} {path}"
        for several in _SEVERAL:
            if route not in ROUTES and path.startswith(f"{several}/"):
                route = f"{method} {several}"
        return route if route in ROUTES else OTHER

    @contextmanager
    def in_flight(self, route: str) -> Iterator[None]:
        with self._in_flight.labels(route).track_inprogress():
            yield

    def first_event(self, route: str, seconds: float, request_id: str) -> None:
        self._first.labels(route).observe(seconds, _exemplar(request_id))

    def ended(self, route: str, status: int, seconds: float, request_id: str, key: str | None = None) -> None:
        """`key` is the name of the one that the request came with."""
        if key is not None:
            self._by_key.labels(key, str(status)).inc(1, _exemplar(request_id))
        self._requests.labels(route, str(status)).inc(1, _exemplar(request_id))
        self._seconds.labels(route).observe(seconds, _exemplar(request_id))

    def page(self, accept: str, triton_url: str) -> tuple[bytes, str]:
        """The page and its content type; may wait for Triton's a little."""
        encode, content_type = choose_encoder(_OPENMETRICS if _takes_openmetrics(accept) else "")
        triton = _fetch(triton_url)
        if "openmetrics" not in content_type:
            return encode(self.registry) + triton.encode(), content_type
        whole = CollectorRegistry()
        whole.register(_Families(self.registry.collect()))
        whole.register(_Families(families(triton)))
        return encode(whole), content_type


def _takes_openmetrics(accept: str) -> bool:
    """Nothing else of a header that anybody can write is read: prometheus_client's own reader fails at versions that are none."""
    return any(part.partition(";")[0].strip().lower() == _OPENMETRICS for part in accept.split(","))


def _arguments(metric: Metric) -> tuple[str, str, tuple[str, ...]]:
    return metric.name, metric.description, metric.labels


def _histogram(metric: Metric, registry: CollectorRegistry) -> Histogram:
    return Histogram(*_arguments(metric), buckets=metric.buckets, registry=registry)


def _exemplar(request_id: str) -> dict[str, str] | None:
    """OpenMetrics bounds an exemplar's labels, name and value together, to 128 characters."""
    return {"request_id": request_id} if len(request_id) <= 128 - len("request_id") else None


class _ClientCounts(Collector):
    """Retries and replays of each pipeline's client."""

    def __init__(self, statistics: Mapping[str, Statistics]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterable[Family]:
        for metric, name in ((GATEWAY_RETRIES, "retries"), (GATEWAY_REPLAYS, "replays"), (GATEWAY_LOST, "lost")):
            family = CounterMetricFamily(metric.name, metric.description, labels=metric.labels)
            for prefix, statistics in list(self._statistics.items()):  # the page is written beside the loop, which may add one
                family.add_metric([prefix], getattr(statistics, name))
            yield family


class _BatchCounts(Collector):
    """What a store counts, which restarts do not end."""

    def __init__(self, read: Callable[[], BatchNumbers]) -> None:
        self._read = read
        self._told = False

    def collect(self) -> Iterable[Family]:
        try:
            found = self._read()
        except Exception as error:  # the others are told all the same
            if not self._told:
                log.warning("batches and files cannot be counted, and are left out of the metrics (%s)", error)
            self._told = True
            return
        self._told = False
        states = GaugeMetricFamily(GATEWAY_BATCHES.name, GATEWAY_BATCHES.description, labels=GATEWAY_BATCHES.labels)
        for state, count in found.states.items():
            states.add_metric([state], count)
        requests = CounterMetricFamily(
            GATEWAY_BATCH_REQUESTS.name, GATEWAY_BATCH_REQUESTS.description, labels=GATEWAY_BATCH_REQUESTS.labels
        )
        for outcome, count in found.outcomes.items():
            requests.add_metric([outcome], count)
        yield from (states, requests)
        yield CounterMetricFamily(GATEWAY_BATCH_PUT_BACK.name, GATEWAY_BATCH_PUT_BACK.description, value=found.put_back)
        for metric, value in (
            (GATEWAY_BATCH_WAITING, found.waiting),
            (GATEWAY_BATCH_RUNNING, found.running),
            (GATEWAY_FILES, found.files),
            (GATEWAY_FILE_BYTES, found.bytes),
        ):
            yield GaugeMetricFamily(metric.name, metric.description, value=value)


class _Families(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Family]:
        return self._families


def _fetch(url: str) -> str:
    """Triton's page; none where Triton does not answer, for it may be down while the gateway is asked how it is."""
    try:
        return fetch(url, TRITON_SECONDS)[1].decode(errors="replace")
    except (OSError, ValueError) as error:
        log.info("Triton's metrics do not answer (%s)", error)
        return ""

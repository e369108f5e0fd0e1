"""Layout requests to a server: alone, as they arrive (Poisson), and as many at once as it can take."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from nereid.layout.elements import Section

_THREADS = 64
"""Requests in flight, at most, of those that arrive by chance."""

Send = Callable[[int], None]
"""Sends the request of this number and waits for its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latencies:
    """Milliseconds of requests, from their arrival on."""

    p50: float
    p95: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latencies:
        return cls(p50=1000 * float(np.percentile(seconds, 50)), p95=1000 * float(np.percentile(seconds, 95)))


def alone(send: Send, count: int) -> Latencies:
    """One request after another."""
    return Latencies.of([_timed(send, number, time.perf_counter()) for number in range(count)])


def arriving(send: Send, rate: float, seconds: float, seed: int = 0) -> Latencies:
    """Requests at exponential gaps, `rate` a second."""
    rng, at = random.Random(seed), 0.0
    arrivals: list[float] = []
    while (at := at + rng.expovariate(rate)) < seconds or not arrivals:
        arrivals.append(at)
    start = time.perf_counter() + 0.1
    with ThreadPoolExecutor(_THREADS) as pool:
        sent = []
        for number, arrival in enumerate(arrivals):
            time.sleep(max(0.0, start + arrival - time.perf_counter()))
            sent.append(pool.submit(_timed, send, number, start + arrival))
        return Latencies.of([one.result() for one in sent])


def sustained(send: Send, at_once: int, seconds: float) -> float:
    """Requests a second that are answered while so many are always in flight."""
    numbers, start = itertools.count(), time.perf_counter()

    def keep_asking() -> int:
        answered = 0
        while time.perf_counter() - start < seconds:
            send(next(numbers))
            answered += 1
        return answered

    with ThreadPoolExecutor(at_once) as pool:
        asking = [pool.submit(keep_asking) for _ in range(at_once)]
        answered = sum(one.result() for one in asking)
    return answered / (time.perf_counter() - start)


def _timed(send: Send, number: int, since: float) -> float:
    send(number)
    return time.perf_counter() - since


def asked_for(section: Section) -> tuple[list[dict[str, Any]], Mapping[str, Any]]:
    """Elements and canvas as a client sends them."""
    canvas = section.canvas
    elements = [
        {
            "id": element.id,
            "class": str(element.kind),
            "parent": element.parent,
            "characters": element.characters,
            "items": element.items,
            **({} if element.ratio is None else {"ratio": element.ratio}),
            **({} if not element.min_width else {"min_width": element.min_width}),
            **({} if not element.min_height else {"min_height": element.min_height}),
        }
        for element in section.elements
    ]
    told = {"width": canvas.width, "density": str(canvas.density), "columns": canvas.columns, "style": str(canvas.style)}
    return elements, told

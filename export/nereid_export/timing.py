"""How long a piece of work takes: the median of several times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from math import inf

FEWEST = 3
"""Times that are measured at least, however long each takes."""


def median_milliseconds(work: Callable[[], object], seconds: float, most: int | None = None, once_above: float = inf) -> float:
    """Of as many times as `seconds` have, three at least and `most` at most; the first does not count.

    Work whose first time is above `once_above` seconds is timed once: then shapes and kernels hardly matter.
    """

    def taken() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    if taken() > once_above:  # shapes are met, kernels compiled
        return 1000 * taken()
    times: list[float] = []
    while len(times) < FEWEST or (sum(times) < seconds and (most is None or len(times) < most)):
        times.append(taken())
    return 1000 * statistics.median(times)

"""How long a piece of work takes: the median of several times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

FEWEST = 3
"""Times that are measured at least, however long each takes."""


def median_milliseconds(work: Callable[[], object], seconds: float, most: int | None = None) -> float:
    """Of as many times as `seconds` have, three at least and `most` at most; the first does not count."""
    work()  # shapes are met, kernels compiled
    taken: list[float] = []
    while len(taken) < FEWEST or (sum(taken) < seconds and (most is None or len(taken) < most)):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return 1000 * statistics.median(taken)

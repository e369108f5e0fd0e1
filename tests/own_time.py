"""What a task costs, whatever else its process has made by then or does beside it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable


def own_seconds(task: Callable[[], object]) -> float:
    """Processor time of this thread, without passes of the garbage collector, which look at all that other tests have left."""
    collects = gc.isenabled()
    gc.disable()
    begun = time.thread_time()
    try:
        task()
        return time.thread_time() - begun
    finally:
        if collects:
            gc.enable()

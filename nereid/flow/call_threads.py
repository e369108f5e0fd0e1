"""Threads for calls to what may die without an answer: one that never returns holds up nobody else."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import ParamSpec

P = ParamSpec("P")

log = logging.getLogger(__name__)


class CallThreads:
    """A thread for each call, under the request id of whoever submitted it.

    Of a pool's threads, calls that are never answered would leave fewer and fewer; here they leave a thread that sleeps. How many
    are out at once is bounded by who submits them.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._numbers = itertools.count(1)
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()

    def submit(self, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        context = copy_context()

        def work() -> None:
            try:
                context.run(fn, *args, **kwargs)
            except Exception:
                log.exception("a call has failed")
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        # Threads that are not waited for at the process' end, which those that never return would keep from coming.
        thread = threading.Thread(target=work, name=f"{self._name}-{next(self._numbers)}", daemon=True)
        with self._lock:
            thread.start()
            self._threads.add(thread)

    def join(self, seconds: float) -> bool:
        """Wait until all have returned, so long at most; whether they have."""
        end = time.monotonic() + seconds
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self._lock:
            return not self._threads

"""A thread with a large stack, for what reads schemas and grammars by recursion: where a stack ends, so does the process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

STACK_BYTES = 2**29
"""llguidance takes some 8 KiB for each reference that leads to the next, or rule in a rule, and a request may have 1 MB of them.
Only what is used becomes memory, which is given back with the thread."""
_starting = threading.Lock()


def run_deep(task: Callable[[], None]) -> None:
    """Run it to its end on such a thread; where no such stack is to be had, on this one."""
    with _starting:
        usual = threading.stack_size(STACK_BYTES)
        try:
            thread = threading.Thread(target=task, name="deep")
            thread.start()
        except RuntimeError:
            log.warning("there is no room for a stack of %d bytes: a grammar may end the worker", STACK_BYTES)
            thread = None
        finally:
            threading.stack_size(usual)
    if thread is None:
        task()
    else:
        thread.join()

"""The end of what is inside Triton: no new requests, and those that are there are answered; stops no process."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import replace

from nereid.serving.activity import is_idle
from nereid.serving.control import ControlError
from nereid.serving.models import ServedModels
from nereid.serving.options import ServeOptions
from nereid.serving.process import TritonProcess


def drain(triton: TritonProcess, models: ServedModels, options: ServeOptions, deadline: float, hurried: threading.Event) -> None:
    """Refuse new requests where Triton can, and wait until those inside have been answered.

    Until the deadline (on the monotonic clock) at most, and no longer once it is `hurried`.
    """
    control = replace(triton.control, stopping=hurried, timeout=options.drain_seconds)
    for model in models.entries:
        with contextlib.suppress(ControlError):
            control.unload(model)
    idle = 0
    while idle < 2 and time.monotonic() < deadline and triton.is_running():
        # Twice in a row: gauges are a tenth of a second behind.
        idle = idle + 1 if is_idle(options.metrics_url) else 0
        if hurried.wait(0.15 if idle else 0.05):
            return

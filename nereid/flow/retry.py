"""Calls to what may have died: made again while it is being brought back, until nobody waits for the answer any more."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from nereid.flow.errors import LostError, RequestError

T = TypeVar("T")

PAUSE_SECONDS = 0.2
MAX_SECONDS = 60.0


def call_again(
    call: Callable[[], T],
    given_up: Callable[[], bool],
    *,
    pause: float = PAUSE_SECONDS,
    longest: float = MAX_SECONDS,
    errors: tuple[type[RequestError], ...] = (LostError,),
) -> T:
    """The call's result; raises its error, one of `errors`, once `given_up`, or after `longest` seconds."""
    end = time.monotonic() + longest
    while True:
        try:
            return call()
        except errors:
            if given_up() or time.monotonic() >= end:
                raise
            time.sleep(pause)

"""The id of the request that is worked on here and now, for logs and errors; knows nothing of what requests ask.

A request's id is Triton's, which the SDK and the gateway set, or one that is made on arrival. `handling` says whose work begins;
NamedThreads carry that on to other threads; every log line of that work then begins with the id. Work for several requests at
once, such as a tick, names them itself.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_MOST_NAMED = 8
_current: ContextVar[str] = ContextVar("request_id", default="")


def current() -> str:
    """The id of the request that this thread works for; empty where it works for none, or for several."""
    return _current.get()


@contextlib.contextmanager
def handling(request_id: str) -> Iterator[None]:
    """What happens inside is this request's work."""
    token = _current.set(request_id)
    try:
        yield
    finally:
        _current.reset(token)


def named(request_ids: Collection[str]) -> str:
    """Several requests in a log line: `requests a, b and 3 more`."""
    known = [request_id for request_id in request_ids if request_id]
    if not known:
        return f"{len(request_ids)} requests"
    shown = ", ".join(known[:_MOST_NAMED])
    more = f" and {len(request_ids) - _MOST_NAMED} more" if len(request_ids) > _MOST_NAMED else ""
    return f"request {shown}" if len(request_ids) == 1 else f"requests {shown}{more}"


class NamedThreads(ThreadPoolExecutor):
    """Threads that work under the request id of whoever submitted the work."""

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        context = copy_context()
        return super().submit(lambda: context.run(fn, *args, **kwargs))


class RequestIds(logging.Filter):
    """Puts the id before the message of every log line that a request's work writes."""

    def filter(self, record: logging.LogRecord) -> bool:
        request_id = current()
        record.request = f"request {request_id}: " if request_id else ""
        return True


LOG_FORMAT = "%(levelname)s %(name)s: %(request)s%(message)s"
"""For handlers that have RequestIds as a filter."""

"""Waits for what another thread, or another process, does; knows nothing of what is tested."""

from __future__ import annotations

import asyncio
import inspect
import linecache
import reprlib
import time
from collections.abc import Callable


def until(condition: Callable[[], object], seconds: float = 90, interval: float = 0.01) -> None:
    """Return once the condition holds; a failure says which one, and what the names in it are by then."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so within {seconds:g} s: {_said(condition)}"
        time.sleep(interval)


async def reach(condition: Callable[[], object], seconds: float = 90) -> None:
    """The same on a loop, whose other tasks go on meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so within {seconds:g} s: {_said(condition)}"
        await asyncio.sleep(0.005)


def _said(condition: Callable[[], object]) -> str:
    if not inspect.isfunction(condition):
        return repr(condition)
    line = linecache.getline(condition.__code__.co_filename, condition.__code__.co_firstlineno).strip()
    try:
        known = inspect.getclosurevars(condition)
    except ValueError:  # a name that has no value yet
        return line
    seen = {**known.globals, **known.nonlocals}
    told = {name: value for name, value in seen.items() if not (callable(value) or inspect.ismodule(value))}
    shown = ", ".join(f"{name} = {reprlib.repr(value)}" for name, value in told.items())
    return f"{line}, with {shown}" if shown else line

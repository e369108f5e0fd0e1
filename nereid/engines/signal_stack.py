"""Keeps a thread's alternate signal stack as it was: OpenVINO's processor plugin leaves a freed one registered.

Each compiled model puts one of its own in place and restores, when it is deleted, the one that it had found. Where models are
not deleted in reverse order, that is the freed stack of another one, and the thread's next signal ends the process (SIGSEGV).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """`stack_t` of sigaltstack(2)."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """What the thread has registered at the start is registered again at the end."""
    before = _Stack()
    _libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        _libc.sigaltstack(ctypes.byref(before), None)

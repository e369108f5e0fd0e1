"""Silences other libraries' progress bars and notices while they work: this project has its own."""

from __future__ import annotations

import importlib
import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stderr, redirect_stdout

_CHATTY = (
    "diffusers",
    "transformers",
    "torch.onnx",
    "onnxscript",
    "onnx_ir",
    "nncf",
    "onnxruntime.quantization.matmul_nbits_quantizer",
)
"""Loggers that tell of every step. The first two and NNCF's set their own level when they are first imported.

Levels of loggers alone: NNCF's own `set_log_level` also sets those of its handlers, for good, which may be another's."""


class _Shared:
    """A setting of the whole process, made by the first of those inside and taken back by the last, on whatever thread."""

    def __init__(self, setting: Callable[[], AbstractContextManager[None]]) -> None:
        self._setting = setting
        self._lock = threading.Lock()
        self._inside = 0
        self._kept = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._kept.enter_context(self._setting())
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._kept.close()


@contextmanager
def _errors_alone() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(action="ignore"), ExitStack() as stack:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(logging.ERROR)
            stack.callback(logger.setLevel, level)
        # ONNX Runtime's quantisation advises through the root. A level there would silence this project's own loggers, too; a
        # logger's filter is asked only for what is logged through itself.
        logging.root.addFilter(_is_error)
        stack.callback(logging.root.removeFilter, _is_error)
        yield


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def _nothing_printed() -> Iterator[None]:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


_LOGGED, _PRINTED = _Shared(_errors_alone), _Shared(_nothing_printed)


@contextmanager
def quiet(*, printing: bool = False) -> Iterator[None]:
    """Errors alone are logged, and no warnings given; with `printing`, nothing is printed either. Failures still raise."""
    for name in ("diffusers.utils", "transformers.utils"):
        importlib.import_module(name).logging.disable_progress_bar()
    with ExitStack() as stack:
        stack.enter_context(_LOGGED)
        if printing:
            stack.enter_context(_PRINTED)
        yield

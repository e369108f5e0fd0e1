"""Silences other libraries' progress bars and notices while they work: this project has its own."""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

_CHATTY = (
    "diffusers",
    "transformers",
    "torch.onnx",
    "onnxscript",
    "onnx_ir",
    "onnxruntime.quantization.matmul_nbits_quantizer",
    "root",
)
"""Loggers that tell of every step; ONNX Runtime's quantisation advises through the root. The first two set their own level when
they are first imported."""


@contextmanager
def quiet(*, printing: bool = False) -> Iterator[None]:
    """Errors alone are logged, and no warnings given; with `printing`, nothing is printed either. Failures still raise."""
    for name in ("diffusers.utils", "transformers.utils"):
        importlib.import_module(name).logging.disable_progress_bar()
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    with ExitStack() as stack:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(logging.ERROR)
            stack.callback(logger.setLevel, level)
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        if printing:
            stack.enter_context(redirect_stdout(io.StringIO()))
            stack.enter_context(redirect_stderr(io.StringIO()))
        yield

"""An OpenVINO file to a compiled graph on the processor; one that cannot be compiled is one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openvino as ov

from nereid.engines.signal_stack import kept_signal_stack


def compile_graph(core: Any, file: Path, wanted: Mapping[str, Any], edit: Callable[[Any], Any] = lambda graph: graph) -> Any:
    """Read, `edit` and compile with these properties. Raises ValueError where the file does not fit this OpenVINO."""
    with _load_failures(file):
        return compile_model(core, edit(core.read_model(file)), wanted)


def read_graph(core: Any, file: Path) -> Any:
    """Read without compiling. Raises ValueError where the file does not fit this OpenVINO."""
    with _load_failures(file):
        return core.read_model(file)


@contextmanager
def _load_failures(file: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ValueError(f"{file.name}: OpenVINO {ov.__version__} cannot load it: {last_line(error)}") from None


def compile_model(core: Any, graph: Any, wanted: Mapping[str, Any]) -> Any:
    """Compile what is in memory; raises RuntimeError where OpenVINO cannot."""
    with kept_signal_stack():
        return core.compile_model(graph, "CPU", dict(wanted))


def last_line(error: Exception) -> str:
    """OpenVINO puts places in its own source first and the reason last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

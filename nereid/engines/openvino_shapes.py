"""A small OpenVINO graph compiled anew for every shape it meets: kernels and memory are then planned for that shape.

Rows are padded to a few counts, so that few graphs are compiled: in the background where a graph
for more rows can do the work meanwhile. A lone row is never padded, because several libraries have another kernel for it. Graphs
that nobody uses make room for others. Compiled for another shape, a graph may give other bits than compiled for all of them;
export checks and measures what is served, which is this.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from nereid.engines.openvino_graph import compile_model, last_line, read_graph
from nereid.engines.served_model import Tensors
from nereid.engines.signal_stack import kept_signal_stack

log = logging.getLogger(__name__)

MOST_SHAPES = 16
"""Graphs kept at once, however small."""
FEWEST_SHAPES = 4
"""Where the memory does not hold so many, the graph is compiled once for all shapes."""

IDLE_SECONDS = 60.0
"""A graph that was not used for so long makes room for one that a larger one stands in for."""

_COPIES = 4
"""A compiled graph holds its weights about so many times, by measurement (bfloat16 and float32, graphs of 20 MB)."""
_BESIDES = 8 << 20
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)

Dimensions = tuple[tuple[int, ...], ...]
"""Of each input, without its rows."""


def shapes_kept(weights: int, memory: int) -> int:
    """How many graphs with weights of so many bytes fit into `memory` bytes, at most MOST_SHAPES; 0 where too few would."""
    count = min(MOST_SHAPES, memory // (_COPIES * weights + _BESIDES))
    return count if count >= FEWEST_SHAPES else 0


def kept_bytes(weights: int, memory: int) -> int:
    """What the kept graphs take in all, at most."""
    return min(memory, shapes_kept(weights, memory) * (_COPIES * weights + _BESIDES))


def padded_rows(rows: int) -> int:
    """The number of rows that a graph is compiled with for a call of `rows`."""
    return next((count for count in _ROWS if count >= rows), -(-rows // _ROWS[-1]) * _ROWS[-1])


_Key = tuple[Dimensions, int]


@dataclass(slots=True)
class _Compiled:
    request: Any
    bytes: int
    used: float = 0.0


class ShapedGraph:
    """Every input's first dimension is the rows, which must not depend on each other; used by one thread at a time."""

    def __init__(self, file: Path, wanted: Mapping[str, Any], memory: int) -> None:
        """Read the file; `memory` is what the compiled graphs may take, in bytes (of several, not of one that alone is larger).

        Raises ValueError where the file does not fit this OpenVINO.
        """
        self._core = ov.Core()
        self._graph = read_graph(self._core, file)
        self._wanted = dict(wanted)
        self._memory = memory
        self._kept: dict[_Key, _Compiled] = {}
        """Least recently used first."""
        self._coming: dict[_Key, Future[_Compiled]] = {}
        self._failed: set[_Key] = set()
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="compile-shape")

    @property
    def inputs(self) -> list[Any]:
        return list(self._graph.inputs)

    @property
    def outputs(self) -> list[Any]:
        return list(self._graph.outputs)

    @property
    def compiled(self) -> list[int]:
        """The rows of the graphs that are kept, least recently used first."""
        return [rows for _, rows in self._kept]

    def infer(self, inputs: Tensors, outputs: Sequence[str]) -> list[NDArray]:
        """One call; the results are copies. Raises ValueError or RuntimeError where the shapes do not fit the graph."""
        feeds = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        counts = {value.shape[0] if value.ndim else 0 for value in feeds.values()}
        if len(counts) != 1 or 0 in counts:
            raise ValueError(
                f"inputs of {' and '.join(map(str, sorted(counts)))} rows are not allowed; all must have equally many"
            )
        rows = counts.pop()
        dimensions = tuple(value.shape[1:] for value in feeds.values())
        self._collect()
        padded = self._rows_of(dimensions, rows, feeds)
        if padded > rows:
            feeds = {name: _pad(value, padded - rows) for name, value in feeds.items()}
        request = self._request(dimensions, padded, feeds)
        request.infer(feeds)
        return [np.array(request.get_tensor(name).data[:rows]) for name in outputs]

    def _rows_of(self, dimensions: Dimensions, rows: int, feeds: Tensors) -> int:
        """The usual number, or, until there is a graph for it, the next larger one of a graph that is there."""
        usual = padded_rows(rows)
        key = (dimensions, usual)
        larger = [have for of, have in self._kept if of == dimensions and have > usual]
        if key in self._kept or rows == 1 or not larger:
            return usual
        if key not in self._coming and key not in self._failed and (not self._is_full() or self._drop_idle()):
            shapes = {name: (usual, *value.shape[1:]) for name, value in feeds.items()}
            wanted = {name: np.zeros(shape, feeds[name].dtype) for name, shape in shapes.items()}
            self._coming[key] = self._compiler.submit(self._compile, wanted)
        return min(larger)

    def _collect(self) -> None:
        """Take over what was compiled in the background; what could not be is not tried again while this process lives."""
        for key in [key for key, future in self._coming.items() if future.done()]:
            try:
                compiled = self._coming.pop(key).result()
            except (RuntimeError, MemoryError) as error:
                log.warning("a graph for %d rows could not be compiled; a larger one goes on: %s", key[1], last_line(error))
                self._failed.add(key)
                continue
            self._make_room(key[0])
            self._keep(key, compiled)

    def _is_full(self) -> bool:
        kept = self._kept.values()
        most = max((compiled.bytes for compiled in kept), default=0)
        return len(kept) >= MOST_SHAPES or sum(compiled.bytes for compiled in kept) + most > self._memory

    def _drop_idle(self) -> bool:
        """Whether there is room again."""
        oldest = next(iter(self._kept))
        if self._kept[oldest].used > time.monotonic() - IDLE_SECONDS:
            return False
        self._drop(oldest)
        return not self._is_full()

    def _make_room(self, dimensions: Dimensions) -> None:
        while self._kept and self._is_full():
            # Of one size of pictures, the graph with most rows does the others' work as well.
            smaller = [other for other in self._kept if other[0] == dimensions]
            self._drop(min(smaller, key=lambda other: other[1]) if smaller else next(iter(self._kept)))

    def _drop(self, key: _Key) -> None:
        with kept_signal_stack():  # it may have been compiled by another thread, whose stack would be registered
            del self._kept[key]

    def _keep(self, key: _Key, compiled: _Compiled) -> None:
        """As the most recently used one."""
        compiled.used = time.monotonic()
        self._kept[key] = compiled

    def _request(self, dimensions: Dimensions, rows: int, feeds: Tensors) -> Any:
        key = (dimensions, rows)
        if (found := self._kept.pop(key, None)) is None:
            self._make_room(dimensions)
            found = self._compile(feeds)
        self._keep(key, found)
        return found.request

    def _compile(self, feeds: Tensors) -> _Compiled:
        before = _resident_bytes()
        graph = self._graph.clone()
        graph.reshape({name: ov.PartialShape(list(value.shape)) for name, value in feeds.items()})
        request = compile_model(self._core, graph, self._wanted).create_infer_request()
        request.infer(feeds)  # a graph's memory is taken by its first run
        return _Compiled(request, max(_resident_bytes() - before, 0))


def _pad(value: NDArray, rows: int) -> NDArray:
    return np.concatenate([value, np.zeros((rows, *value.shape[1:]), value.dtype)])


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

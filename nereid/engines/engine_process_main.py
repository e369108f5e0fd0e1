"""The process of an EngineProcess: loads its engines, runs each once for each shape it will see, and answers calls one by one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nereid.engines.channel import Message
from nereid.engines.digests import verify_model
from nereid.engines.engine_process import CALL, FAILED, MADE, Arrays
from nereid.engines.worker_main import Seat
from nereid.flow.errors import EngineError, first_line

log = logging.getLogger(__name__)

Run = Callable[[Arrays, Sequence[str]], dict[str, np.ndarray]]


def run(seat: Seat) -> None:
    """Serve the engine of `settings`: `file`, `outputs`, and `warm_up`, a list of calls, each of names with types and shapes;
    `others` has the same three of further ones, by name. `engine` (onnxruntime or openvino) and `threads` (0: its own choice) are
    of all. Raises ValueError where one does not load or run."""
    settings = seat.settings
    verify_model(Path(settings["file"]).parent.parent)  # here too: this process is started again and again, its model's once
    engines: dict[str, Run] = {}
    for name, its in {"": settings, **settings.get("others", {})}.items():
        engines[name] = load_engine(Path(its["file"]), str(settings["engine"]), int(settings["threads"]))
        for shapes in its["warm_up"]:
            _warm_up(seat.name, engines[name], shapes, list(its["outputs"]))
    seat.ready()
    # Read by this very thread: each call that is handed on to another waits for that one to wake.
    for message in seat.channel.receive():
        if message.kind != CALL:
            continue
        seat.busy = True
        seat.channel.send(_answer(seat.name, engines[message.body["graph"]], message))
        seat.ticks += 1
        seat.busy = False


def load_engine(file: Path, engine: str, threads: int) -> Run:
    """What runs the file on the processor; raises ValueError for one that the library does not take."""
    try:
        return _LOADERS[engine](file, threads)
    except ValueError:
        raise
    except Exception as error:  # the libraries' have no class in common
        raise ValueError(f"{file} cannot be loaded: {first_line(error)}") from None


def _load_onnx(file: Path, threads: int) -> Run:
    import onnxruntime as ort

    from nereid.engines.onnx_options import session_options

    # Threads that spin between two calls keep the processor from who makes the next one.
    options = session_options({}, {"intra_op_thread_count": str(threads), "session.intra_op.allow_spinning": "0"})
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def call(inputs: Arrays, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        return dict(zip(outputs, session.run(list(outputs), dict(inputs)), strict=True))

    return call


def _load_openvino(file: Path, threads: int) -> Run:
    from nereid.engines.openvino_model import load_graph

    # One graph for all shapes: to compile one for a shape that nobody has asked for before would hold up everybody's calls.
    graph = load_graph(file, {"INFERENCE_NUM_THREADS": str(threads)} if threads else {})
    return lambda inputs, outputs: dict(zip(outputs, graph.infer(inputs, outputs), strict=True))


_LOADERS: Mapping[str, Callable[[Path, int], Run]] = {"onnxruntime": _load_onnx, "openvino": _load_openvino}


def _warm_up(name: str, engine: Run, shapes: Mapping[str, Any], outputs: Sequence[str]) -> None:
    """A run of zeros: the first of a shape takes longer, and a mistake is told before anybody asks."""
    try:
        engine({key: np.zeros(shape, dtype) for key, (dtype, shape) in shapes.items()}, outputs)
    except Exception as error:
        raise ValueError(f"{name}: the engine does not run: {first_line(error)}") from None


def _answer(name: str, engine: Run, message: Message) -> Message:
    number = {"number": message.body["number"]}
    try:
        return Message(MADE, number, engine(message.arrays, message.body["outputs"]))
    except Exception as error:
        log.exception("a call has failed")
        return Message(FAILED, {**number, "error": EngineError(f"{name}: {first_line(error)}").wire()})

"""Speaks `triton_python_backend_utils`: tensors, answers, metrics; what a Python model calls of others is in calls.py.

Importable only inside a Python backend stub, as that is. Everything it hands on is numpy and plain Python.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]

from nereid.engines.digests import verify_model
from nereid.flow import request_ids
from nereid.flow.errors import EngineError, RequestError
from nereid.flow.fields import decode_text
from nereid.flow.metrics import Record
from nereid.flow.parameters import TENSOR_NAMES, TensorNames, read_tensor_names, refuse_unknown
from nereid.flow.request_ids import LOG_FORMAT, RequestIds
from nereid.flow.request_parameters import REQUEST_PARAMETERS
from nereid.flow.state_folder import set_loaded
from nereid.flow.unanswered import Unanswered
from nereid_protocol.errors import ErrorKind
from nereid_protocol.metric import Kind, Metric
from nereid_protocol.request_ids import request_id_of

log = logging.getLogger(__name__)

MODEL_CONTROL: Mapping[str, Callable[..., object]] = {
    "load_model": lambda **arguments: pb_utils.load_model(**arguments),  # not there yet while this module is imported
    "unload_model": lambda **arguments: pb_utils.unload_model(**arguments),
}
"""Triton's verbs for loading models, which work from inside whatever its interfaces to the outside refuse."""
_RELOAD_PARAMETER = "nereid.reload"
"""Set by the supervisor so that a config differs from the one before; no model's business."""

_unanswered = Unanswered()
"""Of this process, which serves one model: every late answer goes through here."""


@dataclass(frozen=True, slots=True)
class ModelArguments:
    """What Triton tells a Python model at its start, parsed."""

    name: str
    version_folder: Path
    config: Mapping[str, Any]
    parameters: Mapping[str, str]
    instance_kind: str
    device_id: int
    tensor_names: TensorNames

    @classmethod
    def parse(cls, args: Mapping[str, str], known: Collection[str] | None = None) -> ModelArguments:
        """Read the `args` of `initialize`; also sends this process's log to Triton's.

        `known` names all parameters that the model reads; None where it hands them to a reader that refuses the others.
        """
        global _unanswered
        _log_with_request_ids()
        _unanswered = Unanswered.of(args["model_name"])
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        parameters.pop(_RELOAD_PARAMETER, None)
        tensor_names = read_tensor_names(parameters)
        parameters.pop(TENSOR_NAMES, None)
        if known is not None:
            refuse_unknown(parameters, known)
        verify_model(Path(args["model_repository"]))
        return cls(
            name=args["model_name"],
            version_folder=Path(args["model_repository"]) / args["model_version"],
            config=config,
            parameters=parameters,
            instance_kind=args["model_instance_kind"],
            device_id=int(args["model_instance_device_id"] or 0),
            tensor_names=tensor_names,
        )

    @property
    def folder(self) -> Path:
        return self.version_folder.parent

    @property
    def max_batch_size(self) -> int:
        return int(self.config.get("max_batch_size", 0))


def tell_loaded(model: str) -> None:
    """Tell the supervisor that this process is ready to serve, as the last thing of `initialize`."""
    set_loaded(model)


def _log_with_request_ids() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RequestIds())
    logging.basicConfig(handlers=[handler], level=logging.INFO, format=LOG_FORMAT)


def handling(request: Any) -> AbstractContextManager[None]:
    """What happens inside is this request's work: logs, errors and calls of sibling models have its id."""
    return request_ids.handling(request_id_of(request.request_id()))


def read_inputs(request: Any) -> dict[str, np.ndarray]:
    """A request's inputs by name, copied: Triton takes its memory back before a late answer is sent."""
    return {tensor.name(): np.array(tensor.as_numpy()) for tensor in request.inputs()}


def read_inputs_and_parameters(request: Any) -> dict[str, np.ndarray]:
    """The inputs, and beside them, as JSON in `request_parameters`, what the request brings along (Triton's `generate` does)."""
    inputs, parameters = read_inputs(request), json.loads(request.parameters() or "{}")
    if request.request_id():
        parameters.pop("id", None)  # `generate` takes the request's id in the body, and hands it on as a parameter, too
    if parameters:
        inputs[REQUEST_PARAMETERS] = np.array([json.dumps(parameters).encode()], np.object_)
    return inputs


def read_texts(inputs: Mapping[str, np.ndarray], name: str, default: Sequence[str]) -> list[str]:
    """A BYTES input as text, one a row; raises InvalidRequestError where it is not UTF-8."""
    if name not in inputs:
        return list(default)
    return [decode_text(name, value) for value in inputs[name].reshape(-1)]


def response(outputs: Mapping[str, np.ndarray], wanted: Iterable[str] | None = None) -> Any:
    """An answer with these outputs, or with those of them that the caller asked for."""
    names = set(outputs) if wanted is None else set(wanted)
    tensors = [pb_utils.Tensor(name, value) for name, value in outputs.items() if name in names]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def error_response(error: Exception) -> Any:
    """The one place where exceptions become Triton's errors; internals go to the log, and the caller gets their id there."""
    if not isinstance(error, RequestError):
        log.error("the request failed by an unexpected error", exc_info=error)
        error = EngineError("internal error; see the server's log")
    own = request_ids.current()
    if error.kind is ErrorKind.ENGINE and own and own not in str(error):
        log.warning("%s", error)
        error = EngineError(f"{error} (request {own})", error.field)
    code = getattr(pb_utils.TritonError, error.status.value)
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(error.wire(), code))


def answer_of(request: Any, result: Mapping[str, np.ndarray] | Exception) -> Any:
    """One request's answer, where several were worked on together."""
    with handling(request):
        return error_response(result) if isinstance(result, Exception) else response(result)


def late_reply(request: Any) -> Callable[[Mapping[str, np.ndarray] | None, RequestError | None], None]:
    """An answer to give later, once, from any thread."""
    sender = request.get_response_sender()
    wanted, request_id = list(request.requested_output_names()), request_ids.current()
    answered = _unanswered.hold()

    def reply(outputs: Mapping[str, np.ndarray] | None, error: RequestError | None) -> None:
        with request_ids.handling(request_id):
            answer = response(outputs or {}, wanted) if error is None else error_response(error)
        sender.send(answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        answered()

    return reply


@dataclass(frozen=True, slots=True)
class Stream:
    """A decoupled request's answers."""

    sender: Any
    request_id: str
    answered: Callable[[], None]

    @classmethod
    def of(cls, request: Any) -> Stream:
        return cls(request.get_response_sender(), request_ids.current(), _unanswered.hold())

    def send(self, outputs: Mapping[str, np.ndarray]) -> None:
        self.sender.send(response(outputs))

    def close(self, error: Exception | None = None) -> None:
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if error is None:
            self.sender.send(flags=final)
        else:
            with request_ids.handling(self.request_id):
                answer = error_response(error)
            self.sender.send(answer, flags=final)
        self.answered()

    def is_cancelled(self) -> bool:
        return bool(self.sender.is_cancelled())


def metric_sink(metrics: Iterable[Metric], model: str) -> Record:
    """Registers the families with Triton, so that they appear on its metrics port, each labelled with the model's name."""
    kinds = {
        Kind.COUNTER: pb_utils.MetricFamily.COUNTER,
        Kind.GAUGE: pb_utils.MetricFamily.GAUGE,
        Kind.HISTOGRAM: pb_utils.MetricFamily.HISTOGRAM,
    }
    families = {
        metric: pb_utils.MetricFamily(name=metric.name, description=metric.description, kind=kinds[metric.kind])
        for metric in metrics
    }
    series: dict[tuple[Metric, tuple[tuple[str, str], ...]], Any] = {}

    def find(metric: Metric, labels: Mapping[str, str]) -> Any:
        key = (metric, tuple(sorted(labels.items())))
        if key not in series:
            arguments: dict[str, Any] = {"labels": {"model": model, **labels}}
            if metric.kind is Kind.HISTOGRAM:
                arguments["buckets"] = list(metric.buckets)
            series[key] = families[metric].Metric(**arguments)
        return series[key]

    def record(metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        found = find(metric, labels)
        match metric.kind:
            case Kind.COUNTER:
                found.increment(value)
            case Kind.GAUGE:
                found.set(value)
            case Kind.HISTOGRAM:
                found.observe(value)

    for metric in metrics:  # label-free series stand at zero from the start, so that rates have a first point
        if not metric.labelled:
            find(metric, {})
    return record

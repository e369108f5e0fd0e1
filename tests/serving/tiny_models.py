"""A repository of tiny models for a real Triton: `echo` answers at once, `late` after as many milliseconds as its input
says, `both` is an ensemble of the two, `other` is a pipeline of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient

_CONFIG = """name: "{name}" backend: "python" max_batch_size: 0
input [ {{ name: "x" data_type: TYPE_INT32 dims: [ 1 ] }} ]
output [ {{ name: "y" data_type: TYPE_INT32 dims: [ 1 ] }} ]
instance_group [ {{ {group}count: 1 kind: KIND_CPU }} ]
{more}
"""
_ENSEMBLE = """name: "both" platform: "ensemble" max_batch_size: 0
input [ { name: "x" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_INT32 dims: [ 1 ] } ]
ensemble_scheduling { step [
  { model_name: "late" model_version: -1 input_map { key: "x" value: "x" } output_map { key: "y" value: "m" } },
  { model_name: "echo" model_version: -1 input_map { key: "x" value: "m" } output_map { key: "y" value: "y" } } ] }
"""
_ECHO = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", request.inputs()[0].as_numpy())]) for request in requests]
"""
# Says how many requests it holds, as the models of this project do.
_LATE = """
import threading
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        family = pb_utils.MetricFamily(name="nereid_test_active_requests", description="x", kind=pb_utils.MetricFamily.GAUGE)
        self._family, self._gauge = family, family.Metric(labels={"model": args["model_name"]})
        self._gauge.set(0)

    def execute(self, requests):
        for request in requests:
            value = request.inputs()[0].as_numpy().copy()
            self._gauge.increment(1)
            threading.Timer(float(value[0]) / 1000, self._answer, (request.get_response_sender(), value)).start()

    def _answer(self, sender, value):
        self._gauge.increment(-1)
        answer = pb_utils.InferenceResponse([pb_utils.Tensor("y", value)])
        sender.send(answer, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
LATE = 'parameters { key: "restart_on_death" value: { string_value: "true" } }'


def write_repository(folder: Path) -> Path:
    """`echo`'s instance group has a name of its own, with an underscore and a number in it."""
    for name, source, group, more in (
        ("echo", _ECHO, 'name: "a_named_group_7" ', ""),
        ("late", _LATE, "", LATE),
        ("other", _LATE, "", LATE),
    ):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(_CONFIG.format(name=name, group=group, more=more))
        (folder / name / "1" / "model.py").write_text(source)
    (folder / "both" / "1").mkdir(parents=True)
    (folder / "both" / "config.pbtxt").write_text(_ENSEMBLE)
    return folder


def ask(client: Any, model: str, value: int, timeout: float = 60) -> int:
    x = grpcclient.InferInput("x", [1], "INT32")
    x.set_data_from_numpy(np.array([value], np.int32))
    return int(client.infer(model, [x], client_timeout=timeout).as_numpy("y")[0])

"""A stand-in for Triton's C++ OpenVINO backend: the same config.pbtxt, the same demands on it, served from Python.

Honours `default_model_filename`, `model_warmup`, the fixed batch of `max_batch_size`, KIND_CPU, and the parameters
`INFERENCE_NUM_THREADS`, `COMPILATION_NUM_THREADS`, `HINT_BF16`, `NUM_STREAMS`, `PERFORMANCE_HINT`, `TARGET_DEVICE` (CPU) and
`ENABLE_BATCH_PADDING`; others are refused. Unlike the C++ backend it computes in float32 unless `HINT_BF16` says otherwise.
"""

from nereid.engines.openvino_model import OpenVinoModel
from nereid.engines.priority import give_way
from nereid.engines.served_model import warm_up
from nereid.triton import bridge


class TritonPythonModel:
    """Serves any model whose config says `backend: "openvino"`."""

    def initialize(self, args):
        give_way()
        arguments = bridge.ModelArguments.parse(args)
        self._model = OpenVinoModel.load(arguments)
        warm_up(self._model, arguments)
        bridge.tell_loaded(arguments.name)

    def execute(self, requests):
        results = self._model.run([bridge.read_inputs(request) for request in requests])
        return [bridge.answer_of(request, result) for request, result in zip(requests, results, strict=True)]

"""A stand-in for Triton's C++ PyTorch backend and its AOTInductor packages: the same config.pbtxt, served from Python.

Honours `platform` (`torch_aoti`), `default_model_filename`, `model_warmup`, names by place (`INPUT__0`, `OUTPUT__0`), KIND_CPU,
and the parameters `INTRA_OP_THREAD_COUNT`, `INTER_OP_THREAD_COUNT` and `INFERENCE_MODE`; others are refused. Unlike the C++
backend it refuses packages of another PyTorch or processor, and inputs whose shapes do not fit each other.
"""

from nereid.engines.priority import give_way
from nereid.engines.served_model import warm_up
from nereid.engines.torch_model import TorchModel
from nereid.triton import bridge


class TritonPythonModel:
    """Serves any model whose config says `backend: "pytorch"` and `platform: "torch_aoti"`."""

    def initialize(self, args):
        give_way()
        arguments = bridge.ModelArguments.parse(args)
        self._model = TorchModel.load(arguments)
        warm_up(self._model, arguments)
        bridge.tell_loaded(arguments.name)

    def execute(self, requests):
        results = self._model.run([bridge.read_inputs(request) for request in requests])
        return [bridge.answer_of(request, result) for request, result in zip(requests, results, strict=True)]

"""A stand-in for Triton's C++ PyTorch backend and its AOTInductor packages: the same config.pbtxt, served from Python.

Honours `platform` (`torch_aoti`), `default_model_filename`, `model_warmup`, names by place (`INPUT__0`, `OUTPUT__0`), KIND_CPU,
and the parameters `INTRA_OP_THREAD_COUNT`, `INTER_OP_THREAD_COUNT` and `INFERENCE_MODE`; others are refused. Unlike the C++
backend it refuses packages of another PyTorch or processor, and inputs whose shapes do not fit each other.
"""

from nereid.engines.torch_model import TorchModel
from nereid.triton.stand_in import StandIn


class TritonPythonModel(StandIn):
    """Serves any model whose config says `backend: "pytorch"` and `platform: "torch_aoti"`."""

    engine = TorchModel

"""A stand-in for Triton's C++ ONNX Runtime backend: the same config.pbtxt, the same demands on it, served from Python.

Honours `default_model_filename`, `model_warmup`, `optimization.graph.level`, CUDA and TensorRT execution accelerators (and
TensorRT for RTX, which Triton's own backend lacks), instance kinds, and the parameters `intra_op_thread_count`,
`inter_op_thread_count`, `execution_mode`, `enable_mem_arena`, `enable_mem_pattern`, `memory.enable_memory_arena_shrinkage` and
known `session.*`; others are refused. On the processor, runs that need much memory give it back afterwards. Requests that the
dynamic batcher delivers together run as one batch.
"""

from nereid.engines.onnx_session import OnnxModel
from nereid.triton.stand_in import StandIn


class TritonPythonModel(StandIn):
    """Serves any model whose config says `backend: "onnxruntime"`."""

    engine = OnnxModel

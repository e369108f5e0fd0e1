"""A stand-in for Triton's C++ OpenVINO backend: the same config.pbtxt, the same demands on it, served from Python.

Honours `default_model_filename`, `model_warmup`, the fixed batch of `max_batch_size`, KIND_CPU, and the parameters
`INFERENCE_NUM_THREADS`, `COMPILATION_NUM_THREADS`, `HINT_BF16`, `NUM_STREAMS`, `PERFORMANCE_HINT`, `TARGET_DEVICE` (CPU) and
`ENABLE_BATCH_PADDING`; others are refused. Unlike the C++ backend it computes in float32 unless `HINT_BF16` says otherwise.
"""

from nereid.engines.openvino_model import OpenVinoModel
from nereid.triton.stand_in import StandIn


class TritonPythonModel(StandIn):
    """Serves any model whose config says `backend: "openvino"`."""

    engine = OpenVinoModel

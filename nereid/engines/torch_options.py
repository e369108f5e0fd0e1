"""A config.pbtxt's parameters to PyTorch's settings, in the terms of Triton's own backend; unknown ones are refused.

Of what Triton's C++ backend knows, refused here is what means nothing to a package on the processor (`DISABLE_CUDNN`,
`ENABLE_CACHE_CLEANING`, and the switches of TorchScript's executor), and `ENABLE_WEIGHT_SHARING`: instances are processes here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nereid.flow.parameters import refuse_unknown

_THREADS = ("INTRA_OP_THREAD_COUNT", "INTER_OP_THREAD_COUNT")
_INFERENCE_MODE = "INFERENCE_MODE"


@dataclass(frozen=True, slots=True)
class TorchOptions:
    """Threads of an operator and threads for operators (0: PyTorch's own number), and whether autograd is switched off."""

    intra_op_threads: int
    inter_op_threads: int
    inference_mode: bool

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> TorchOptions:
        """Raise ValueError naming the parameter that is not known or has no such value."""
        refuse_unknown(parameters, (*_THREADS, _INFERENCE_MODE))
        intra, inter = (_threads(key, parameters[key]) if key in parameters else 0 for key in _THREADS)
        mode = parameters.get(_INFERENCE_MODE, "true").lower()
        if mode not in ("true", "false"):
            raise ValueError(f"parameter {_INFERENCE_MODE}: {mode!r} is not allowed; it must be true or false")
        return cls(intra, inter, mode == "true")


def _threads(key: str, value: str) -> int:
    if not value.isdecimal() or not int(value):
        raise ValueError(f"parameter {key}: {value!r} is not allowed; it must be a whole number above 0")
    return int(value)

"""A config.pbtxt's parameters to ONNX Runtime's session options, in the terms of Triton's own backend; unknown ones are refused.

Triton's C++ backend ignores what it does not know, and of the session's entries reads one; a misspelled name would change
nothing there without a word, so that it is refused here, where configs are tried first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import onnxruntime as ort

from nereid.flow.parameters import refuse_unknown

SHRINKAGE = "memory.enable_memory_arena_shrinkage"
"""The run's entry that gives the arena's free memory back; as a parameter it holds for every run."""

_FLAG = ("0", "1")
_PLAIN = ("intra_op_thread_count", "inter_op_thread_count", "execution_mode", "enable_mem_arena", "enable_mem_pattern", SHRINKAGE)
_SESSION: Mapping[str, tuple[str, ...]] = {
    "session.allow_released_opsets_only": _FLAG,
    "session.disable_aot_function_inlining": _FLAG,
    "session.disable_cpu_ep_fallback": _FLAG,
    "session.disable_double_qdq_remover": _FLAG,
    "session.disable_prepacking": _FLAG,
    "session.disable_quant_qdq": _FLAG,
    "session.dynamic_block_base": (),
    "session.enable_dq_matmulnbits_fusion": _FLAG,
    "session.enable_quant_qdq_cleanup": _FLAG,
    "session.force_spinning_stop": _FLAG,
    "session.graph_optimizations_loop_level": ("0", "1", "2"),
    "session.inter_op.allow_spinning": _FLAG,
    "session.intra_op.allow_spinning": _FLAG,
    "session.intra_op_thread_affinities": (),
    "session.qdqisint8allowed": _FLAG,
    "session.set_denormal_as_zero": _FLAG,
    "session.strict_shape_type_inference": _FLAG,
    "session.use_device_allocator_for_initializers": _FLAG,
    "session.use_env_allocators": _FLAG,
    "session.x64quantprecision": _FLAG,
}
"""Entries of ONNX Runtime's session that a served model may set, and their values; any where none are named."""


def session_options(config: Mapping[str, Any], parameters: Mapping[str, str]) -> ort.SessionOptions:
    """What the config asks of the session; raises ValueError naming what is not known or has no such value."""
    refuse_unknown(parameters, (*_PLAIN, *_SESSION))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = {
        -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }.get(level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    for key, value in parameters.items():
        match key:
            case "intra_op_thread_count":
                options.intra_op_num_threads = _count(key, value)
            case "inter_op_thread_count":
                options.inter_op_num_threads = _count(key, value)
            case "execution_mode":
                parallel = _flag(key, value)
                options.execution_mode = ort.ExecutionMode.ORT_PARALLEL if parallel else ort.ExecutionMode.ORT_SEQUENTIAL
            case "enable_mem_arena":
                options.enable_cpu_mem_arena = _flag(key, value)
            case "enable_mem_pattern":
                options.enable_mem_pattern = _flag(key, value)
            case _ if key == SHRINKAGE:
                if not re.fullmatch(r"(cpu|gpu):\d+(;(cpu|gpu):\d+)*", value):
                    raise ValueError(f"parameter {key}: {value!r} is not allowed; it must be devices such as cpu:0;gpu:0")
            case _ if key in _SESSION:
                if _SESSION[key] and value not in _SESSION[key]:
                    raise ValueError(f"parameter {key}: {value!r} is not allowed; it must be one of {', '.join(_SESSION[key])}")
                options.add_session_config_entry(key, value)
    return options


def _count(key: str, value: str) -> int:
    if not value.isdecimal():
        raise ValueError(f"parameter {key}: {value!r} is not allowed; it must be a whole number, 0 for ONNX Runtime's choice")
    return int(value)


def _flag(key: str, value: str) -> bool:
    if value not in _FLAG:
        raise ValueError(f"parameter {key}: {value!r} is not allowed; it must be 0 or 1")
    return value == "1"

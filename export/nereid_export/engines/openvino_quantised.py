"""An OpenVINO graph to a quantised one, by NNCF, which is asked to send no telemetry."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from typing import Any

from nereid.engines.signal_stack import kept_signal_stack
from nereid_export.engines.check import Inputs, Run
from nereid_export.errors import ExportError
from nereid_export.sensitivity import dotted
from nereid_export.silence import quiet

_COMPUTING = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul")
BLOCK_SIZE = 64
"""Weights of a matrix's row that share a scale in 4 bits."""


def import_nncf() -> Any:
    """NNCF without telemetry and progress bars; raises ExportError with what to install."""
    os.environ["NNCF_CI"] = "1"  # read when it is imported: no telemetry
    try:
        with quiet(printing=True):
            import nncf
    except ImportError:
        raise ExportError(
            "--precision: int8 and weights in int8 or int4 with --engine openvino need NNCF; "
            "install it with `pip install './export[nncf]'`"
        ) from None
    nncf.set_log_level(logging.ERROR)
    return nncf


def static(graph: Any, calls: Sequence[Inputs]) -> Any:
    """Convolutions and products in int8 by the ranges of these calls; weights are still float32, rounded when they are read."""
    nncf = import_nncf()
    with quiet(printing=True), kept_signal_stack():
        return nncf.quantize(
            graph,
            nncf.Dataset([dict(call) for call in calls]),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calls),
            advanced_parameters=nncf.AdvancedQuantizationParameters(backend_params={"compress_weights": False}),
        )


class FakeQuantizeGraph:
    """A graph that `static` has made, whose activations can be put back (`sensitivity.QuantisedGraph`)."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    @property
    def rounded(self) -> list[str]:
        return [_place(node) for node in _roundings(self._graph)]

    def without(self, names: Collection[str]) -> Run:
        import openvino as ov

        from nereid.engines.openvino_graph import compile_model
        from nereid.engines.openvino_options import properties

        return run_compiled(compile_model(ov.Core(), self.edited(names), properties({})))

    def edited(self, names: Collection[str]) -> Any:
        """The graph with these activations as they were, and weights in int8."""
        from openvino._offline_transformations import compress_quantize_weights_transformation

        made = self._graph.clone()
        for node in _roundings(made):
            if _place(node) in names:
                node.output(0).replace(node.input_value(0))
        compress_quantize_weights_transformation(made)
        return made


def run_compiled(compiled: Any) -> Run:
    """A compiled graph, as export runs it."""
    from nereid.engines.openvino_model import infer

    request = compiled.create_infer_request()
    return lambda inputs, outputs: dict(zip(outputs, infer(request, inputs, outputs), strict=True))


def _roundings(graph: Any) -> list[Any]:
    """Roundings of activations; those of weights have a constant before them."""
    return [
        node
        for node in graph.get_ordered_ops()
        if node.get_type_name() == "FakeQuantize" and node.input_value(0).get_node().get_type_name() != "Constant"
    ]


def _place(node: Any) -> str:
    """The layer that reads what is rounded, as a path; what other operations pass on is followed to the first that computes."""
    seen = [node]
    for passed in seen:
        for target in passed.output(0).get_target_inputs():
            reader = target.get_node()
            if reader.get_type_name() in _COMPUTING:
                return dotted(reader.get_friendly_name().removesuffix("/WithoutBiases"))
            seen.append(reader)
    return dotted(node.get_friendly_name().rpartition("/fq_")[0])  # NNCF names a rounding after a layer beside it


def weights(graph: Any, bits: int) -> Any:
    """Weights in 8 bits, a scale a channel; with 4 bits the matrices in 4, a scale a block, and all others in 8."""
    nncf = import_nncf()
    modes = nncf.CompressWeightsMode
    how: dict[str, Any] = {"mode": modes.INT8_SYM}
    if bits == 4:
        # Rows that blocks do not divide have smaller ones.
        fallback = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
        how = {"mode": modes.INT4_SYM, "group_size": BLOCK_SIZE, "all_layers": True, "advanced_parameters": fallback}
    with quiet(printing=True), kept_signal_stack():
        return nncf.compress_weights(graph, **how)

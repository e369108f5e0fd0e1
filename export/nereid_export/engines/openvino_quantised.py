"""An OpenVINO graph to a quantised one, by NNCF, which is asked to send no telemetry."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nereid.engines.signal_stack import kept_signal_stack
from nereid_export.engines.check import Inputs, Run
from nereid_export.errors import ExportError
from nereid_export.sensitivity import dotted
from nereid_export.silence import quiet

if TYPE_CHECKING:
    from nereid.engines.openvino_model import Graph

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
            "install it with `pip install -e './export[nncf]'`"
        ) from None
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
            # Biases that make up for roundings would be wrong in layers that are put back.
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                disable_bias_correction=True, backend_params={"compress_weights": False}
            ),
        )


class FakeQuantizeGraph:
    """A graph that `static` has made, whose layers can be put back (`sensitivity.QuantisedGraph`)."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    @property
    def rounded(self) -> list[str]:
        return [_place(node) for node in _roundings(self._graph)]

    def without(self, names: Collection[str]) -> Run:
        import openvino as ov

        from nereid.engines.openvino_graph import compile_model
        from nereid.engines.openvino_model import OpenGraph
        from nereid.engines.openvino_options import properties

        return run_graph(OpenGraph(compile_model(ov.Core(), self.edited(names), properties({}))))

    def edited(self, names: Collection[str]) -> Any:
        """The graph with these activations as they were, and the weights of layers that no rounding feeds; others in int8."""
        from openvino._offline_transformations import compress_quantize_weights_transformation

        made = self._graph.clone()
        for node in [node for node in _roundings(made) if _place(node) in names]:  # all named before the first is gone
            node.output(0).replace(node.input_value(0))
        fed = {layer.get_friendly_name() for node in _roundings(made) for layer in _layers(node)}
        for node in _roundings(made, constant=True):
            if not any(layer.get_friendly_name() in fed for layer in _layers(node)):
                node.output(0).replace(node.input_value(0))
        compress_quantize_weights_transformation(made)
        return made


def run_graph(graph: Graph) -> Run:
    """A graph, as export runs it."""
    return lambda inputs, outputs: dict(zip(outputs, graph.infer(inputs, outputs), strict=True))


def _roundings(graph: Any, *, constant: bool = False) -> list[Any]:
    """Roundings of activations, or those of weights, which have a constant before them."""
    return [
        node
        for node in graph.get_ordered_ops()
        if node.get_type_name() == "FakeQuantize" and (node.input_value(0).get_node().get_type_name() == "Constant") == constant
    ]


def _place(node: Any) -> str:
    """A layer that reads what is rounded, as a path: of several the first by name, since a graph has its readers in no order."""
    names = sorted(layer.get_friendly_name() for layer in _layers(node))
    if not names:
        return dotted(node.get_friendly_name().rpartition("/fq_")[0])  # NNCF names a rounding after a layer beside it
    return dotted(names[0].removesuffix("/WithoutBiases"))


def _layers(node: Any) -> Iterator[Any]:
    """Those that read a rounding's output; what other operations pass on is followed to those that compute."""
    seen, names = [node], set()
    for passed in seen:
        for target in passed.output(0).get_target_inputs():
            reader = target.get_node()
            if reader.get_friendly_name() in names:
                continue
            names.add(reader.get_friendly_name())
            if reader.get_type_name() == "FakeQuantize":
                continue
            if reader.get_type_name() in _COMPUTING:
                yield reader
            else:
                seen.append(reader)


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

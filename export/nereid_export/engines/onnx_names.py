"""Names an ONNX graph's nodes and tensors by the modules that they come from, as the tracing exporter does by itself."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import onnx

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the newer exporter keeps the modules around a node, outermost first and the node itself last."""

_NO_MODULE = "_empty_nn_module_stack"
"""What torch writes where it knows of none."""


def name_by_module(file: Path) -> None:
    """Rename in place: `node_conv2d_3` of `unet.conv_in` becomes `/unet/conv_in/Conv`; weights and graph outputs keep theirs.

    What is put back into higher precision, and named in the manifest, is found by these names.
    """
    model = onnx.load(str(file), load_external_data=False)
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    counts: Counter[str] = Counter()
    renamed: dict[str, str] = {}
    for node in model.graph.node:
        place = next((_module(item.value) for item in node.metadata_props if item.key == _SCOPES), None)
        if not place:
            continue
        node.name = _unique(f"/{place.replace('.', '/')}/{node.op_type}", counts)
        for index, output in enumerate(node.output):
            if output and output not in kept:
                renamed[output] = f"{node.name}_output_{index}"
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = renamed.get(name, name)
    for value in model.graph.value_info:
        value.name = renamed.get(value.name, value.name)
    onnx.save(model, str(file))


def _module(scopes: str) -> str:
    """The path of the innermost module; torch writes some of its steps as look-ups in `_modules`."""
    found = [scope for scope in ast.literal_eval(scopes) if not scope.startswith(_NO_MODULE)]
    plain = re.sub(r"\.__dict__\['_modules'\]|\._modules(?=\[)", "", found[-2] if len(found) > 1 else "")
    return re.sub(r"\['([^']*)'\]", r".\1", plain)


def _unique(name: str, counts: Counter[str]) -> str:
    counts[name] += 1
    return name if counts[name] == 1 else f"{name}_{counts[name] - 1}"

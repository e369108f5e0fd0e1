"""What tests look at in ONNX files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx


def operators(file: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(str(file), load_external_data=False).graph.node)

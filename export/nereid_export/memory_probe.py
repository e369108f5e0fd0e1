"""A child process that runs one ONNX file and prints what it held: `python -m nereid_export.memory_probe FILE RUNS`.

RUNS is JSON: a list of runs, each a list of [input's name, shape, numpy dtype]. Prints one line of JSON: the bytes with the
engine loaded, and those that each run needed besides.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import onnxruntime as ort

from nereid.engines.arena import Arena, peak_bytes, reset_peak
from nereid.engines.onnx_options import session_options

TIMES = 2
"""The first run of some shapes and those after it use memory differently; the larger figure counts."""


def main(file: str, runs: str) -> None:
    session = ort.InferenceSession(file, session_options({}, {}), providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    arena = Arena(devices="cpu:0")  # every run begins with what the engine itself holds
    base, needed = reset_peak(), []
    for inputs in json.loads(runs):
        feeds = {name: np.zeros(shape, dtype) for name, shape, dtype in inputs}
        most = 0
        for _ in range(TIMES):
            before = reset_peak()
            arena.run(session, outputs, feeds)
            most = max(most, peak_bytes() - before)
        needed.append(most)
    print(json.dumps({"base": base, "runs": needed}))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A child process that runs one engine and prints what it held: `python -m nereid_export.memory_probe PROBE FILE RUNS`.

PROBE is `module:function`, or `module:function:argument`, of what loads a FILE and gives a function that runs it, whose
`kept_bytes`, where it has some, count as loaded. RUNS is JSON: a list of runs, each a list of
[input's name, shape, numpy dtype]. Prints one line of JSON: the bytes with the engine loaded, and those that each run needed
besides.
"""

from __future__ import annotations

import importlib
import json
import sys

import numpy as np

from nereid.engines.arena import peak_bytes, reset_peak

TIMES = 2
"""The first run of some shapes and those after it use memory differently; the larger figure counts."""


def main(probe: str, file: str, runs: str) -> None:
    module, function, *argument = probe.split(":", 2)
    run = getattr(importlib.import_module(module), function)(file, *argument)
    base, needed = reset_peak() + getattr(run, "kept_bytes", 0), []
    for inputs in json.loads(runs):
        feeds = {name: np.zeros(shape, dtype) for name, shape, dtype in inputs}
        most = 0
        for _ in range(TIMES):
            before = reset_peak()
            run(feeds)
            most = max(most, peak_bytes() - before)
        needed.append(most)
    print(json.dumps({"base": base, "runs": needed}))


if __name__ == "__main__":
    main(*sys.argv[1:])

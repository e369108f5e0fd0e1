"""The end error of an engine of the UNet: how far the latents that whole runs end with are from PyTorch's.

Errors of single calls say little of the pictures: some cancel from step to step, others push every step the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.settings import Pipeline
from nereid.flow.errors import RequestError
from nereid_export.drawing import Drawer, denoised
from nereid_export.engines.check import Run
from nereid_export.errors import ExportError
from nereid_export.kept_arrays import read_arrays, write_arrays

RUNS = 8
"""Runs that the end error is measured on."""
STEPS = 10
"""Steps of each, but for few-step models, which know only their own: half of the usual number shows the same error."""


@dataclass(frozen=True, slots=True, eq=False)
class WholeRuns:
    """Requests of one picture each, with embedded prompts, and the latents (float32 C x H x W) that PyTorch ends with."""

    pipeline: Pipeline
    requests: Sequence[Mapping[str, NDArray]]
    latents: Sequence[NDArray[np.float32]]

    @classmethod
    def by(cls, drawer: Drawer, prompts: Sequence[str]) -> WholeRuns:
        """Of these prompts in turn, each time with another seed; raises ExportError where a run has no end."""
        steps = drawer.pipeline.default_steps if drawer.pipeline.few_step else STEPS
        requests = [drawer.request([prompts[seed % len(prompts)]], [seed], steps=steps) for seed in range(RUNS)]
        try:
            return cls(drawer.pipeline, requests, [drawer.denoise(request)[0] for request in requests])
        except RequestError as error:
            raise ExportError(f"a run of {steps} steps cannot be finished with PyTorch: {error}") from None

    def error(self, run: Run, *, first: int | None = None) -> float:
        """Root mean square of the relative errors of finished latents, over the first runs or all; NaN where one has none."""
        squares = []
        for request, theirs in zip(self.requests[:first], self.latents[:first], strict=True):
            try:
                (ours,) = denoised(self.pipeline, request, lambda call: run(call.inputs, call.outputs))
            except RequestError:
                return float("nan")
            squares.append(float(((ours - theirs) ** 2).sum() / (theirs**2).sum()))
        return float(np.mean(squares) ** 0.5)

    def write(self, file: Path) -> None:
        """Whole or not at all."""
        arrays = {f"{index} {name}": value for index, request in enumerate(self.requests) for name, value in request.items()}
        write_arrays(file, {"latents": np.stack(self.latents), **arrays})

    @classmethod
    def read(cls, file: Path, pipeline: Pipeline) -> WholeRuns | None:
        """None where there is no such file, or it is not as it was written."""
        if (arrays := read_arrays(file)) is None:
            return None
        latents = list(arrays.pop("latents"))
        requests: list[dict[str, NDArray]] = [{} for _ in latents]
        for key, value in arrays.items():
            index, _, name = key.partition(" ")
            requests[int(index)][name] = value
        return cls(pipeline, requests, latents)

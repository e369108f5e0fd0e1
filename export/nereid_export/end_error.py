"""The end error of an engine of the UNet: how far the latents that whole runs end with are from PyTorch's.

Errors of single calls say little of the pictures: some cancel from step to step, others push every step the same way.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from nereid.diffusion.settings import Pipeline
from nereid.flow.errors import RequestError
from nereid_export.drawing import Drawer, denoised
from nereid_export.engines.check import Run
from nereid_export.errors import ExportError

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
                (ours,) = denoised(self.pipeline, request, lambda inputs: run(inputs, ["out_sample"])["out_sample"])
            except RequestError:
                return float("nan")
            squares.append(float(((ours - theirs) ** 2).sum() / (theirs**2).sum()))
        return float(np.mean(squares) ** 0.5)

    def write(self, file: Path) -> None:
        """Whole or not at all."""
        arrays = {f"{index} {name}": value for index, request in enumerate(self.requests) for name, value in request.items()}
        beside = file.with_suffix(".new")
        with beside.open("wb") as stream:
            np.savez(stream, latents=np.stack(self.latents), **arrays)
        beside.replace(file)

    @classmethod
    def read(cls, file: Path, pipeline: Pipeline) -> WholeRuns | None:
        """None where there is no such file, or its sums say that it is not as it was written."""
        try:
            with np.load(file, allow_pickle=False) as arrays:
                latents = list(arrays["latents"])
                requests: list[dict[str, NDArray]] = [{} for _ in latents]
                for key in arrays.files:
                    index, _, name = key.partition(" ")
                    if name:
                        requests[int(index)][name] = arrays[key]
                return cls(pipeline, requests, latents)
        except (OSError, EOFError, ValueError, KeyError, IndexError, BadZipFile, zlib.error):
            return None

"""What is left of an engine's errors at the end of whole runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
from torch import nn

from nereid_export.checkpoint import Checkpoint
from nereid_export.components import Component
from nereid_export.drawing import Drawer
from nereid_export.end_error import RUNS, STEPS, WholeRuns
from nereid_export.engines.base import Samples
from nereid_export.engines.check import Inputs, Reference, Run, refuse_end_above_bound
from nereid_export.engines.precision import END_ERROR_BOUND, Precision
from nereid_export.errors import ExportError
from nereid_export.quantisation import Errors, put_back

pytestmark = pytest.mark.torch


def component(name: str) -> Component:
    return Component(name=name, source=name, inputs=(), outputs=(), load=nn.Identity, example={}, checks=())


@pytest.fixture(scope="module")
def drawer(checkpoints: dict[str, Path]) -> Drawer:
    return Drawer.by_torch(Checkpoint.open(checkpoints["sd"]))


@pytest.fixture(scope="module")
def runs(drawer: Drawer) -> WholeRuns:
    return WholeRuns.by(drawer, ("red fish", "blue fish"))


def test_the_reference_itself_has_no_end_error(drawer: Drawer, runs: WholeRuns) -> None:
    assert runs.error(drawer.runs["unet"]) == 0


def test_errors_that_push_every_step_the_same_way_count_and_those_that_cancel_do_not(drawer: Drawer, runs: WholeRuns) -> None:
    calls = 0

    def wrong_by(*factors: float) -> Any:
        def run(inputs: Inputs, outputs: Sequence[str]) -> dict[str, np.ndarray]:
            nonlocal calls
            calls += 1
            return {name: value * np.float32(factors[calls % len(factors)]) for name, value in unet(inputs, outputs).items()}

        return run

    unet = drawer.runs["unet"]
    pushed = runs.error(wrong_by(1.05))
    assert calls == RUNS * STEPS
    assert pushed > 0.01
    assert runs.error(wrong_by(1.05, 0.95)) < pushed / 2


def test_an_engine_without_finite_latents_has_no_number_for_an_error(drawer: Drawer, runs: WholeRuns) -> None:
    def broken(inputs: Inputs, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: np.full_like(value, np.nan) for name, value in drawer.runs["unet"](inputs, outputs).items()}

    assert np.isnan(runs.error(broken))
    assert not Errors(0.0, runs.error(broken)).excess <= 1


def test_a_checkpoint_whose_own_runs_have_no_end_is_refused_in_one_sentence(drawer: Drawer) -> None:
    def broken(inputs: Inputs, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: np.full_like(value, np.nan) for name, value in drawer.runs["unet"](inputs, outputs).items()}

    with pytest.raises(ExportError, match=f"a run of {STEPS} steps cannot be finished with PyTorch: "):
        WholeRuns.by(replace(drawer, runs={**drawer.runs, "unet": broken}), ["fish"])


def test_runs_are_read_as_they_were_written_or_not_at_all(drawer: Drawer, runs: WholeRuns, tmp_path: Path) -> None:
    file = tmp_path / "runs.npz"
    assert WholeRuns.read(file, drawer.pipeline) is None
    runs.write(file)
    again = WholeRuns.read(file, drawer.pipeline)
    assert again is not None
    assert again.error(drawer.runs["unet"]) == 0
    assert [sorted(request) for request in again.requests] == [sorted(request) for request in runs.requests]
    data = file.read_bytes()
    for damaged in (data[: len(data) // 2], data[:2000] + bytes([data[2000] ^ 1]) + data[2001:], b""):
        file.write_bytes(damaged)
        assert WholeRuns.read(file, drawer.pipeline) is None


def test_runs_of_few_step_models_have_their_own_steps(drawer: Drawer) -> None:
    few = replace(drawer, pipeline=replace(drawer.pipeline, few_step=True, default_steps=4))
    assert [int(request["num_inference_steps"][0, 0]) for request in WholeRuns.by(few, ["fish"]).requests] == RUNS * [4]


@pytest.mark.parametrize(
    ("calls", "end", "within"),
    [(0.1, None, True), (0.11, None, False), (0.01, 0.1, True), (0.01, 0.11, False), (0.11, 0.01, False)],
)
def test_both_errors_have_a_bound(calls: float, end: float | None, within: bool) -> None:
    assert (Errors(calls, end).excess <= 1) == within
    assert not Errors(float("nan"), end).excess <= 1


def test_static_int8_beyond_the_bound_is_refused_by_name() -> None:
    unet = component("unet")
    refuse_end_above_bound(unet, END_ERROR_BOUND, Precision.INT8)
    refuse_end_above_bound(unet, 2 * END_ERROR_BOUND, Precision.INT4_WEIGHTS)
    for error in (2 * END_ERROR_BOUND, float("nan")):
        with pytest.raises(ExportError, match=r"unet: relative error .* of finished latents .* above the bound of 0\.1 for int8"):
            refuse_end_above_bound(unet, error, Precision.INT8)


def test_each_part_is_judged_by_what_whole_runs_end_with() -> None:
    """A part that is wrong by little in every call, and always the same way, comes before one that is wrong by more."""

    class Graph:
        rounded = ("often.conv", "drift.conv", "fine.conv")

        def without(self, names: Collection[str]) -> Run:
            left = tuple(name for name in self.rounded if name not in names)
            return lambda inputs, outputs: {"y": np.full((1, 1), 1 + (0.09 if "often.conv" in left else 0.0)), "left": left}  # type: ignore[dict-item]

    class Runs:
        def error(self, run: Run, *, first: int | None = None) -> float:
            return 0.2 if "drift.conv" in run({}, [])["left"] else 0.01

    check = Reference(1, {}, {}, {"y": np.ones((1, 1))})
    kept, facts = put_back(component("unet"), Graph(), Samples([check], (), Runs()), 0)
    assert kept == ("drift.conv",)
    assert facts["quantization"]["kept"] == ["drift"]
    assert (facts["quantization"]["error_without_kept"], facts["quantization"]["end_error_without_kept"]) == (
        pytest.approx(0.09),
        0.2,
    )
    assert put_back(component("unet"), Graph(), Samples([check]), 0)[0] == ()
    assert put_back(component("unet"), Graph(), Samples([check], (), Runs(), bounded=False), 0)[0] == ()

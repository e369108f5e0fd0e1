"""Calibrating the reuse of branches: curves of real engines, levels within their bounds, what is published, what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nereid.diffusion.branch_cache import Branch, BranchEngine, greedy_plans
from nereid.diffusion.feature_cache import CachePlan, Level
from nereid.diffusion.solvers import SchedulerName
from nereid.engines.digests import Verifier
from nereid.layout.complexity import complexity
from nereid.layout.elements import Section
from nereid.layout.settings import LAYOUT_FILE, LayoutFacts

from conftest import Silent, export_layout

torch = pytest.importorskip("torch")
from typer.testing import CliRunner

from nereid_export import layout_adaptive
from nereid_export.errors import ExportError
from nereid_export.layout_adaptive import Way
from nereid_export.layout_calibrate import OFF_BOUNDS, CalibrateLayoutOptions, calibrate_layout, plans_by_threshold
from nereid_export.layout_drawing import LayoutDrawer
from nereid_zoo.layout.draw import draw, flow_of, torch_predict
from nereid_zoo.layout.score import held_out_sections

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> Path:
    """A model with engines that reuse branches: to be copied."""
    out = tmp_path_factory.mktemp("cut") / "out"
    export_layout(checkpoints["layout"], out, cache=True, max_batch_size=4)
    return out


@pytest.fixture
def copied(cut: Path, tmp_path: Path) -> Path:
    shutil.copytree(cut, tmp_path / "repository")
    return tmp_path / "repository"


def options(repository: Path, **changes: object) -> CalibrateLayoutOptions:
    return CalibrateLayoutOptions(repository=repository, briefs=6, **changes)  # type: ignore[arg-type]


def test_levels_keep_their_bounds_and_are_published_for_these_engines(copied: Path, cut: Path) -> None:
    before = (cut / "layout" / "1" / LAYOUT_FILE).read_bytes()
    found = calibrate_layout(options(copied, steps=(5, 8), schedulers=("euler",)), Silent())
    assert [(its["scheduler"], its["steps"], its["briefs"]) for its in found] == [("euler", 5, 6), ("euler", 8, 6)]
    for its in found:
        steps = its["steps"]
        for branch in Branch:
            curves = its["curves"][branch]
            assert [len(curves), *map(len, curves)] == [3, *[steps] * 3]
            assert all(value > 0 for over, curve in enumerate(curves, 1) for value in curve[: steps - over])
        for level in Level:
            said = its["levels"][level]
            assert said["off_px"] <= OFF_BOUNDS[level]
            plans = greedy_plans({branch: its["curves"][branch] for branch in Branch}, said["threshold"], steps)
            assert {branch: len(plan.full or ()) for branch, plan in plans.items()} == said["computed"]
        computed = [sum(its["levels"][level]["computed"].values()) for level in Level]
        assert computed == sorted(computed, reverse=True)
    facts = LayoutFacts.read(copied / "layout" / "1").branches
    assert facts is not None
    assert [(its.scheduler, its.steps) for its in facts.calibrations] == [("euler", 5), ("euler", 8)]
    manifest = json.loads((copied / "layout" / "manifest.json").read_text())
    assert [its["steps"] for its in manifest["calibrations"]["cache"]] == [5, 8]
    Verifier(copied).verify(manifest["models"])
    assert (cut / "layout" / "1" / LAYOUT_FILE).read_bytes() == before


def test_calibrating_again_replaces_its_own_and_keeps_the_others(copied: Path) -> None:
    for steps in ((4, 5), (5,)):
        calibrate_layout(options(copied, steps=steps), Silent())
    facts = LayoutFacts.read(copied / "layout" / "1").branches
    assert facts is not None
    assert [its.steps for its in facts.calibrations] == [4, 5]


def test_curves_are_the_relative_change_of_what_blocks_give(cut: Path) -> None:
    """Held against PyTorch's own branches on a run of one section."""
    from nereid_export.layout_calibrate import _Calibrating

    made = _Calibrating.of(options(cut), cut, "layout", json.loads((cut / "layout" / "manifest.json").read_text()))
    curves = made._curves(SchedulerName.EULER, 4, lambda text: None)
    seen: list[dict[str, np.ndarray]] = []
    for number, section in enumerate(made.sections):
        own: list[dict[str, np.ndarray]] = []
        made.drawer.draw(
            [section],
            [number],
            made.drawer.table(SchedulerName.EULER, 4),
            stepped=lambda _, call, out, own=own: own.append(out),
            watched=True,
        )
        seen.append({branch: np.stack([out[branch][0, :, : 1 + len(section)] for out in own]) for branch in Branch})
    expected = np.mean(
        [
            [
                np.abs(its["mlp"][2, block] - its["mlp"][0, block]).sum() / np.abs(its["mlp"][2, block]).sum()
                for block in range(its["mlp"].shape[1])
            ]
            for its in seen
        ]
    )
    assert curves["mlp"][1][0] == pytest.approx(expected, rel=1e-3)


def test_a_drawer_draws_what_pytorch_does_and_calls_what_plans_say(cut: Path, checkpoints: dict[str, Path]) -> None:
    drawer, asked = LayoutDrawer.of(cut / "layout"), held_out_sections(7).sections
    table = drawer.table(SchedulerName.EULER, 4)
    drawn, seeds = drawer.draw(asked, range(7), table), list(range(7))
    checkpoint = checkpoints["layout"]
    flow = replace(flow_of(checkpoint), stochastic=False)
    wanted = draw(torch_predict(checkpoint), asked, seeds, steps=4, flow=flow)
    assert np.abs(np.concatenate(drawn) - np.concatenate(wanted)).max() <= 1
    plans = {Branch.ATTENTION: CachePlan(full=frozenset({0, 3})), Branch.MLP: CachePlan(full=frozenset({0, 1, 3}))}
    called: list[tuple[str, int]] = []
    drawer.draw(asked, seeds, table, plans, lambda places, call, outputs: called.append((call.variant, len(places))))
    for engine in (BranchEngine.COMPUTED, BranchEngine.REUSED, BranchEngine.ATTENTION_REUSED):
        steps = 2 if engine is BranchEngine.COMPUTED else 1
        assert sum(rows for name, rows in called if name == engine) == steps * 7
    assert max(rows for _, rows in called) <= 4


def test_a_threshold_chooses_for_both_branches() -> None:
    curves = {Branch.ATTENTION: ((0.1, 0.1, 0.1, 9.0),), Branch.MLP: ((0.3, 0.3, 0.3, 9.0),)}
    plans = plans_by_threshold(curves, 4)
    assert {threshold: [len(plan.full or ()) for plan in its.values()] for threshold, its in plans.items()} == {
        0.0: [4, 4],
        0.1: [3, 4],
        0.3: [3, 3],
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schedulers": ("best",)}, "--scheduler: 'best' is not allowed"),
        ({"schedulers": ("ddim",)}, "--steps: 8 is not allowed with ddim"),
        ({"adaptive": (0,)}, "--adaptive: 0 is not allowed; it must be 1 at least"),
        ({"steps": (2,)}, "--steps: 2 is not allowed; it must be 3 at least"),
        ({"name": "other"}, "nothing here was exported as the layout model other_layout"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(copied: Path, changes: dict[str, object], said: str) -> None:
    before = (copied / "layout" / "1" / LAYOUT_FILE).read_bytes()
    with pytest.raises(ExportError, match=said):
        calibrate_layout(options(copied, **changes), Silent())
    assert (copied / "layout" / "1" / LAYOUT_FILE).read_bytes() == before


def test_each_class_of_sections_has_the_fewest_steps_that_cost_it_nothing(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model without engines that reuse: with 2 steps, of the simpler half a layout fails, with 4 none does."""
    export_layout(checkpoints["layout"], tmp_path / "out")

    def measured(drawer: object, sections: list[Section], way: Way, told: object) -> tuple[float, list[tuple[bool, bool]]]:
        middle = sorted(map(complexity, sections))[len(sections) // 2]
        return way.steps, [(True, not (way.steps == 2 and complexity(section) < middle)) for section in sections]

    monkeypatch.setattr(layout_adaptive, "_measured", measured)
    (found,) = calibrate_layout(options(tmp_path / "out", adaptive=(4, 2, 99)), Silent())
    classes = found["adaptive"]["classes"]
    assert sum(its["briefs"] for its in classes) == 6
    assert classes[0]["steps"] == 4
    assert classes[-1]["steps"] == 2
    assert all(its["passed"] == its["passed_whole"] == 100 for its in classes)
    assert not any("width" in its for its in classes)
    adaptive = LayoutFacts.read(tmp_path / "out" / "layout" / "1").adaptive
    assert adaptive is not None
    assert [steps for _, steps in adaptive.classes] == [its["steps"] for its in classes]
    manifest = json.loads((tmp_path / "out" / "layout" / "manifest.json").read_text())
    assert manifest["calibrations"]["adaptive"]["classes"] == classes
    Verifier(tmp_path / "out").verify(["layout"])


GOOD, BAD = (100.0, 100.0), (100.0, 98.0)


@pytest.mark.parametrize(
    ("shares", "seconds", "chosen"),
    [
        ({Way(2): GOOD, Way(8): GOOD, Way(2, "dynamic"): GOOD, Way(8, "dynamic"): GOOD}, (2, 8, 1, 5), (2, 2, "dynamic")),
        ({Way(2): GOOD, Way(8): GOOD, Way(2, "dynamic"): BAD, Way(8, "dynamic"): GOOD}, (2, 8, 1, 5), (2, 8, "full")),
        ({Way(2): BAD, Way(8): GOOD, Way(2, "dynamic"): BAD, Way(8, "dynamic"): GOOD}, (2, 8, 1, 5), (8, 8, "dynamic")),
        ({Way(2): BAD, Way(8): GOOD, Way(2, "dynamic"): BAD, Way(8, "dynamic"): BAD}, (2, 8, 1, 5), (8, None, "full")),
        ({Way(2): GOOD, Way(8): GOOD, Way(2, "dynamic"): GOOD, Way(8, "dynamic"): GOOD}, (2, 8, 3, 9), (2, 2, "full")),
    ],
)
def test_a_class_has_the_width_that_takes_less_time_among_what_costs_it_nothing(
    shares: dict[Way, tuple[float, float]], seconds: tuple[float, ...], chosen: tuple[int, int | None, str]
) -> None:
    found = layout_adaptive._chosen(shares, dict(zip(shares, seconds, strict=True)), Way(8))
    assert (found["steps"], found["dynamic_steps"], found["width"]) == chosen
    assert found["passed"] == 100


def test_widths_are_measured_and_published_for_these_slices(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    export_layout(checkpoints["layout"], tmp_path / "out", widths=True)
    (found,) = calibrate_layout(options(tmp_path / "out", adaptive=(2,)), Silent())
    adaptive = LayoutFacts.read(tmp_path / "out" / "layout" / "1").adaptive
    assert adaptive is not None
    assert [(steps, prefers) for steps, prefers in adaptive.dynamic] == [
        (its["dynamic_steps"], its["width"] == "dynamic") for its in found["adaptive"]["classes"]
    ]


def test_a_model_without_such_engines_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    export_layout(checkpoints["layout"], tmp_path / "out")
    with pytest.raises(ExportError, match="there is nothing to calibrate; layout was exported without --cache"):
        calibrate_layout(options(tmp_path / "out"), Silent())


def test_the_command_prints_a_table_or_json(copied: Path) -> None:
    from nereid_client.main import app

    asked = ["calibrate-layout", str(copied), "--steps", "4", "--briefs", "3", "--adaptive", "2"]
    table = CliRunner().invoke(app, asked)
    assert table.exit_code == 0, table.output
    assert "aggressive" in table.output
    assert "complexity" in table.output
    assert "full" in table.output
    printed = CliRunner().invoke(app, [*asked, "--json"])
    assert json.loads(printed.stdout)[0]["steps"] == 4

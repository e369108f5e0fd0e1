"""`nereid bench layout`: ways and their schedules, FLOPs, quality, loads, the random transformer, and the report."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from typer.testing import CliRunner

from nereid.diffusion.branch_cache import Branch, BranchEngine
from nereid.diffusion.dynamic_width import WHOLE_WITH_TOKENS, TokenEngine, WidthEngine, WidthTable
from nereid.diffusion.feature_cache import CachePlan, Variant
from nereid.diffusion.plan import EngineCall
from nereid.layout.complexity import AdaptiveSteps, complexity
from nereid.layout.requests import LayoutRequest, parse_layout_request
from nereid.layout.settings import KEPT, LayoutFacts, LayoutLimits
from nereid.layout.tokens import bucket_of
from nereid_bench import layout as module
from nereid_bench import layout_exports
from nereid_bench.cli import app
from nereid_bench.kept_tokens import KeptTokens
from nereid_bench.layout import components, layout, layout_flops
from nereid_bench.layout_exports import exported, exported_w4a8
from nereid_bench.layout_load import Latencies, alone, arriving, asked_for, sustained
from nereid_bench.layout_ways import LayoutPlan, Way, way_names
from nereid_bench.random_dit import DitSizes, Part, RandomDit, count_flops, part_cost, step_costs
from nereid_client.layouts import layout_tensors
from nereid_export import layout_w4a8
from nereid_export.engines.check import random_inputs
from nereid_export.errors import ExportError
from nereid_zoo.layout.component import TOKENS, layout_component
from nereid_zoo.layout.dynamic import load_dynamic
from nereid_zoo.layout.score import held_out_sections

from checkpoints import make_dynamic_layout

pytestmark = pytest.mark.torch
WAYS, SMALL = 22, 4
"""Rows of the layout transformer, and of them those in w4a8."""
TINY = DitSizes(layers=2, width=32, heads=2, tokens=8, patch=4)


class FakeClient:
    """Reads requests as the server would."""

    def __init__(self, repository: Path) -> None:
        self.facts = LayoutFacts.read(repository / "layout" / "1")
        self.asked: list[LayoutRequest] = []

    def generate_layout(self, section: Any, canvas: Any, **options: Any) -> None:
        tensors = layout_tensors(section, canvas, options, interval=None)
        self.asked.append(parse_layout_request(tensors, self.facts, LayoutLimits()))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a small random checkpoint with dynamic width and tokens: the rows, the plan, what was said and asked."""
    work, clients, said = tmp_path_factory.mktemp("bench"), [], []  # type: ignore[var-annotated]

    @contextmanager
    def serving(repository: Path) -> Iterator[tuple[Any, None]]:
        clients.append(FakeClient(repository))
        yield clients[-1], None

    checkpoint = make_dynamic_layout(work / "checkpoint", tokens=True)
    plan = LayoutPlan(
        **{"checkpoint": checkpoint, "work": work, "steps": 6, "fewer": (4, 2), "briefs": 8, "calibration_briefs": 6},
        **{"timed": 2, "rate": 100.0, "at_once": 2, "seconds": 0.05, "poisson_seconds": 0.06, "rounds": 1, "dit": TINY},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "serving", serving)
        patch.setattr(layout_w4a8, "CALIBRATION_BRIEFS", 8)
        patch.setattr(layout_w4a8, "BRIEFS", 4)
        patch.setattr(layout_w4a8, "refuse_loss", lambda component, quality: None)  # a random transformer's layouts mean nothing
        rows = layout(plan, said.append)
        made = [plan.work / name / "layout" / "manifest.json" for name in ("repository", "w4a8")]
        before = [file.stat().st_mtime_ns for file in made]
        exported(plan, said.append)  # nothing is done again
        exported_w4a8(plan, said.append)
    assert [file.stat().st_mtime_ns for file in made] == before
    return {"rows": rows, "plan": plan, "said": said, "asked": clients[0].asked, "clients": clients}


def test_every_way_has_a_row_of_either_transformer_and_all_have_the_same_columns(measured: dict[str, Any]) -> None:
    rows = measured["rows"]
    names = ["off", "4 steps", "2 steps", "cache light", "cache balanced", "cache aggressive", "adaptive steps"]
    for name in ("dynamic width", "dynamic tokens", "dynamic width and tokens"):
        names += [name, f"{name}, 4 steps", f"{name}, 2 steps"]
    names += ["adaptive steps and width", "all on: dynamic width and tokens, adaptive steps"]
    assert [(row["model"], row["method"]) for row in rows] == [
        *(("layout", name) for name in [*names, "w4a8", "w4a8, 4 steps", "w4a8, 2 steps", "all on: w4a8, adaptive steps"]),
        *((TINY.name, name) for name in [*names, "MLPs of 63% of the tokens"]),
    ]
    assert len({tuple(row) for row in rows}) == 1
    for row in rows[:WAYS]:
        assert all(value is not None for value in row.values())
        assert row["ms"] > 0
        assert 0 <= row["passed_before"] <= 100
        assert row["p95_ms"] >= row["p50_ms"] > 0
        assert row["requests_s"] > 0
    for row in rows[WAYS:]:
        assert row["mb"] is row["passed_after"] is row["p50_ms"] is None
        assert row["ms"] > 0
    json.dumps(rows)


def test_flops_go_with_steps_and_with_what_is_reused(measured: dict[str, Any]) -> None:
    for its in (measured["rows"][: WAYS - SMALL], measured["rows"][WAYS:]):
        found = {row["method"]: row for row in its}
        assert found["4 steps"]["gflops"] == pytest.approx(found["off"]["gflops"] * 4 / 6)
        for level in ("light", "balanced", "aggressive"):
            row = found[f"cache {level}"]
            assert (row["gflops"] < found["off"]["gflops"]) is (row["reused"] > 0)
        assert found["cache aggressive"]["reused"] > 0
        assert found["off"]["reused"] == 0
        assert found["adaptive steps"]["gflops"] > 0
        assert found["dynamic width"]["gflops"] < found["off"]["gflops"]
        assert found["dynamic width"]["reused"] == 0
        assert found["dynamic width, 2 steps"]["gflops"] < found["2 steps"]["gflops"]
    assert found["MLPs of 63% of the tokens"]["gflops"] < found["off"]["gflops"]


def test_flops_go_with_the_tokens_that_mlps_have_kept(measured: dict[str, Any]) -> None:
    for its in (measured["rows"][: WAYS - SMALL], measured["rows"][WAYS:]):
        found = {row["method"]: row for row in its}
        assert found["off"]["tokens"] == found["dynamic width"]["tokens"] == 100
        for name, every in (("dynamic tokens", "off"), ("dynamic width and tokens", "dynamic width")):
            assert 10 < found[name]["tokens"] < 95
            assert 0.5 * found[every]["gflops"] < found[name]["gflops"] < found[every]["gflops"]
            assert found[f"{name}, 2 steps"]["gflops"] < found[f"{name}, 4 steps"]["gflops"] < found[name]["gflops"]
    assert found["MLPs of 63% of the tokens"]["tokens"] == 63


def test_what_is_served_is_asked_for_as_it_is_scored(measured: dict[str, Any]) -> None:
    asked = measured["asked"]
    assert {6, 4, 2} <= {len(request.table) for request in asked} <= {8, 6, 4, 2}  # 8, the default, where a section needs all
    sliced = [request for request in asked if request.widths is not None]
    assert {6, 4, 2} <= {len(request.table) for request in sliced} <= {8, 6, 4, 2}
    table = LayoutFacts.read(measured["plan"].work / "repository" / "layout" / "1").widths
    assert table is not None
    assert {request.widths for request in sliced} == {table, WHOLE_WITH_TOKENS, table.passing_over_tokens()}
    cached = [request for request in asked if request.cache is not None]
    assert {len(request.table) for request in cached} == {6}
    sections = held_out_sections(measured["plan"].briefs).sections
    assert {request.section for request in asked} <= set(sections)


def test_w4a8_is_smaller_has_its_own_server_and_as_many_steps(measured: dict[str, Any]) -> None:
    rows = {row["method"]: row for row in measured["rows"] if row["model"] == "layout"}
    assert rows["w4a8"]["mb"] < rows["off"]["mb"] == rows["4 steps"]["mb"]
    assert rows["w4a8"]["gflops"] == rows["off"]["gflops"]
    _, small = measured["clients"]
    assert {6, 4, 2} <= {len(request.table) for request in small.asked} <= {8, 6, 4, 2}


def test_progress_names_what_is_done(measured: dict[str, Any]) -> None:
    said = "\n".join(measured["said"])
    for part in ("exporting", "calibrating", "counting FLOPs", "drawing 8 held-out sections", "in flight", "timing 12 kinds"):
        assert part in said
    assert "off, 100 a second for 0.06 s" in said
    assert "off, 2 in flight for 0.05 s" in said


def test_names_of_all_ways_are_known_before_anything_is_exported(measured: dict[str, Any]) -> None:
    assert way_names(measured["plan"]) == [row["method"] for row in measured["rows"][:WAYS]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"served_ways": ("off", "none")}, "--served-ways: none is not allowed; each must be one of off, 12 steps, "),
        ({"served_ways": ("w4a8",), "w4a8": False}, "--served-ways: w4a8 is not allowed; each must be one of off, "),
        ({"served_ways": ("adaptive steps",), "fewer": ()}, "--served-ways: adaptive steps is not allowed; "),
        ({"served_ways": ("dynamic tokens",)}, "--served-ways: dynamic tokens is not allowed; "),
        ({"steps": 201}, "--steps: 201 is not allowed; the server takes 200 steps at most"),
        ({"fewer": (4, 300)}, "--fewer: 300 is not allowed; the server takes 200 steps at most"),
    ],
)
def test_what_no_export_would_make_right_is_refused_before_it(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    plan = replace(LayoutPlan(checkpoint=make_dynamic_layout(tmp_path / "checkpoint"), work=tmp_path / "work"), **options)
    with pytest.raises(ExportError, match=said):
        layout(plan, lambda text: pytest.fail(text))
    assert not plan.work.exists()


def test_a_repository_is_made_again_for_other_numbers_and_only_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, made = make_dynamic_layout(tmp_path / "checkpoint"), []  # type: ignore[var-annotated]
    monkeypatch.setattr(layout_exports, "export_layout", lambda options, bar: options.out.mkdir(parents=True))
    monkeypatch.setattr(layout_exports, "calibrate_layout", lambda options, bar: made.append((options.repository.name, options)))
    plan = LayoutPlan(checkpoint=checkpoint, work=tmp_path / "work", steps=6, fewer=(4, 2))
    for its in (plan, plan, replace(plan, fewer=(4,)), replace(plan, fewer=(4,)), replace(plan, fewer=(4,), steps=8)):
        exported(its, lambda said: None)
        exported_w4a8(its, lambda said: None)
    assert [(name, options.adaptive, options.steps) for name, options in made] == [
        (name, adaptive, (steps,)) for adaptive, steps in (((4, 2), 6), ((4,), 6), ((4,), 8)) for name in ("repository", "w4a8")
    ]


def test_a_section_is_asked_for_as_it_is() -> None:
    for section in held_out_sections(6).sections:
        elements, canvas = asked_for(section)
        tensors = layout_tensors(elements, canvas, {}, interval=None)
        facts = LayoutFacts(schedule=None, scheduler="euler")  # type: ignore[arg-type]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("nereid.layout.requests.solver_table", lambda *settings: ())
            assert parse_layout_request(tensors, facts, LayoutLimits()).section == section


def test_flops_are_those_of_the_formula(tmp_path: Path) -> None:
    """Of the branches; what is outside of them is the same in every engine."""
    plan, section = LayoutPlan(checkpoint=make_dynamic_layout(tmp_path, tokens=True)), held_out_sections(1).sections[0]
    tokens = bucket_of(len(section))
    found, each = layout_flops(components(plan), {tokens})
    flops = {engine: its[tokens] for engine, its in found.items()}
    places, width, layers, ratio = 1 + tokens, 48, 2, 2
    attention = layers * (8 * places * width * width + 4 * places * places * width)
    mlp = layers * 4 * places * width * ratio * width
    whole = flops[BranchEngine.COMPUTED]
    plain = layout_component(plan.checkpoint)
    inputs = random_inputs(plain, 1, {TOKENS: tokens}, 1)
    assert whole == count_flops(plain.load(), tuple(inputs.values()))
    assert whole - flops[BranchEngine.ATTENTION_REUSED] == attention
    assert whole - flops[BranchEngine.MLP_REUSED] == mlp
    assert whole - flops[BranchEngine.REUSED] == attention + mlp
    widths = load_dynamic(plan.checkpoint).named_widths()
    assert set(widths) == set(WidthEngine)
    for engine, width in widths.items():
        heads, groups = sum(map(len, width.heads)), sum(map(len, width.groups))
        left = attention * heads / (layers * 3) + mlp * groups / (layers * 6)
        assert flops[engine] == whole - attention - mlp + left
        passing = TokenEngine.of(engine)
        assert flops[passing] == whole - attention - mlp + attention * heads / (layers * 3)
        assert each[passing] == [
            4 * width_ * ratio * 48 * len(its) / 6 for width_, its in zip((48, 48), width.groups, strict=True)
        ]
        assert each[engine] == []
    assert flops[TokenEngine.WHOLE] == whole - mlp
    assert [places * own for own in each[TokenEngine.WHOLE]] == [mlp / layers] * layers


def test_the_random_transformer_is_of_the_sizes_that_it_says_and_reuse_is_exact() -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in RandomDit(DitSizes()).parameters())
    assert 670e6 < count < 680e6
    transformer = RandomDit(TINY).eval()
    with torch.inference_mode():
        patches, timestep, _ = transformer.inputs(BranchEngine.COMPUTED)
        patches = torch.randn_like(patches)
        out, branches = transformer(patches, timestep)
        attention, mlp = (torch.stack([its[place] for its in branches], 1) for place in (0, 1))
        for kept in ((attention, None), (None, mlp), (attention, mlp)):
            assert torch.equal(transformer(patches, timestep, kept)[0], out)
    costs = step_costs(TINY, {WidthEngine.NARROW: Part([(0.5, 0.25)])})
    assert costs[BranchEngine.REUSED].flops < costs[BranchEngine.MLP_REUSED].flops < costs[BranchEngine.COMPUTED].flops
    rows, width = TINY.tokens, TINY.width
    attention, mlp = 8 * rows * width * width + 4 * rows * rows * width, 4 * rows * width * 4 * width
    saved = costs[BranchEngine.COMPUTED].flops - costs[WidthEngine.NARROW].flops
    assert saved == TINY.layers * (attention / 2 + mlp * 3 / 4)


def test_passing_over_tokens_saves_their_mlps() -> None:
    whole, mlp = step_costs(TINY)[BranchEngine.COMPUTED], 4 * TINY.tokens * TINY.width * 4 * TINY.width
    for part, saved in (
        (Part([(1, 1)], [0.5]), mlp),
        (Part([(1, 1)], [1.0, 0.25]), 0.75 * mlp),
        (Part([(1, 1)], [1.0]), 0),
        (Part([(1, 0.5)], [1.0, 0.5]), mlp + mlp / 4),
    ):
        found = part_cost(TINY, part)
        assert whole.flops - found.flops == saved
        assert found.milliseconds > 0


def test_kept_tokens_are_added_up_by_engine_and_block() -> None:
    def call(variant: Any, valid: list[list[int]]) -> EngineCall:
        return EngineCall(
            variant, {"sample": np.zeros((len(valid), 4, 4)), "valid": np.array(valid, np.float32)}, ("out_sample",)
        )

    kept, other = KeptTokens(), KeptTokens()
    assert kept.percent == 100
    kept.take([0], call(Variant.FULL, [[1, 1, 1, 0]]), {})
    kept.take([0, 1], call(TokenEngine.WHOLE, [[1, 1, 1, 0], [1, 0, 0, 0]]), {KEPT: np.array([[4, 1], [0, 1]], np.float32)})
    other.take([0], call(TokenEngine.NARROW, [[1, 1, 1, 0]]), {KEPT: np.array([[4, 4]], np.float32)})
    assert kept.shares(TokenEngine.WHOLE) == [4 / 6, 2 / 6]
    assert kept.shares(TokenEngine.NARROW) == [1.0]
    assert kept.percent == pytest.approx(50)
    assert kept.flops({TokenEngine.WHOLE: [10, 100]}) == 40 + 200
    kept.add(other)
    kept.add(other)
    assert kept.shares(TokenEngine.NARROW) == [1, 1]
    assert kept.percent == pytest.approx(100 * (6 + 16) / (12 + 16))


def test_a_way_counts_the_steps_of_each_engine() -> None:
    plans = {Branch.ATTENTION: CachePlan(full=frozenset({0, 3})), Branch.MLP: CachePlan(full=frozenset({0, 1, 3}))}
    way = Way(name="cache", steps=4, cache="light", plans=plans)
    assert way.engines(4) == {BranchEngine.COMPUTED: 2, BranchEngine.ATTENTION_REUSED: 1, BranchEngine.REUSED: 1}
    assert way.reused == 37.5
    assert Way(name="off", steps=4).engines(3) == {BranchEngine.COMPUTED: 3}
    table = WidthTable(ranges=((300.0, WidthEngine.WIDE), (math.inf, WidthEngine.NARROW)))
    sliced = Way(name="dynamic width", steps=4, widths=table, timesteps=lambda steps: [1000, 750, 500, 250])
    assert sliced.engines(4) == {WidthEngine.NARROW: 3, WidthEngine.WIDE: 1}
    assert sliced.reused == 0
    assert sliced.asked == {"num_inference_steps": 4, "cache": "off", "transformer_width": "dynamic"}
    passing = replace(sliced, widths=table.passing_over_tokens())
    assert passing.asked == {**sliced.asked, "transformer_tokens": "dynamic"}
    assert passing.engines(4) == {TokenEngine.NARROW: 3, TokenEngine.WIDE: 1}
    whole = replace(sliced, widths=WHOLE_WITH_TOKENS)
    assert whole.asked == {"num_inference_steps": 4, "cache": "off", "transformer_tokens": "dynamic"}
    every = replace(sliced, adaptive=AdaptiveSteps(scheduler="euler", classes=((math.inf, 3),)))
    assert every.asked == {"effort": "adaptive", "transformer_width": "dynamic"}
    assert every.steps_of(held_out_sections(1).sections[0]) == 3
    by_width = AdaptiveSteps(scheduler="euler", classes=((math.inf, 3),), dynamic=((2, True),))
    assert replace(every, adaptive=by_width).steps_of(held_out_sections(1).sections[0]) == 2
    one, other = sorted(held_out_sections(8).sections, key=complexity)[::7]
    parted = AdaptiveSteps(scheduler="euler", classes=((complexity(one), 3), (math.inf, 4)), dynamic=((2, True), (4, False)))
    chosen = replace(every, adaptive=parted, chosen=True)
    assert chosen.asked == {"effort": "adaptive"}
    assert [(chosen.steps_of(its), chosen.of(its).widths) for its in (one, other)] == [(2, table), (4, None)]
    steps = Way(name="adaptive steps", steps=4, adaptive=by_width)
    assert steps.asked == {"effort": "adaptive", "transformer_width": "full"}  # the calibration may prefer slices
    assert steps.steps_of(held_out_sections(1).sections[0]) == 3


# --- loads ---


def test_loads_send_what_they_say_and_time_from_arrival() -> None:
    sent: list[int] = []

    def send(number: int) -> None:
        time.sleep(0.005)
        sent.append(number)

    assert 5 <= alone(send, 4).p50 < 1000
    assert sorted(sent) == [0, 1, 2, 3]
    sent.clear()
    found = arriving(send, 100.0, 0.2)
    assert sorted(sent) == [*range(len(sent))]
    assert 8 < len(sent) < 40
    assert found.p95 >= found.p50 >= 5


def test_what_arrives_while_others_wait_waits_too() -> None:
    one = threading.Lock()

    def send(number: int) -> None:
        with one:
            time.sleep(0.02)

    assert arriving(send, 200.0, 0.2).p95 > 100


def test_sustained_keeps_so_many_in_flight() -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def send(number: int) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.01)
        with lock:
            inside -= 1

    # A machine that stands still for a while answers few in one of these times, and not in all.
    assert any(50 < sustained(send, 4, 0.2) < 420 for _ in range(5))
    assert most == 4


def test_an_error_of_a_request_ends_the_load() -> None:
    def send(number: int) -> None:
        raise OSError("gone")

    for load in (lambda: alone(send, 2), lambda: arriving(send, 100.0, 0.02), lambda: sustained(send, 2, 0.05)):
        with pytest.raises(OSError, match="gone"):
            load()


def test_percentiles_are_in_milliseconds() -> None:
    found = Latencies.of(list(np.linspace(0, 1, 101)))
    assert (found.p50, found.p95) == (pytest.approx(500), pytest.approx(950))


# --- the command ---


def test_the_command_prints_one_table_and_writes_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[LayoutPlan] = []

    def fake(plan: LayoutPlan, say: Any) -> list[dict[str, Any]]:
        plans.append(plan)
        return [{"model": "layout", "method": "off", "ms": 1.5, "passed_after": None}]

    monkeypatch.setattr("nereid_bench.layout_cli.layout", fake)
    out = tmp_path / "layout.json"
    asked = ["layout", "--out", str(out), "--fewer", "8,4", "--no-dit", "--no-served", "--no-w4a8", "--checkpoint", str(tmp_path)]
    table = CliRunner().invoke(app, asked)
    assert table.exit_code == 0, table.output
    assert (plans[0].fewer, plans[0].dit, plans[0].served, plans[0].checkpoint) == ((8, 4), None, False, tmp_path)
    assert not plans[0].w4a8
    assert json.loads(out.read_text())[0]["ms"] == 1.5
    ways = "off; w4a8, 8 steps;all on: w4a8, adaptive steps"  # names have commas
    CliRunner().invoke(app, ["layout", "--out", str(out), "--served-ways", ways])
    assert plans[1].served_ways == ("off", "w4a8, 8 steps", "all on: w4a8, adaptive steps")
    printed = CliRunner().invoke(app, [*asked, "--json"])
    assert json.loads(printed.stdout)[0]["method"] == "off"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--fewer", "8,x"], "is not a list of numbers"),
        (["--fewer", "0"], "must be 1 or more"),
        (["--steps", "2"], "--steps"),
        (["--no-served", "--served-ways", "off"], "off is not allowed with --no-served"),
    ],
)
def test_options_that_are_not_allowed_are_refused(options: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["layout", *options])
    assert result.exit_code == 2
    assert said in result.output


def test_a_checkpoint_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["layout", "--checkpoint", str(tmp_path / "none"), "--work", str(tmp_path / "work")])
    assert result.exit_code == 1
    assert "has no model_index.json" in result.output

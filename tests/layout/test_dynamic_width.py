"""Slices of the transformer by timestep: which of them a step calls, company, fewer steps, metrics, what is refused."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing import FACTS, FLOW, Arrays, Straight, ask, serving

from nereid.diffusion.dynamic_width import WidthEngine, WidthTable
from nereid.diffusion.feature_cache import Variant
from nereid.diffusion.solvers import SchedulerName, build_table
from nereid.flow.errors import InvalidRequestError
from nereid.layout.rows import end_sooner, layout_runs
from nereid.layout.service import LayoutService
from nereid.layout.settings import LAYOUT_FILE, LayoutFacts, LayoutLimits, LayoutModel

from sections import two_cards
from waiting import until

NARROW, MEDIUM, WIDE = WidthEngine
TABLE = WidthTable(ranges=((250.0, WIDE), (600.0, MEDIUM), (math.inf, NARROW)))
FACTS_WITH = replace(FACTS, widths=TABLE)
STEPS = 8
CARDS = [{"id": f"{n}", "class": "button", "characters": 4 + n} for n in range(5)]
SHARES = {"": 0.0, NARROW: 0.5, MEDIUM: 0.2, WIDE: 0.1}


class Sliced(Straight):
    """What it answers tells which slice has computed it. `seen` has each call's graph and timesteps."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[float]]] = []

    def call(self, inputs: Arrays, outputs: Sequence[str], graph: str = "") -> Future[Arrays]:
        assert list(outputs) == ["out_sample"]
        self.seen.append((str(graph), inputs["timestep"][:, 0].tolist()))
        plain, made = super().call(inputs, outputs, graph), Future[Arrays]()
        off = np.float32(SHARES[graph])
        plain.add_done_callback(lambda done: made.set_result({"out_sample": done.result()["out_sample"] + off}))
        return made


def last(service: LayoutService, *arguments: Any, **options: Any) -> dict[str, Any]:
    """All that is answered."""
    return {name: value.tolist() for name, value in ask(service, *arguments, **options).wait().sent[-1].items()}


# --- which slice ---


def test_a_timestep_has_the_slice_of_its_range() -> None:
    assert [TABLE.engine(timestep) for timestep in (0, 250, 250.5, 600, 601, 1000)] == [
        WIDE,
        WIDE,
        MEDIUM,
        MEDIUM,
        NARROW,
        NARROW,
    ]
    assert TABLE.engines == (NARROW, MEDIUM, WIDE)
    assert WidthTable.parse(json.loads(json.dumps(TABLE.written()))) == TABLE
    assert WidthTable.parse({"ranges": [{"up_to": None, "engine": "narrow"}]}).engines == (NARROW,)


@pytest.mark.parametrize(
    "ranges",
    [
        [],
        [{"up_to": 250, "engine": "wide"}],
        [{"up_to": 600, "engine": "wide"}, {"up_to": 250, "engine": "narrow"}, {"up_to": None, "engine": "medium"}],
        [{"up_to": None, "engine": "widest"}],
        [{"engine": "wide"}],
    ],
)
def test_ranges_that_are_none_are_refused(ranges: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / LAYOUT_FILE).write_text(json.dumps({"scheduler": FLOW, "widths": {"ranges": ranges}}))
    with pytest.raises(ValueError, match=r"layout\.json: widths: .*; export the model again"):
        LayoutFacts.read(tmp_path)


def test_a_run_calls_the_slices_of_its_timesteps_and_knows_what_is_left() -> None:
    cards, _ = two_cards()
    table = build_table(SchedulerName.EULER, FACTS.schedule, STEPS)
    (run,) = layout_runs(cards, None, [1], table, None, TABLE)
    expected = [TABLE.engine(float(timestep)) for timestep in table.timesteps]
    called = []
    for step in range(STEPS):
        run.step = step
        assert run.steps_left == Counter(expected[step:])
        called.append(run.variant)
    assert called == expected
    assert [name for name, _ in Counter(called).most_common()] != [NARROW]
    run.step = 2
    end_sooner(run, 3, FACTS.scheduler, FACTS.schedule)  # of its own, longer steps
    assert run.steps_left == Counter(TABLE.engine(float(timestep)) for timestep in run.row.table.timesteps)
    (whole,) = layout_runs(cards, None, [1], table)
    assert whole.variant is Variant.FULL
    assert whole.steps_left == {Variant.FULL: STEPS}


# --- in the loop ---


def test_every_step_calls_the_slice_of_its_timestep_and_they_are_counted() -> None:
    engine, told = Sliced(), []  # type: ignore[var-annotated]
    with serving(engine, facts=FACTS_WITH, default_steps=STEPS, told=told) as service:
        ask(service, CARDS, transformer_width="dynamic").wait()
    assert [graph for graph, _ in engine.seen] == [str(TABLE.engine(its[0])) for _, its in engine.seen]
    steps = Counter(graph for graph, _ in engine.seen)
    assert set(steps) == {NARROW, MEDIUM, WIDE}
    counted: Counter[str] = Counter()
    for name, value, labels in told:
        if name == "nereid_layout_widths_total":
            counted[labels["width"]] += int(value)
    assert counted == steps


def test_without_it_the_whole_transformer_computes_every_step_as_ever() -> None:
    engine, told = Sliced(), []  # type: ignore[var-annotated]
    with serving(engine, facts=FACTS_WITH, default_steps=STEPS, told=told) as service:
        default, full = last(service, CARDS), last(service, CARDS, transformer_width="full")
        dynamic = last(service, CARDS, transformer_width="dynamic")
    assert {graph for graph, _ in engine.seen[: 2 * STEPS]} == {""}
    with serving(Straight(), default_steps=STEPS) as service:
        plain = last(service, CARDS)
    assert default == full == plain != dynamic
    assert [json.loads(its["layout"][0])["transformer_width"] for its in (default, dynamic)] == ["full", "dynamic"]
    assert sum(value for name, value, _ in told if name == "nereid_layout_widths_total") == STEPS


def test_rows_of_one_slice_share_calls_and_everybody_has_the_same_bytes_as_alone() -> None:
    options = [
        {"seed": n, "transformer_width": ("dynamic", "dynamic", "full")[n % 3], "num_inference_steps": 4 + n} for n in range(8)
    ]
    with serving(Sliced(), facts=FACTS_WITH) as service:
        alone = [last(service, CARDS, **its) for its in options]
    engine = Sliced()
    engine.hold.clear()
    with serving(engine, facts=FACTS_WITH) as service:
        first = ask(service, CARDS)
        until(lambda: engine.calls)
        inside = [ask(service, CARDS, **its) for its in options]
        engine.hold.set()
        together = [{name: value.tolist() for name, value in answers.wait().sent[-1].items()} for answers in inside]
        first.wait()
    assert together == alone
    for graph, timesteps in engine.seen:
        if graph:
            assert {TABLE.engine(timestep) for timestep in timesteps} == {graph}
    assert max(len(timesteps) for graph, timesteps in engine.seen if graph) > 1


# --- refused ---


@pytest.mark.parametrize(
    ("facts", "options", "said"),
    [
        (
            FACTS,
            {"transformer_width": "dynamic"},
            "transformer_width: dynamic is not allowed; this model's transformer was exported without --widths, so that it has "
            "one width",
        ),
        (
            FACTS_WITH,
            {"transformer_width": "narrow"},
            "transformer_width: 'narrow' is not allowed; it must be one of full, dynamic",
        ),
    ],
)
def test_a_width_that_there_is_none_of_is_refused(facts: LayoutFacts, options: dict[str, Any], said: str) -> None:
    with serving(Sliced(), facts=facts) as service:
        refused = ask(service, CARDS, **options).refused
    assert isinstance(refused, InvalidRequestError)
    assert str(refused) == said


def test_it_goes_not_with_branches_that_are_kept() -> None:
    from test_branch_cache import FACTS_WITH as CUT

    with serving(Sliced(), facts=replace(CUT, widths=TABLE), default_steps=6) as service:
        refused = ask(service, CARDS, transformer_width="dynamic", cache="0.2").refused
    assert str(refused) == "transformer_width: 'dynamic' is not allowed; it must be full beside cache (0.2)"


def test_the_process_loads_the_slices_that_the_table_names(tmp_path: Path) -> None:
    table = WidthTable(ranges=((250.0, WIDE), (math.inf, NARROW)))
    model = LayoutModel(name="layout", facts=replace(FACTS, widths=table), limits=LayoutLimits(), file=tmp_path / "model.onnx")
    settings = model.worker_options().settings
    assert {name: its["file"] for name, its in settings["others"].items()} == {
        "narrow": str(tmp_path / "narrow" / "model.onnx"),
        "wide": str(tmp_path / "wide" / "model.onnx"),
    }
    assert all(its["warm_up"] == settings["warm_up"] and its["outputs"] == ["out_sample"] for its in settings["others"].values())

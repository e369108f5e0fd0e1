"""Branches of the transformer that are reused between steps: plans, what is kept of whom, company, deaths, what is refused."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing import FACTS, FLOW, Arrays, Straight, ask, serving

from nereid.diffusion.branch_cache import (
    Branch,
    BranchCalibration,
    BranchEngine,
    KeptBranches,
    greedy_plans,
    plans_by_change,
)
from nereid.diffusion.feature_cache import Level
from nereid.flow.errors import InvalidRequestError
from nereid.layout.service import LayoutService
from nereid.layout.settings import LAYOUT_FILE, BranchFacts, LayoutFacts, LayoutLimits, LayoutModel, engines_digest

from waiting import until

STEPS = 6
CURVES = {
    Branch.ATTENTION: ((0.1, 0.1, 0.1, 0.1, 9.0, 9.0), (0.1, 0.1, 0.1, 9.0, 9.0, 9.0)),
    Branch.MLP: ((0.1, 0.3, 0.1, 0.1, 9.0, 9.0), (0.3, 0.3, 0.3, 9.0, 9.0, 9.0)),
}
LEVELS = {Level.LIGHT: 0.0, Level.BALANCED: 0.15, Level.AGGRESSIVE: 0.3}
FOUND = BranchCalibration(scheduler="euler", steps=STEPS, curves=CURVES, levels=LEVELS)
C, A, M, R = BranchEngine.COMPUTED, BranchEngine.ATTENTION_REUSED, BranchEngine.MLP_REUSED, BranchEngine.REUSED
CARDS = [{"id": f"{n}", "class": "button", "characters": 4 + n} for n in range(5)]


class Branching(Straight):
    """It gives branches that tell row and step, and what it answers depends on those that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.graphs: list[str] = []
        self.wanted: list[tuple[str, ...]] = []
        self.pace = 1.0
        """By how much what it gives grows over the whole way."""
        self.apart = 0.0
        """How far rows are apart in it."""

    def call(self, inputs: Arrays, outputs: Sequence[str], graph: str = "") -> Future[Arrays]:
        self.graphs.append(graph)
        made = super().call(inputs, [], graph)
        if graph and self.down_since is None:
            plain, made = made, Future()
            plain.add_done_callback(lambda done: made.set_result(self._branched(inputs, outputs, graph, done.result())))
        return made

    def _branched(self, inputs: Arrays, outputs: Sequence[str], graph: str, plain: Arrays) -> Arrays:
        rows, tokens, _ = inputs["sample"].shape
        assert set(outputs) <= {"out_sample", *BranchEngine(graph).computed}
        self.wanted.append(tuple(name for name in outputs if name != "out_sample"))
        assert set(inputs) & set(Branch) == set(BranchEngine(graph).reused)
        assert ("valid" in inputs) is (Branch.ATTENTION in BranchEngine(graph).computed)
        told = 1 + self.apart * np.abs(inputs["sample"][:, 0, 0]) + self.pace * (1 - inputs["timestep"][:, 0] / 1000)
        own = np.broadcast_to(told[:, None, None, None], (rows, 2, 1 + tokens, 3)).astype(np.float32)
        branches = {branch: inputs.get(branch, own * (1 + (branch is Branch.MLP))) for branch in Branch}
        off = sum(value[:, :, :2].mean((1, 2, 3)) for value in branches.values())
        out = plain["out_sample"] + np.float32(0.5) * off[:, None, None]
        return {"out_sample": out, **{name: value for name, value in branches.items() if name in outputs}}


FACTS_WITH = replace(FACTS, branches=BranchFacts(blocks=2, width=3, calibrations=(FOUND,)))


def caching(engine: Any, **more: Any) -> AbstractContextManager[LayoutService]:
    return serving(engine, facts=FACTS_WITH, **{"default_steps": STEPS, **more})


def last(service: LayoutService, *arguments: Any, **options: Any) -> dict[str, Any]:
    """All that is answered."""
    return {name: value.tolist() for name, value in ask(service, *arguments, **options).wait().sent[-1].items()}


# --- plans ---


def test_each_branch_has_a_plan_of_its_own_whose_first_and_last_step_compute() -> None:
    plans = greedy_plans(CURVES, 0.15, STEPS)
    assert {branch: sorted(plan.full or ()) for branch, plan in plans.items()} == {
        Branch.ATTENTION: [0, 3, 5],
        Branch.MLP: [0, 2, 4, 5],
    }
    kept = KeptBranches(plans, 3)
    for branch in Branch:
        kept.take(0, [{branch: np.ones((2, 4, 3), np.float32)}])
    assert [kept.variant(step, both=False) for step in range(STEPS)] == [C, R, A, M, A, C]
    assert kept.steps_left(1, STEPS) == {R: 1, A: 2, M: 1, C: 1}
    assert (kept.steps_to_full(1, STEPS), kept.steps_to_full(1, STEPS - 1)) == (4, math.inf)


def test_what_padding_gives_is_neither_kept_nor_given_back() -> None:
    kept = KeptBranches(plans_by_change(0.5), 3)
    given = np.arange(2 * 9 * 3, dtype=np.float32).reshape(2, 9, 3)
    kept.take(0, [dict.fromkeys(Branch, given)])
    assert kept.nbytes == 2 * (2 * 3 * 3) * 4
    for value in kept.inputs(R, 0).values():
        assert value.shape == given.shape
        assert (value[:, :3] == given[:, :3]).all()
        assert not value[:, 3:].any()
    kept.forget()
    assert kept.nbytes == 0


# --- in the loop ---


def test_a_level_calls_the_engines_of_its_plan_and_off_calls_none_of_them() -> None:
    engine, told = Branching(), []  # type: ignore[var-annotated]
    with caching(engine, told=told) as service:
        ask(service, CARDS, cache="balanced").wait()
        assert engine.graphs == [C, R, A, M, A, C]
        both, none = ("attention", "mlp"), ()
        assert engine.wanted == [both, none, ("mlp",), ("attention",), none, none]  # what a step reuses, and no more
        until(lambda: any(name == "nereid_layouts_total" for name, _, _ in told))
        counted = {(labels["branch"], labels["how"]): 0.0 for name, _, labels in told if name == "nereid_layout_branches_total"}
        for name, value, labels in told:
            if name == "nereid_layout_branches_total":
                counted[labels["branch"], labels["how"]] += value
        assert counted == {
            ("attention", "computed"): 3,
            ("attention", "reused"): 3,
            ("mlp", "computed"): 4,
            ("mlp", "reused"): 2,
        }
        engine.graphs.clear()
        told.clear()
        off, unsaid = last(service, CARDS, cache="off"), last(service, CARDS)
    assert set(engine.graphs) == {""}
    assert not any(name == "nereid_layout_branches_total" for name, _, _ in told)
    assert off == unsaid
    with serving(Straight(), default_steps=STEPS) as service:
        assert last(service, CARDS) == off


def test_a_level_that_reuses_nothing_is_off() -> None:
    engine = Branching()
    with caching(engine) as service:
        ask(service, CARDS, cache="light").wait()
    assert engine.graphs == [""] * STEPS


def test_a_number_goes_by_the_runs_own_change() -> None:
    slow, quick = Branching(), Branching()
    slow.pace, quick.pace = 0.3, 30.0
    for engine in (slow, quick):
        with caching(engine) as service:
            ask(service, CARDS, num_inference_steps=12, cache="0.1").wait()
    assert slow.graphs[:2] == [C, C]  # how fast they change is known from the second on
    assert slow.graphs.count(R) >= 5
    assert set(quick.graphs[:6]) == {C}


def test_rows_that_share_calls_answer_as_they_do_alone() -> None:
    sections = [CARDS[: 1 + n % 5] for n in range(24)]
    options = [{"cache": ("balanced", "balanced", "aggressive", "0.2", "off")[n % 5], "seed": n} for n in range(24)]
    canvases = [1280, 768, 390]
    engine = Branching()
    engine.apart = 3.0
    with caching(engine) as service:
        alone = [last(service, one, canvases[n % 3], **options[n]) for n, one in enumerate(sections)]
        engine.calls.clear()
        engine.hold.clear()
        asked = [ask(service, one, canvases[n % 3], **options[n]) for n, one in enumerate(sections)]
        engine.hold.set()
        together = [{name: value.tolist() for name, value in answers.wait().sent[-1].items()} for answers in asked]
    assert together == alone
    assert any(len(call["sample"]) > 1 and set(Branch) & set(call) for call in engine.calls)


def test_a_run_that_must_hurry_computes_all_from_there_on() -> None:
    engine = Branching()
    slow = engine._answer
    engine._answer = lambda *call: (time.sleep(0.03), slow(*call))[-1]  # type: ignore[method-assign,func-returns-value]
    with caching(engine) as service:
        answer = ask(service, CARDS, num_inference_steps=60, cache="0.9", deadline_seconds=0.5).layout
    assert answer["degraded"][0]["reason"] == "deadline"
    at = engine.graphs.index("")
    assert set(engine.graphs[at:]) == {""}
    assert answer["drawn_by"] == "transformer"


def test_engines_of_one_process_die_once() -> None:
    """A run that was not inside is not held to account for a death, whichever engine it wanted to call."""
    engine, told = Branching(), []  # type: ignore[var-annotated]
    first = True
    plain = engine.call

    def call(inputs: Arrays, outputs: Sequence[str], graph: str = "") -> Future[Arrays]:
        nonlocal first
        if first and graph == R:
            first = False
            engine.down_since = 0.0
        return plain(inputs, outputs, graph)

    engine.call = call  # type: ignore[method-assign]
    with caching(engine, told=told, engine_patience_seconds=1e9) as service:
        expected = [last(service, CARDS, seed=n, cache="light") for n in range(3)]
        asked = [ask(service, CARDS, seed=0, cache="balanced")]
        asked += [ask(service, CARDS, seed=n, cache="light") for n in range(3)]
        until(lambda: not first)
        time.sleep(0.3)
        engine.down_since = None
        answers = [{name: value.tolist() for name, value in one.wait().sent[-1].items()} for one in asked]
    assert answers[1:] == expected
    assert sum(value for name, value, _ in told if name == "nereid_layout_engine_deaths_total") == 1


# --- what is refused, and read ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cache": "fast"}, "cache: 'fast' is not allowed; it must be off, light, balanced, aggressive or a threshold above 0"),
        ({"cache": "0"}, "cache: '0' is not allowed"),
        ({"cache": "nan"}, "cache: 'nan' is not allowed"),
        (
            {"cache": "light", "num_inference_steps": 7},
            "cache: 'light' is not calibrated for euler with 7 steps; it is for euler with 6 steps, and a threshold or off is "
            "allowed",
        ),
        ({"cache": "light", "scheduler": "unipc"}, "cache: 'light' is not calibrated for unipc with 6 steps"),
    ],
)
def test_what_is_not_there_is_refused_by_name(options: dict[str, Any], said: str) -> None:
    with caching(Branching()) as service:
        refused = ask(service, CARDS, **options).refused
    assert isinstance(refused, InvalidRequestError)
    assert str(refused).startswith(said)


@pytest.mark.parametrize("cache", ["balanced", "0.2"])
def test_without_engines_that_reuse_it_is_refused_and_off_is_not(cache: str) -> None:
    with serving(Straight()) as service:
        refused = ask(service, CARDS, cache=cache).refused
        ask(service, CARDS, cache="off").layout  # noqa: B018
    assert str(refused) == (
        f"cache: {cache} is not allowed; this model's transformer was exported without --cache, so that it cannot go on from "
        "kept branches"
    )


def write_facts(folder: Path, **changes: Any) -> Path:
    """A version folder with the engines' files, and what is known of them."""
    for engine in BranchEngine:
        (folder / engine).mkdir(parents=True)
        (folder / engine / "model.onnx").write_bytes(engine.encode())
    levels = {str(level): {"threshold": threshold} for level, threshold in LEVELS.items()}
    found = {"scheduler": "euler", "steps": STEPS, "curves": CURVES, "levels": levels, **changes}
    branches = {"blocks": 2, "width": 3, "calibrations": [found], "calibrated": engines_digest(folder)}
    (folder / LAYOUT_FILE).write_text(json.dumps({"scheduler": FLOW, "branches": branches}))
    return folder


def test_facts_are_read_with_the_calibrations_of_these_engines(tmp_path: Path) -> None:
    folder = write_facts(tmp_path / "1")
    (folder / "model.onnx").touch()
    model = LayoutModel.read("layout", folder, LayoutLimits(), "one")
    assert model.facts == FACTS_WITH
    others = model.worker_options().settings["others"]
    assert others.keys() == set(BranchEngine)
    assert others[A]["file"] == str(folder / "attention_reused" / "model.onnx")
    assert others[A]["outputs"] == ["out_sample", "mlp"]
    shapes = others[A]["warm_up"][0]
    assert shapes["attention"] == ("float32", [1, 2, 9, 3])
    assert "valid" not in shapes
    assert "mlp" not in shapes


def _spoilt(branch: Branch, curve: Sequence[float]) -> Mapping[str, Any]:
    return {"curves": {**CURVES, branch: [curve]}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scheduler": "best"}, "is none of nereid calibrate-layout's"),
        ({"curves": {"attention": []}}, "is none of nereid calibrate-layout's"),
        (_spoilt(Branch.MLP, [0.1] * 5), "a curve of"),
        (_spoilt(Branch.MLP, [math.nan] * 6), "must be numbers from 0 on"),
    ],
)
def test_calibrations_that_are_none_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        LayoutFacts.read(write_facts(tmp_path / "1", **changes))
    assert str(tmp_path / "1" / LAYOUT_FILE) in str(refused.value)
    assert "calibrate again" in str(refused.value)


def test_calibrations_of_other_engines_are_refused(tmp_path: Path) -> None:
    folder = write_facts(tmp_path / "1")
    (folder / R / "model.onnx").write_bytes(b"another")
    with pytest.raises(ValueError, match="its calibrations are of other engines than those beside it; calibrate again"):
        LayoutFacts.read(folder)

"""MLPs that pass over tokens: which engines a request's steps call, company, metrics, what is refused."""

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

from nereid.diffusion.dynamic_width import WHOLE_WITH_TOKENS, TokenEngine, WidthEngine, WidthTable
from nereid.flow.errors import InvalidRequestError
from nereid.layout.service import LayoutService
from nereid.layout.settings import KEPT, LAYOUT_FILE, LayoutFacts, LayoutLimits, LayoutModel

from waiting import until

TABLE = WidthTable(ranges=((250.0, WidthEngine.WIDE), (600.0, WidthEngine.MEDIUM), (math.inf, WidthEngine.NARROW)))
FACTS_WITH = replace(FACTS, widths=TABLE, tokens=True)
STEPS, BLOCKS = 8, 3
CARDS = [{"id": f"{n}", "class": "button", "characters": 4 + n} for n in range(5)]
SHARES = {"": 0.0, "narrow": 0.5, "medium": 0.2, "wide": 0.1}
SHARES |= {"tokens": 0.05} | {f"{name}_tokens": share + 0.05 for name, share in SHARES.items() if name}
DYNAMIC = {"transformer_tokens": "dynamic"}
BOTH = {**DYNAMIC, "transformer_width": "dynamic"}


class Passing(Straight):
    """What it answers tells which engine has computed it. `seen` has each call's graph and how many rows it has.

    Engines that pass over tokens keep two in three blocks' MLPs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def call(self, inputs: Arrays, outputs: Sequence[str], graph: str = "") -> Future[Arrays]:
        passing = str(graph).endswith("tokens")
        assert list(outputs) == (["out_sample", KEPT] if passing else ["out_sample"])
        rows = len(inputs["sample"])
        self.seen.append((str(graph), rows))
        plain, made = super().call(inputs, outputs, graph), Future[Arrays]()
        off, kept = np.float32(SHARES[graph]), {KEPT: np.full((rows, BLOCKS), 2, np.float32)} if passing else {}
        plain.add_done_callback(lambda done: made.set_result({"out_sample": done.result()["out_sample"] + off, **kept}))
        return made


def last(service: LayoutService, **options: Any) -> dict[str, Any]:
    """All that is answered."""
    return {name: value.tolist() for name, value in ask(service, CARDS, **options).wait().sent[-1].items()}


def test_engines_that_pass_over_tokens_have_the_ranges_of_the_slices() -> None:
    table = TABLE.passing_over_tokens()
    assert table.ranges == ((250.0, "wide_tokens"), (600.0, "medium_tokens"), (math.inf, "narrow_tokens"))
    assert table.passing_over_tokens() == table
    assert table.engines == (TokenEngine.NARROW, TokenEngine.MEDIUM, TokenEngine.WIDE)
    assert [engine.width for engine in TokenEngine] == [None, *WidthEngine]
    assert [WHOLE_WITH_TOKENS.engine(timestep) for timestep in (0, 1000)] == [TokenEngine.WHOLE] * 2


@pytest.mark.parametrize("options", [DYNAMIC, BOTH, {"transformer_width": "dynamic"}, {"transformer_tokens": "all"}])
def test_a_request_says_whether_the_whole_transformer_or_its_slices_pass_over_tokens(options: dict[str, str]) -> None:
    engine, told = Passing(), []  # type: ignore[var-annotated]
    with serving(engine, facts=FACTS_WITH, default_steps=STEPS, told=told) as service:
        last(service, **options)
    steps = [1000 - 125 * step for step in range(STEPS)]
    dynamic, sliced = options.get("transformer_tokens") == "dynamic", "transformer_width" in options
    table = (TABLE.passing_over_tokens() if sliced else WHOLE_WITH_TOKENS) if dynamic else TABLE
    expected = [str(table.engine(timestep)) if dynamic or sliced else "" for timestep in steps]
    assert [graph for graph, _ in engine.seen] == expected
    counted: Counter[str] = Counter()
    for name, value, labels in told:
        if name in ("nereid_layout_tokens_total", "nereid_layout_widths_total"):
            counted[next(iter(labels.values()))] += int(value)
    tokens = {"computed": STEPS * BLOCKS * 2, "skipped": STEPS * BLOCKS * (1 + len(CARDS) - 2)} if dynamic else {}
    widths = Counter(str(TABLE.engine(timestep)) for timestep in steps) if sliced else {}
    assert counted == {**tokens, **widths}


def test_rows_of_one_engine_share_calls_and_everybody_has_the_same_bytes_as_alone() -> None:
    options = [{"seed": n, **(DYNAMIC, {}, BOTH)[n % 3], "num_inference_steps": 4 + n % 5} for n in range(12)]
    with serving(Passing(), facts=FACTS_WITH) as service:
        alone = [last(service, **its) for its in options]
    engine, told = Passing(), []  # type: ignore[var-annotated]
    engine.hold.clear()
    with serving(engine, facts=FACTS_WITH, told=told) as service:
        first = ask(service, CARDS)
        until(lambda: engine.calls)
        inside = [ask(service, CARDS, **its) for its in options]
        engine.hold.set()
        together = [{name: value.tolist() for name, value in answers.wait().sent[-1].items()} for answers in inside]
        first.wait()
    assert together == alone
    assert len({str(its) for its in alone}) > 3
    assert max(rows for graph, rows in engine.seen if graph == "tokens") > 1
    every = sum(rows for graph, rows in engine.seen if graph.endswith("tokens")) * BLOCKS * (1 + len(CARDS))
    assert sum(value for name, value, _ in told if name == "nereid_layout_tokens_total") == every


@pytest.mark.parametrize(
    ("facts", "options", "said"),
    [
        (
            replace(FACTS_WITH, tokens=False),
            DYNAMIC,
            "transformer_tokens: dynamic is not allowed; this model's transformer was exported without --tokens, so that its "
            "MLPs have all tokens",
        ),
        (
            replace(FACTS_WITH, widths=None),
            BOTH,
            "transformer_width: dynamic is not allowed; this model's transformer was exported without --widths, so that it has "
            "one width",
        ),
        (FACTS_WITH, {"transformer_tokens": "some"}, "transformer_tokens: 'some' is not allowed; it must be one of all, dynamic"),
    ],
)
def test_tokens_that_cannot_be_passed_over_are_refused(facts: LayoutFacts, options: dict[str, str], said: str) -> None:
    with serving(Passing(), facts=facts) as service:
        refused = ask(service, CARDS, **options).refused
    assert isinstance(refused, InvalidRequestError)
    assert str(refused) == said


def test_it_goes_not_with_branches_that_are_kept() -> None:
    from test_branch_cache import FACTS_WITH as CUT

    with serving(Passing(), facts=replace(CUT, tokens=True), default_steps=6) as service:
        refused = ask(service, CARDS, **DYNAMIC, cache="0.2").refused
    assert str(refused) == "transformer_tokens: 'dynamic' is not allowed; it must be all beside cache (0.2)"


def test_the_process_loads_what_was_exported(tmp_path: Path) -> None:
    table = WidthTable(ranges=((250.0, WidthEngine.WIDE), (math.inf, WidthEngine.NARROW)))
    for widths, names in ((None, ["tokens"]), (table, ["narrow", "wide", "tokens", "narrow_tokens", "wide_tokens"])):
        facts = {"scheduler": FLOW, "tokens": True, **({} if widths is None else {"widths": widths.written()})}
        (tmp_path / LAYOUT_FILE).write_text(json.dumps(facts))
        model = LayoutModel(name="layout", facts=LayoutFacts.read(tmp_path), limits=LayoutLimits(), file=tmp_path / "model.onnx")
        others = model.worker_options().settings["others"]
        assert [*others] == names
        for name, its in others.items():
            assert its["file"] == str(tmp_path / name / "model.onnx")
            assert its["outputs"] == (["out_sample", KEPT] if name.endswith("tokens") else ["out_sample"])
    (tmp_path / LAYOUT_FILE).write_text(json.dumps({"scheduler": FLOW}))
    assert not LayoutFacts.read(tmp_path).tokens

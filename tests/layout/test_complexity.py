"""Steps by a section's complexity: what counts, classes, what a request may ask, what is refused."""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drawing import FACTS, FLOW, Straight, ask, asked, serving

from nereid.diffusion.dynamic_width import WHOLE_WITH_TOKENS, WidthEngine, WidthTable
from nereid.layout.complexity import AdaptiveSteps, classes_of, complexity
from nereid.layout.requests import parse_layout_request
from nereid.layout.service import LayoutService
from nereid.layout.settings import LAYOUT_FILE, BranchFacts, LayoutFacts, LayoutLimits, adaptive_digest

from sections import section, two_cards

ADAPTIVE = AdaptiveSteps(scheduler="euler", classes=((3.0, 4), (8.0, 6), (math.inf, 10)))
ONE = [{"id": "a", "class": "button", "characters": 4}]
CARD = [{"id": "c", "class": "card"}, {"id": "t", "class": "paragraph", "parent": "c", "characters": 200}]
MANY = [{"id": f"{n}", "class": "button", "characters": 4} for n in range(9)]


def test_elements_nesting_and_text_count() -> None:
    one = section({"id": "a", "class": "paragraph", "characters": 100})
    longer = section({"id": "a", "class": "paragraph", "characters": 700})
    two = section({"id": "a", "class": "paragraph", "characters": 100}, {"id": "b", "class": "button"})
    nested = section({"id": "a", "class": "card"}, {"id": "b", "class": "paragraph", "parent": "a", "characters": 100})
    assert complexity(one) < complexity(two) < complexity(nested)
    assert complexity(longer) == complexity(one) + 3


def test_classes_are_of_about_equal_size() -> None:
    found = [section(*MANY[: 1 + n]) for n in range(8)]
    bounds = classes_of(found, 4)
    assert bounds == sorted(bounds)
    assert bounds[-1] == math.inf
    low, sizes = -math.inf, []
    for bound in bounds:
        sizes.append(sum(low < complexity(one) <= bound for one in found))
        low = bound
    assert sizes == [2, 2, 2, 2]
    assert classes_of([two_cards()[0]] * 5, 4) == [math.inf]
    assert classes_of(found[:1], 4) == [math.inf]


def adapting(**more: Any) -> AbstractContextManager[LayoutService]:
    return serving(Straight(), facts=replace(FACTS, adaptive=ADAPTIVE), **more)


def test_a_section_takes_the_steps_of_its_class() -> None:
    with adapting() as service:
        assert [ask(service, its, effort="adaptive").layout["steps"] for its in (ONE, CARD, MANY)] == [4, 6, 10]
        assert [ask(service, its, **how).layout["steps"] for its in (ONE, MANY) for how in ({}, {"effort": "full"})] == [8] * 4
        assert ask(service, MANY, effort="full", num_inference_steps=3).layout["steps"] == 3
    with adapting(max_steps=5, default_steps=5) as service:
        assert ask(service, MANY, effort="adaptive").layout["steps"] == 5


TABLE = WidthTable(ranges=((math.inf, WidthEngine.NARROW),))
BY_WIDTH = replace(ADAPTIVE, dynamic=((5, True), (7, False), (None, False)))
FACTS_WITH = replace(FACTS, adaptive=BY_WIDTH, widths=TABLE, tokens=True, branches=BranchFacts(blocks=1, width=4))


def taken(section: Any, facts: LayoutFacts = FACTS_WITH, **options: Any) -> tuple[int, WidthTable | None]:
    """Steps and width of a request."""
    made = parse_layout_request(asked(section, effort="adaptive", **options), facts, LayoutLimits())
    return len(made.table), made.widths


def test_a_section_takes_the_width_of_its_class_unless_the_request_names_one() -> None:
    assert [taken(its) for its in (ONE, CARD, MANY)] == [(5, TABLE), (6, None), (10, None)]
    dynamic = [taken(its, transformer_width="dynamic") for its in (ONE, CARD, MANY)]
    assert dynamic == [(5, TABLE), (7, TABLE), (10, TABLE)]  # those of the whole transformer where none were good enough
    assert taken(ONE, transformer_width="full") == (4, None)
    assert parse_layout_request(asked(ONE), FACTS_WITH, LayoutLimits()).widths is None


def test_what_was_not_calibrated_with_dynamic_width_goes_without() -> None:
    assert taken(ONE, transformer_tokens="dynamic") == (4, WHOLE_WITH_TOKENS)
    assert taken(ONE, cache="0.1") == (4, None)
    assert taken(ONE, replace(FACTS_WITH, widths=None)) == (4, None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"effort": "little"}, "effort: 'little' is not allowed; it must be one of full, adaptive"),
        (
            {"effort": "adaptive", "num_inference_steps": 8},
            "effort: 'adaptive' is not allowed; it must be full beside num_inference_steps (8)",
        ),
        ({"effort": "adaptive", "scheduler": "unipc"}, "effort: 'adaptive' is not calibrated for unipc; it is for euler"),
    ],
)
def test_what_is_not_there_is_refused_by_name(options: dict[str, Any], said: str) -> None:
    with adapting() as service:
        assert str(ask(service, ONE, **options).refused) == said


def test_without_a_calibration_it_is_refused() -> None:
    with serving(Straight()) as service:
        refused = ask(service, ONE, effort="adaptive").refused
    assert str(refused) == (
        "effort: 'adaptive' is not calibrated for euler; nothing is (nereid calibrate-layout --adaptive does it)"
    )


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"engine")
    classes = [{"up_to": 3.0, "steps": 4}, {"up_to": 8.0, "steps": 6}, {"up_to": None, "steps": 10}]
    adaptive = {"scheduler": "euler", "classes": classes, "calibrated": adaptive_digest(folder, dynamic=False), **changes}
    (folder / LAYOUT_FILE).write_text(json.dumps({"scheduler": FLOW, "adaptive": adaptive}))
    return folder


def test_classes_are_read_for_this_engine(tmp_path: Path) -> None:
    assert LayoutFacts.read(write(tmp_path / "1")).adaptive == ADAPTIVE
    (tmp_path / "1" / "model.onnx").write_bytes(b"another")
    with pytest.raises(ValueError, match="adaptive steps are of another engine than the one beside it; calibrate again"):
        LayoutFacts.read(tmp_path / "1")


def test_classes_of_dynamic_width_are_read_for_these_slices(tmp_path: Path) -> None:
    folder = write(tmp_path / "1")
    (folder / "narrow").mkdir()
    (folder / "narrow" / "model.onnx").write_bytes(b"slice")
    raw = json.loads((folder / LAYOUT_FILE).read_text())
    for its, steps, width in zip(raw["adaptive"]["classes"], (5, None, 9), ("dynamic", "full", "full"), strict=True):
        its |= {"dynamic_steps": steps, "width": width}
    raw["adaptive"]["calibrated"] = adaptive_digest(folder, dynamic=True)
    (folder / LAYOUT_FILE).write_text(json.dumps(raw))
    assert LayoutFacts.read(folder).adaptive == replace(ADAPTIVE, dynamic=((5, True), (None, False), (9, False)))
    (folder / "narrow" / "model.onnx").write_bytes(b"another")
    with pytest.raises(ValueError, match="adaptive steps are of another engine"):
        LayoutFacts.read(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"scheduler": "best"},
        {"classes": [{"up_to": None, "steps": 4, "dynamic_steps": None, "width": "dynamic"}]},
        {"classes": [{"up_to": None, "steps": 4, "dynamic_steps": 0, "width": "full"}]},
        {"classes": [{"up_to": None, "steps": 4, "dynamic_steps": 4}]},
        {"classes": [{"up_to": None, "steps": 4, "dynamic_steps": 4, "width": "wide"}]},
        {"classes": [{"up_to": 3.0, "steps": 4, "dynamic_steps": 4, "width": "full"}, {"up_to": None, "steps": 4}]},
        {"classes": []},
        {"classes": [{"up_to": 3.0, "steps": 4}]},
        {"classes": [{"up_to": None, "steps": 0}]},
        {"classes": [{"up_to": 5.0, "steps": 4}, {"up_to": 3.0, "steps": 4}, {"up_to": None, "steps": 4}]},
        {"classes": [{"steps": 4}]},
    ],
)
def test_classes_that_are_none_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="calibrate again"):
        LayoutFacts.read(write(tmp_path / "1", **changes))

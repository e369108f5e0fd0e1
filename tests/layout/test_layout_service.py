"""`layout` below Triton: what is answered, in company and alone, worse than asked for and refused."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from drawing import FLOW, HTML, Answers, Straight, ask, asked, boxes_of, serving, text

from nereid.flow.errors import CancelledError, InvalidRequestError, QueueFullError
from nereid.layout.elements import Box
from nereid.layout.flow import flow_layout
from nereid.layout.formats import css
from nereid.layout.picture import picture
from nereid.layout.settings import LayoutFacts, LayoutLimits, LayoutModel

from sections import DESKTOP, section, two_cards
from waiting import until

CARDS, BOXES = two_cards()
CANVAS = {"width": 1280, "density": "normal", "columns": 12, "style": "grid"}
ELEMENTS: list[dict[str, Any]] = [
    {"id": element.id, "class": str(element.kind), "parent": element.parent, "characters": element.characters}
    for element in CARDS.elements
]


def leading_to(boxes: list[Box]) -> Straight:
    return Straight(lambda tokens: boxes)


# --- what is answered ---


def test_an_answer_has_the_boxes_that_the_flow_leads_to_and_says_how_they_were_made() -> None:
    with serving(leading_to(BOXES)) as service:
        answers = ask(service, ELEMENTS, CANVAS)
        answer = answers.layout
    assert list(boxes_of(answer).values()) == BOXES
    assert answer["canvas"] == {**CANVAS, "height": max(box.bottom for box in BOXES) + 32}
    first = answer["elements"][3]
    assert {name: first[name] for name in ("id", "parent", "class", "order", "fixed")} == {
        "id": "one-title",
        "parent": "one",
        "class": "subheading",
        "order": 3,
        "fixed": [],
    }
    assert (answer["checks"], answer["repaired"], answer["degraded"]) == ([], [], [])
    assert (answer["score"], answer["seed"], answer["steps"], answer["drawn_by"]) == (1.0, 7, 8, "transformer")
    assert answer["transformer_width"] == "full"
    last = answers.sent[-1]
    assert last["boxes"].tolist() == [list(box) for box in BOXES]
    assert (last["score"].item(), last["layout_seed"].item(), last["num_inference_steps"].item()) == (1.0, 7, 8)


def test_what_repair_moves_is_told() -> None:
    drawn = [box._replace(x=box.x + 3) if place == 1 else box for place, box in enumerate(BOXES)]
    with serving(leading_to(drawn)) as service:
        answer = ask(service, ELEMENTS, CANVAS).layout
    assert list(boxes_of(answer).values()) == BOXES
    assert answer["repaired"] == [{"element": "lead", "x": -3.0, "y": 0.0, "width": 0.0, "height": 0.0}]


def test_checks_that_stay_broken_are_in_the_answer() -> None:
    elements = [{**ELEMENTS[0], "fixed": {"x": 0, "y": 0, "width": 8, "height": 8}}]
    with serving(Straight()) as service:
        answer = ask(service, elements, CANVAS).layout
    assert {check["check"] for check in answer["checks"] if check["severity"] == "error"} == {"minimum_size"}
    assert answer["score"] <= 0.5
    assert answer["elements"][0]["fixed"] == ["x", "y", "width", "height"]


def test_of_n_candidates_the_best_is_answered_and_its_seed_alone_gives_it_again() -> None:
    """The engine leaves each row where its noise has put it, so that candidates differ."""
    still = Straight()
    still.spoil = np.zeros_like
    with serving(still, default_steps=2) as service:
        one = [ask(service, ELEMENTS, CANVAS, seed=seed).layout for seed in (7,)]
        best = ask(service, ELEMENTS, CANVAS, n=6).layout
        again = ask(service, ELEMENTS, CANVAS, seed=best["seed"]).layout
    assert best["score"] >= one[0]["score"]
    assert best["seed"] != 7
    assert again == best


@pytest.mark.parametrize("scheduler", ["euler", "dpmpp_2m", "unipc", "dpmpp_2m_sde"])
def test_any_solver_of_a_flow_draws(scheduler: str) -> None:
    with serving(leading_to(BOXES)) as service:
        answer = ask(service, ELEMENTS, CANVAS, scheduler=scheduler, num_inference_steps=9).layout
    assert list(boxes_of(answer).values()) == BOXES
    assert answer["steps"] == 9


def test_forms_of_an_answer() -> None:
    with serving(leading_to(BOXES)) as service:
        made = {form: ask(service, ELEMENTS, CANVAS, format=form).layout for form in ("json", "css", "figma", "svg")}
    assert not {"css", "figma", "svg"} & made["json"].keys()
    rule = next(line for line in made["css"]["css"].splitlines() if line.startswith('[id="one-title"]'))
    assert "left: 16px; top: 16px;" in rule  # within its card
    card = next(node for node in made["figma"]["figma"]["children"] if node["id"] == "one")
    assert [(child["id"], child["x"], child["y"]) for child in card["children"]] == [("one-title", 16, 16), ("one-text", 16, 72)]
    assert made["svg"]["svg"].count("<rect") == 1 + len(BOXES)


def test_no_id_breaks_out_of_a_form() -> None:
    names = ['</style><script>alert("1")</script>', "\x00\x1b]\ufffe", "\ud800", "a\\22 b\n}"]
    made = section(*({"id": name, "class": "heading", "characters": 5} for name in names))
    boxes = flow_layout(made)
    sheet, drawn = css(made, boxes), picture(made, boxes)
    assert "<" not in sheet
    assert len(sheet.splitlines()) == 1 + len(names)
    texts = [element.text for element in ElementTree.fromstring(drawn.encode()).iter("{http://www.w3.org/2000/svg}text")]
    assert texts == [names[0], "\ufffd\ufffd]\ufffd", "\ufffd", "a\\22 b\ufffd}"]


def test_a_caller_that_takes_no_answer_is_still_closed() -> None:
    class Gone(Answers):
        def send(self, outputs: Any) -> None:
            raise RuntimeError("nobody is there")

    gone = Gone()
    with serving(Straight()) as service:
        service.handle(asked(), gone)
        gone.wait()


def test_html_is_read_as_a_section() -> None:
    with serving(Straight()) as service:
        answer = ask(service).layout
    assert [item["class"] for item in answer["elements"]] == ["heading", "paragraph", "button"]
    assert not any(check["severity"] == "error" for check in answer["checks"])


def test_a_stream_tells_the_steps_in_order_and_the_layout_last() -> None:
    with serving(leading_to(BOXES)) as service:
        answers = ask(service, ELEMENTS, CANVAS, num_inference_steps=7, stream_interval=2).wait()
    assert [sent["step"].item() for sent in answers.sent] == [2, 4, 6, 7]
    assert ["score" in sent for sent in answers.sent] == [False, False, False, True]
    shown = json.loads(answers.sent[0]["layout"].item())
    assert (shown["step"], shown["num_inference_steps"]) == (2, 7)
    assert list(boxes_of(shown).values()) == BOXES  # the straight flow's prediction is its end


# --- what is given of the boxes ---


def fixed(*names: str) -> list[dict[str, Any]]:
    return [
        {**element, "fixed": {name: getattr(box, name) for name in names}} for element, box in zip(ELEMENTS, BOXES, strict=True)
    ]


@pytest.mark.parametrize("names", [("x", "y"), ("width", "height"), ("x", "y", "width", "height")])
def test_fixed_fields_stand_in_every_call_and_in_the_answer(names: tuple[str, ...]) -> None:
    engine = Straight()  # leads elsewhere
    with serving(engine, default_steps=3) as service:
        answer = ask(service, fixed(*names), CANVAS).layout
    for call in engine.calls:
        mask = call["field_mask"][0] >= 1
        assert mask[: len(BOXES)].sum() == len(names) * len(BOXES)
        assert (call["sample"][0][mask] == call["known"][0][mask]).all()
    for box, given in zip(boxes_of(answer).values(), BOXES, strict=True):
        assert [getattr(box, name) for name in names] == [getattr(given, name) for name in names]


def test_a_draft_guides_and_does_not_bind() -> None:
    drafted = [
        {**element, "draft": dict(zip(("x", "y", "width", "height"), box, strict=True))}
        for element, box in zip(ELEMENTS, BOXES, strict=True)
    ]
    engine = Straight()
    with serving(engine, default_steps=1) as service:
        ask(service, drafted, CANVAS).wait()
        refused = ask(service, [drafted[0], ELEMENTS[1]], CANVAS).refused
    (call,) = engine.calls
    assert set(np.unique(call["field_mask"][0, : len(BOXES)])) == {0.5}
    assert call["known"][0, : len(BOXES)].any()
    assert not (call["sample"][0, : len(BOXES)] == call["known"][0, : len(BOXES)]).any()
    assert str(refused) == "elements.lead.draft: None is not allowed; it must be given, as other elements have one"


# --- company ---


def test_sections_of_one_bucket_share_calls_and_others_do_not() -> None:
    engine = Straight()
    engine.hold.clear()
    large = [{"id": f"{n}", "class": "button", "characters": 4} for n in range(12)]
    with serving(engine, default_steps=4) as service:
        first = ask(service, HTML)
        until(lambda: engine.calls)
        others = [ask(service, ELEMENTS, CANVAS, seed=n) for n in range(3)] + [ask(service, large)]
        engine.hold.set()
        assert all(answers.layout for answers in (first, *others))
    shapes = {call["sample"].shape for call in engine.calls}
    assert {shape[1] for shape in shapes} == {8, 16}
    assert max(shape[0] for shape in shapes if shape[1] == 8) > 1
    assert max(shape[0] for shape in shapes if shape[1] == 16) == 1


def test_what_is_due_first_ends_first_where_calls_cannot_be_shared() -> None:
    """Where both took turns, both would end when the later one does."""
    engine = Straight()
    engine.hold.clear()
    large = [{"id": f"{n}", "class": "button", "characters": 4} for n in range(12)]
    with serving(engine, default_steps=4) as service:
        first = ask(service, large, deadline_seconds=30.0)
        until(lambda: engine.calls)
        second = ask(service, ELEMENTS, CANVAS, deadline_seconds=60.0)
        engine.hold.set()
        assert first.layout
        assert second.layout
    assert [call["sample"].shape[1] for call in engine.calls] == [16] * 4 + [8] * 4


def test_too_few_rows_are_filled_up_and_never_answered() -> None:
    engine = leading_to(BOXES)
    with serving(engine, engine_min_batch_size=2) as service:
        answer = ask(service, ELEMENTS, CANVAS).layout
    assert {len(call["sample"]) for call in engine.calls} == {2}
    assert list(boxes_of(answer).values()) == BOXES


# --- worse than asked for ---


def test_over_its_deadline_a_request_takes_fewer_steps_and_says_so() -> None:
    engine = leading_to(BOXES)
    told: list[tuple[str, float, dict[str, str]]] = []
    slow = engine._answer
    engine._answer = lambda *call: (time.sleep(0.03), slow(*call))[-1]  # type: ignore[method-assign,func-returns-value]
    with serving(engine, told=told) as service:
        in_time = ask(service, ELEMENTS, CANVAS, num_inference_steps=4, deadline_seconds=60.0).layout
        took = math.inf
        for _ in range(5):  # a machine that stands still for a while makes one late, and not all
            start = time.monotonic()
            late = ask(service, ELEMENTS, CANVAS, num_inference_steps=100, deadline_seconds=0.4).layout
            if (took := min(took, time.monotonic() - start)) < 1.5:
                break
    assert (in_time["steps"], in_time["degraded"]) == (4, [])
    assert 1 <= late["steps"] < 20
    assert took < 1.5
    assert [one["reason"] for one in late["degraded"]] == ["deadline"]
    assert late["degraded"][0]["said"] == "fewer than the 100 steps asked for were taken, to meet 0.4 s"
    assert list(boxes_of(late).values()) == BOXES  # the flow was followed to its end
    assert ("nereid_layout_degraded_total", 1, {"reason": "deadline"}) in told


def test_a_solver_with_memory_ends_sooner_as_well() -> None:
    engine = leading_to(BOXES)
    slow = engine._answer
    engine._answer = lambda *call: (time.sleep(0.005), slow(*call))[-1]  # type: ignore[method-assign,func-returns-value]
    with serving(engine) as service:
        ask(service, ELEMENTS, CANVAS).wait()  # what a call costs is known from here on
        answer = ask(service, ELEMENTS, CANVAS, scheduler="unipc", num_inference_steps=200, deadline_seconds=0.2).layout
    assert answer["steps"] < 200
    assert list(boxes_of(answer).values()) == BOXES


def test_without_an_engine_rules_place_the_boxes_and_the_answer_says_so() -> None:
    engine, told = Straight(), []  # type: ignore[var-annotated]
    engine.down_since = time.monotonic()
    with serving(engine, told=told, engine_patience_seconds=0.1) as service:
        answer = ask(service, ELEMENTS, CANVAS).layout
    assert list(boxes_of(answer).values()) == flow_layout(CARDS)
    assert (answer["drawn_by"], answer["steps"], answer["transformer_width"]) == ("rules", 0, None)
    assert answer["degraded"] == [
        {"reason": "engine", "said": "the boxes are placed by rules, because the engine's process is being replaced"}
    ]
    assert ("nereid_layout_degraded_total", 1, {"reason": "engine"}) in told


def test_an_engine_that_is_back_in_time_draws() -> None:
    engine = leading_to(BOXES)
    engine.down_since = time.monotonic()
    with serving(engine, engine_patience_seconds=20.0) as service:
        answers = ask(service, ELEMENTS, CANVAS)
        time.sleep(0.2)
        engine.down_since = None
        assert answers.layout["drawn_by"] == "transformer"


def test_an_engine_whose_boxes_are_no_numbers_is_answered_for_by_rules() -> None:
    engine = Straight()
    engine.spoil = lambda made: made * np.nan
    with serving(engine) as service:
        answer = ask(service, ELEMENTS, CANVAS).layout
    assert answer["drawn_by"] == "rules"
    assert "layout_transformer: the output holds NaN" in answer["degraded"][0]["said"]


# --- refused ---

BUTTON = {"class": "button", "characters": 4}


@pytest.mark.parametrize(
    ("section", "canvas", "said"),
    [
        ([{"id": "a"}], 1280, "elements.a.class: None is not allowed; it must be one of heading,"),
        (
            [{"id": "a", "class": "card", "parent": "b"}, {"id": "b", "class": "card", "parent": "a"}],
            1280,
            "elements.a.parent: 'b' is not allowed; it must be an element that is not inside it (a cycle)",
        ),
        (
            [{"id": "a", **BUTTON, "fixed": {"x": 1270, "width": 100}}],
            1280,
            "elements.a.width: 100.0 is not allowed; it must be inside",
        ),
        ([{"id": f"e{n}", **BUTTON} for n in range(33)], 1280, "(e32 is one too many)"),
        ([{"id": "a", **BUTTON}], 0, "canvas.width: 0 is not allowed; it must be an integer, 240 to 2560"),
        (
            "<section><h2>Open</section>",
            1280,
            "line 1 of html: '</section>' is not allowed; it must be the end of the tag opened last",
        ),
        ("<section></section>", 1280, "html: '' is not allowed; it must be a section with at least one element"),
        ([{"id": "a", **BUTTON, "draft": {"x": 1, "y": 1, "width": 5}}], 1280, "elements.a.draft.height: None is not allowed"),
    ],
)
def test_a_section_that_is_none_is_refused_in_one_sentence_that_names_the_element(section: Any, canvas: Any, said: str) -> None:
    with serving(Straight()) as service:
        refused = ask(service, section, canvas).refused
    assert isinstance(refused, InvalidRequestError)
    assert said in str(refused)
    assert "\n" not in str(refused)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"html": text("<p>")}, "html: html and elements is not allowed; it must be one of html and elements"),
        ({"elements": None}, "html: nothing is not allowed; it must be one of html and elements"),
        ({"elements": text("[{")}, "elements: '[{' is not allowed; it must be JSON ("),
        ({"elements": text("[" * 100_000)}, "nested less deeply"),
        ({"elements": text(" " * 200_001)}, "characters of elements: 200001 is not allowed; it must be at most 200000"),
        ({"elements": np.array([b"\xff"], object)}, "elements: b'\\xff' is not allowed; it must be UTF-8 text"),
        ({"canvas": None}, "canvas: nothing is not allowed"),
        ({"canvas": text("wide")}, "canvas: 'wide' is not allowed; it must be JSON ("),
        ({"canvas": text("true")}, "canvas.width: True is not allowed"),
        ({"canvas": text("1280.5")}, "canvas.width: 1280.5 is not allowed; it must be an integer, 240 to 2560 (CSS pixels)"),
        ({"format": text("pdf")}, "format: 'pdf' is not allowed; it must be one of json, css, figma, svg"),
        ({"scheduler": text("ddim")}, "scheduler: ddim is not allowed for a rectified flow"),
        ({"scheduler": text("best")}, "scheduler: 'best' is not allowed; it must be one of"),
        ({"num_inference_steps": np.array([201], np.int32)}, "num_inference_steps: 201 is not allowed; it must be 1 to 200"),
        ({"n": np.array([17], np.int32)}, "n: 17 is not allowed; it must be 1 to 16"),
        ({"seed": np.array([-1], np.int64)}, "seed: -1 is not allowed"),
        ({"stream_interval": np.array([0], np.int32)}, "stream_interval: 0 is not allowed"),
        ({"deadline_seconds": np.array([np.nan], np.float32)}, "deadline_seconds: nan is not allowed"),
        ({"run_id": text("no id!")}, "run_id: 'no id!' is not allowed"),
        ({"request_parameters": text('{"sead": 3}')}, "sead is not a field of this model; did you mean seed?"),
    ],
)
def test_options_that_are_not_allowed_are_refused_by_name(changes: dict[str, Any], said: str) -> None:
    inputs = {name: value for name, value in {**asked(ELEMENTS), **changes}.items() if value is not None}
    with serving(Straight()) as service:
        answers = Answers()
        service.handle(inputs, answers)
        refused = answers.refused
    assert isinstance(refused, InvalidRequestError)
    assert said in str(refused)


def test_one_more_than_may_wait_is_refused_at_once() -> None:
    engine = Straight()
    engine.hold.clear()
    with serving(engine, max_inflight=1, max_queue=1, max_candidates=1) as service:
        first = ask(service)
        until(lambda: engine.calls)
        ask(service)
        assert isinstance(ask(service).refused, QueueFullError)
        engine.hold.set()
        assert first.layout


def test_a_run_is_watched_and_cancelled_by_its_id() -> None:
    engine = Straight()
    engine.hold.clear()
    with serving(engine) as service:

        def ask_of(name: str, run_id: str) -> str:
            answers = Answers()
            service.handle({name: text(run_id)}, answers)
            return str(answers.wait().sent[0]["run_state"].item().decode())

        answers = ask(service, run_id="secret")
        until(lambda: engine.calls)
        assert ask_of("watch", "secret") == "running"
        assert ask_of("watch", "other") == "unknown"
        assert ask_of("cancel", "secret") == "running"
        assert isinstance(answers.refused, CancelledError)
        assert ask_of("watch", "secret") == "failed"


def test_metrics_count_requests_steps_and_whether_checks_were_passed() -> None:
    told: list[tuple[str, float, dict[str, str]]] = []
    with serving(leading_to(BOXES), told=told) as service:
        ask(service, ELEMENTS, CANVAS, num_inference_steps=5).wait()
        assert ask(service, ELEMENTS, 0).refused
    assert ("nereid_layout_requests_total", 1, {"outcome": "success"}) in told
    assert ("nereid_layout_requests_total", 1, {"outcome": "invalid"}) in told
    assert ("nereid_layout_answers_total", 1, {"passed": "true"}) in told
    assert sum(value for name, value, _ in told if name == "nereid_layout_steps_total") == 5
    assert ("nereid_layouts_total", 1, {}) in told


# --- what was exported ---


def test_a_model_says_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"parameter engine: onnxruntime needs model.onnx, which .* has not; export it"):
        LayoutModel.read("layout", tmp_path, LayoutLimits(), "")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ValueError, match=r"layout\.json cannot be read"):
        LayoutModel.read("layout", tmp_path, LayoutLimits(), "")
    for setting, value in (("use_dynamic_shifting", True), ("num_train_timesteps", 500)):
        (tmp_path / "layout.json").write_text(json.dumps({"scheduler": {**FLOW, setting: value}}))
        with pytest.raises(ValueError, match=f"is not what export writes: scheduler setting {setting}: {value}"):
            LayoutFacts.read(tmp_path)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"engine": "tensorrt"}, "parameter engine: 'tensorrt' is not allowed; it must be onnxruntime or openvino"),
        ({"default_steps": "300"}, "parameter default_steps: 300 is not allowed; it must be at most max_steps (200)"),
        ({"max_candidates": "100"}, "parameter max_candidates: 100 is not allowed; it must be at most max_inflight (64)"),
        ({"steps": "3"}, "parameter steps: not known"),
    ],
)
def test_limits_that_are_none_are_refused_by_name(parameters: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        LayoutLimits.from_parameters(parameters)


def test_the_canvas_of_a_request_may_be_its_width_alone() -> None:
    with serving(Straight()) as service:
        assert ask(service, HTML, 1280).layout["canvas"]["columns"] == DESKTOP.columns

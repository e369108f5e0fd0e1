"""`page` as a service: requests as raw tensors, refusals by name, runs by their ids, what it counts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nereid.flow import request_ids
from nereid.flow.errors import CancelledError, DeadlineError, InvalidRequestError, QueueFullError, RequestError, StoppingError
from nereid.flow.flight_record import Flight, FlightRecord
from nereid.flow.metrics import Recorder
from nereid.flow.request_parameters import REQUEST_PARAMETERS
from nereid.page import service as module
from nereid.page.requests import parse_page_request
from nereid.page.service import PageService
from nereid.page.settings import PageFacts, PageLimits
from nereid.page.stages import SiblingStages, Stage, Terms
from nereid_protocol.metrics import PAGE_REQUESTS

from page_forms import FACTS, ScriptedStages, Together, model, standing_clock
from waiting import until


def text(value: str) -> np.ndarray:
    return np.array([value.encode()], np.object_)


def inputs(brief: str = "landing page for a bakery", **more: Any) -> dict[str, np.ndarray]:
    kinds = {int: np.int32, float: np.float32}
    made = {"brief": text(brief)}
    for name, value in more.items():
        made[name] = text(value) if isinstance(value, str) else np.array([value], kinds[type(value)])
    return made


@dataclass
class Reply:
    sent: list[dict[str, Any]] = field(default_factory=list)
    error: Exception | None = None
    gone: bool = False
    closed: threading.Event = field(default_factory=threading.Event)

    def send(self, outputs: Mapping[str, np.ndarray]) -> None:
        self.sent.append({name: value.item() for name, value in outputs.items()})

    def close(self, error: Exception | None = None) -> None:
        self.error = error
        self.closed.set()

    def is_cancelled(self) -> bool:
        return self.gone


@dataclass
class Served:
    service: PageService
    stages: ScriptedStages
    counted: list[tuple[str, float, Mapping[str, str]]]

    def ask(self, wait: bool = True, **asked: Any) -> Reply:
        reply = Reply()
        self.service.handle(inputs(**asked), reply)
        assert not wait or reply.closed.wait(60)
        return reply


@pytest.fixture
def served() -> Iterator[Served]:
    stages, counted = ScriptedStages(), []  # type: ignore[var-annotated]
    recorder = Recorder(lambda metric, value, labels: counted.append((metric.name, value, labels)))
    made = Served(PageService(model(max_pages=2), stages, recorder), stages, counted)
    yield made
    made.service.stop()


def test_an_answer_is_a_page_and_what_is_said_of_it(served: Served) -> None:
    (answer,) = served.ask(seed=5).sent
    facts = json.loads(answer["page"])
    assert answer["html"].decode().startswith("<!doctype html>")
    assert (answer["passed"], answer["page_seed"], facts["seed"]) == (True, 5, 5)


def test_a_stream_has_the_page_so_far(served: Served) -> None:
    *shown, last = served.ask(stream_interval=1).sent
    assert [json.loads(answer["page"])["step"] for answer in shown] == list(range(1, len(shown) + 1))
    assert "passed" in last
    assert not any("passed" in answer for answer in shown)


@pytest.mark.parametrize(
    ("asked", "said", "field_name"),
    [
        ({"brief": "x" * 10_000}, "characters in brief: 10000 is not allowed; it must be 1 to 2000", "brief"),
        ({"brief": ""}, "brief: '' is not allowed", "brief"),
        ({"brief": " \u200b\n!?"}, "some of them letters or digits", "brief"),
        ({"width": 100}, "width: 100 is not allowed; it must be 240 to 2560", "width"),
        ({"width": 100_000}, "width: 100000 is not allowed", "width"),
        ({"density": "airy"}, "density: 'airy' is not allowed; it must be one of compact, normal, spacious", "density"),
        ({"sections": 0}, "sections: 0 is not allowed; it must be 1 to 12", "sections"),
        ({"sections": 13}, "sections: 13 is not allowed", "sections"),
        ({"pictures": -1}, "pictures: -1 is not allowed", "pictures"),
        ({"pictures": 25}, "pictures: 25 is not allowed; it must be 0 to 24", "pictures"),
        ({"seed": -1}, "seed: -1 is not allowed", "seed"),
        ({"priority": 10}, "priority: 10 is not allowed; it must be 0 to 9", "priority"),
        ({"deadline_seconds": 0.0}, "deadline_seconds: 0.0 is not allowed", "deadline_seconds"),
        ({"deadline_seconds": float("nan")}, "deadline_seconds: nan is not allowed", "deadline_seconds"),
        ({"timeout_seconds": -1.0}, "timeout_seconds: -1.0 is not allowed", "timeout_seconds"),
        ({"stream_interval": 0}, "stream_interval: 0 is not allowed", "stream_interval"),
        ({"run_id": "a b"}, "run_id: 'a b' is not allowed", "run_id"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_sentence(
    served: Served, asked: dict[str, Any], said: str, field_name: str
) -> None:
    reply = served.ask(**asked)
    assert isinstance(reply.error, InvalidRequestError)
    assert said in str(reply.error)
    assert "\n" not in str(reply.error)
    assert reply.error.field == field_name
    assert reply.sent == []


def test_bytes_that_are_no_text_and_fields_that_are_none_are_refused_by_name() -> None:
    for raw, said in (
        ({"brief": np.array([b"\xff\xfe"], np.object_)}, "brief"),
        ({}, "brief: nothing is not allowed"),
        ({**inputs(), "brief": np.array([b"a", b"b"], np.object_)}, "shape of brief"),
        ({**inputs(), REQUEST_PARAMETERS: text('{"heigth": 3}')}, "heigth is not a field"),
    ):
        with pytest.raises(RequestError, match=said):
            parse_page_request(raw, PageLimits())


def test_a_page_more_than_may_be_made_is_refused_at_once(served: Served) -> None:
    over = threading.Event()
    served.stages.written = lambda _: over.wait(60) and None
    going = [served.ask(wait=False) for _ in range(2)]
    refused = served.ask()
    assert isinstance(refused.error, QueueFullError)
    over.set()
    assert all(reply.closed.wait(60) and reply.error is None for reply in going)
    assert served.ask().error is None


def test_a_run_can_be_watched_and_cancelled_by_its_id(served: Served) -> None:
    over = threading.Event()
    served.stages.written = lambda _: over.wait(60) and None
    reply = served.ask(wait=False, run_id="mine")

    def state(question: str) -> str:
        told = Reply()
        served.service.handle({question: text("mine")}, told)
        return str(told.sent[0]["run_state"].decode())

    until(lambda: served.stages.asked(Stage.SECTIONS))
    assert state("watch") == "running"
    assert state("cancel") == "running"
    assert reply.closed.wait(60)
    assert isinstance(reply.error, CancelledError)
    assert state("watch") == "failed"
    over.set()


def test_a_question_whose_caller_has_gone_is_no_request_that_failed(served: Served) -> None:
    class Gone(Reply):
        def send(self, outputs: Mapping[str, np.ndarray]) -> None:
            raise RuntimeError("nobody is there")

    gone = Gone()
    served.service.handle({"watch": text("mine")}, gone)
    served.service.handle({"cancel": text("no id!")}, Reply())
    served.service.recorder.stop()
    assert gone.error is None
    assert not any(name == PAGE_REQUESTS.name for name, *_ in served.counted)
    served.service.recorder = Recorder(lambda metric, value, labels: None)


def test_a_caller_that_has_left_is_not_worked_for(served: Served) -> None:
    over = threading.Event()
    served.stages.written = lambda _: over.wait(60) and None
    reply = served.ask(wait=False)
    reply.gone = True
    assert reply.closed.wait(60)
    assert isinstance(reply.error, CancelledError)
    over.set()


def test_a_page_that_is_made_when_the_model_is_unloaded_is_not_said_to_be_cancelled() -> None:
    over = threading.Event()
    stages = ScriptedStages(written=lambda _: over.wait(60) and None)
    counted: list[Mapping[str, str]] = []
    recorder = Recorder(lambda metric, value, labels: counted.append(labels) if metric is PAGE_REQUESTS else None)
    service, reply = PageService(model(), stages, recorder), Reply()
    service.handle(inputs(), reply)
    ended = threading.Thread(target=service.stop)
    ended.start()
    assert reply.closed.wait(60)
    over.set()
    ended.join(60)
    assert isinstance(reply.error, StoppingError)
    assert [labels["outcome"] for labels in counted] == [StoppingError.outcome]


def test_calls_that_are_never_answered_hold_up_neither_the_next_page_nor_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_END_SECONDS", 0.2)
    clock, never = standing_clock(monkeypatch), threading.Event()
    stages = ScriptedStages(drawn=lambda _: never.wait(120) and None)
    limits = {"max_pages": 1, "calls_per_page": 2, "stage_seconds": 0.1}
    served = Served(PageService(model(**limits), stages, Recorder(lambda metric, value, labels: None)), stages, [])
    waits = served.ask(wait=False)
    until(lambda: len(stages.asked(Stage.PICTURES)) == 2)  # no other calls are out any more
    clock[0] = 10.0
    assert waits.closed.wait(60)
    (lame,) = waits.sent
    assert len(json.loads(lame["page"])["degraded"]) == 2
    stages.drawn, clock[0] = None, 0.0
    (whole,) = served.ask().sent
    assert json.loads(whole["page"])["degraded"] == []
    begun = time.monotonic()
    served.service.stop()
    assert time.monotonic() - begun < 60
    never.set()


def test_pages_that_were_inside_at_a_death_are_made_alone(tmp_path: Path) -> None:
    asked = [inputs(brief) for brief in ("landing page for a bakery", "page for a museum", "page for a gym")]
    before = FlightRecord.at(tmp_path / "page.flight")
    for suspect in asked[:2]:
        Flight.of(before, suspect, "page").enter()
    before.close()  # as the kernel leaves it
    together = Together()

    def written(_: str) -> None:
        with together:
            time.sleep(0.05)

    stages = ScriptedStages(written=written, planned="hero: hero section for a bakery\nfooter: footer for a bakery\n")
    service = PageService(
        model(calls_per_page=1), stages, Recorder(lambda metric, value, labels: None), FlightRecord.at(tmp_path / "page.flight")
    )
    assert service.record is not None
    assert len(service.record.suspects) == 2
    replies = [Reply() for _ in asked]
    for one, reply in zip(asked, replies, strict=True):
        service.handle(one, reply)
    assert all(reply.closed.wait(60) and reply.error is None for reply in replies)
    assert together.most == 1
    assert not service.record.suspects
    service.stop()


def test_a_page_that_waits_to_be_alone_can_be_given_up(tmp_path: Path) -> None:
    before = FlightRecord.at(tmp_path / "page.flight")
    Flight.of(before, inputs(), "page").enter()
    before.close()
    over = threading.Event()
    stages = ScriptedStages(written=lambda _: over.wait(60) and None)
    service = PageService(
        model(), stages, Recorder(lambda metric, value, labels: None), FlightRecord.at(tmp_path / "page.flight")
    )
    other, waiting = Reply(), Reply()
    service.handle(inputs("page for a museum"), other)
    until(lambda: stages.asked(Stage.SECTIONS))
    service.handle(inputs(timeout_seconds=0.2), waiting)
    assert waiting.closed.wait(60)
    assert isinstance(waiting.error, DeadlineError)
    over.set()
    assert other.closed.wait(60)
    assert other.error is None
    service.stop()


def test_what_a_page_takes_and_lacks_is_counted(served: Served) -> None:
    served.stages.drawn = RequestError("no ink")
    served.ask()
    served.ask(brief="")
    served.service.recorder.stop()
    counts: dict[tuple[str, str], float] = {}
    for name, value, labels in served.counted:
        key = (name, ",".join(labels.values()))
        counts[key] = counts.get(key, 0) + (value if name.endswith("_total") else 1)
    assert counts["nereid_page_requests_total", "success"] == 1
    assert counts["nereid_page_requests_total", "invalid"] == 1
    assert counts["nereid_page_degraded_total", "pictures"] == 2
    assert counts["nereid_page_stage_seconds", "layouts"] == 3
    assert counts["nereid_page_first_section_seconds", ""] == 1
    assert counts["nereid_page_answers_total", "true"] == 1
    served.service.recorder = Recorder(lambda metric, value, labels: None)


def test_one_request_id_goes_through_all(served: Served) -> None:
    seen: list[str] = []
    served.stages.written = served.stages.laid = served.stages.drawn = lambda _: seen.append(request_ids.current())
    with request_ids.handling("one-id"):
        assert served.ask().error is None
    assert len(seen) == 8
    assert set(seen) == {"one-id"}


def test_siblings_are_asked_in_their_own_tensors() -> None:
    calls: list[tuple[str, dict[str, np.ndarray], bool]] = []

    def call(name: str, asked: Mapping[str, np.ndarray], outputs: Any, decoupled: bool = False) -> dict[str, np.ndarray]:
        calls.append((name, dict(asked), decoupled))
        box = {"id": "a", "x": 1, "y": 2, "width": 3, "height": 4}
        layout = {"elements": [box], "degraded": [{"reason": "deadline", "said": "fewer"}], "drawn_by": "transformer"}
        return {
            "text_output": text("<section></section>"),
            "finish_reason": text("stop"),
            "layout": text(json.dumps(layout)),
            "generated_image": np.zeros((1, 4, 4, 3), np.uint8),
            "run_state": text("running"),
        }

    own = model(picture_steps=9)
    stages = SiblingStages(own, call)
    terms = Terms(run_id="r", seed=3, priority=1, seconds=4.0, goal=2.0)
    assert stages.plans
    stages.plan("a <|u|> brief", terms)
    stages.write("hero for a bakery", terms)
    laid = stages.lay_out([{"id": "a", "class": "heading"}], page_canvas(), terms)
    stages.draw("a box", terms)
    for stage in Stage:
        stages.cancel(stage, "r")
    assert [(name, decoupled) for name, _, decoupled in calls] == [
        ("planner", True),
        ("llm", True),
        ("layout", True),
        ("text_to_image", False),
        ("planner", True),
        ("llm", True),
        ("layout", True),
        ("denoise", False),
    ]
    assert calls[0][1]["text_input"].item() == b"<|u|>Plan a page: a   brief<|a|>"
    sampling = json.loads(calls[1][1]["sampling_parameters"].item())
    assert (sampling["temperature"], sampling["priority"], sampling["seed"]) == (0.7, 1, 3)
    assert json.loads(calls[0][1]["sampling_parameters"].item())["priority"] == 1
    assert "start:" in sampling["structured_outputs"]["grammar"]
    assert (tuple(laid.boxes[0]), laid.degraded, laid.drawn_by) == ((1.0, 2.0, 3.0, 4.0), ("fewer",), "transformer")
    drawn = calls[3][1]
    assert drawn["prompt"].shape == drawn["seed"].shape == (1, 1)
    assert drawn["num_inference_steps"].item() == 9
    assert {name for name, asked, _ in calls[:4] if asked["run_id"].item() == b"r"} == {
        "planner",
        "llm",
        "layout",
        "text_to_image",
    }
    assert calls[7][1]["cancel"].shape == (1, 1)
    assert [asked["timeout_seconds"].item() for _, asked, _ in calls[:4]] == [4.0] * 4
    assert [asked["deadline_seconds"].item() for _, asked, _ in calls[2:4]] == [2.0, 2.0]
    assert [asked["priority"].item() for _, asked, _ in calls[2:4]] == [1, 1]


def page_canvas() -> Any:
    from page_forms import DESKTOP

    return DESKTOP


def test_a_text_that_was_cut_off_is_no_section() -> None:
    own = model()
    stages = SiblingStages(own, lambda *_, **__: {"text_output": text("<sec"), "finish_reason": text("length")})
    with pytest.raises(RequestError, match="llm has not come to an end within 480 tokens"):
        stages.write("hero", Terms(run_id="r", seed=3, priority=1, seconds=4.0))


def test_boxes_that_are_no_numbers_are_no_layout() -> None:
    box = '{"elements": [{"id": "a", "x": NaN, "y": 0, "width": 1, "height": 1}], "degraded": [], "drawn_by": "transformer"}'
    stages = SiblingStages(model(), lambda *_, **__: {"layout": text(box)})
    with pytest.raises(RequestError, match="layout has answered boxes that are no numbers"):
        stages.lay_out([{"id": "a"}], page_canvas(), Terms(run_id="r", seed=3, priority=1, seconds=4.0))


def test_facts_that_are_none_are_refused_by_their_file(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"page.json cannot be read"):
        PageFacts.read(tmp_path)
    (tmp_path / "page.json").write_text("{}")
    with pytest.raises(ValueError, match="export the model again"):
        PageFacts.read(tmp_path)
    frame = {"before": "<|u|>", "after": "<|a|>", "marks": ["<|u|>", "<|a|>"], "whole": True}
    raw = {"chat": frame, "planner_chat": frame, "picture_prompts": {}, "picture_ratio": 1.0}
    (tmp_path / "page.json").write_text(json.dumps(raw))
    assert PageFacts.read(tmp_path) == FACTS
    with pytest.raises(ValueError, match="default_sections"):
        PageLimits.from_parameters({"default_sections": "9", "max_sections": "8"})

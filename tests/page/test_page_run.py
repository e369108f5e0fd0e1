"""A page's stages as a graph: what overlaps, what is made in whose place, what deadlines and cancellations reach."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from nereid.flow.errors import CancelledError, DeadlineError, EngineError, LostError, QueueFullError
from nereid.page.pieces import _GRACE_SECONDS, Pieces
from nereid.page.stages import Laid, Stage

from page_forms import FEATURES, GALLERY, Noted, ScriptedStages, Together, make, standing_clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return standing_clock(monkeypatch)


def test_a_page_is_planned_written_laid_out_illustrated_and_put_together() -> None:
    made = make()
    assert [section["kind"] for section in made.facts["sections"]] == ["hero", "gallery", "footer"]
    assert [section["written_by"] for section in made.facts["sections"]] == ["llm"] * 3
    assert [section["drawn_by"] for section in made.facts["sections"]] == ["transformer"] * 3
    assert made.facts["planned_by"] == "planner"
    assert (made.said, made.facts["passed"]) == ([], True)
    assert [picture["prompt"] for picture in made.facts["sections"][1]["pictures"]] == [
        "rye bread, a bakery",
        "fruit tarts, a bakery",
    ]
    assert made.answer.html.count("data:image/png") == 2
    assert made.facts["title"] == "Bakery"
    assert {"plan", "sections", "layouts", "pictures", "first_section", "page"} == set(made.facts["seconds"])
    assert len(made.noted.first) == 1
    assert sorted(made.noted.ended) == sorted([Stage.PLAN, *[Stage.SECTIONS] * 3, *[Stage.LAYOUTS] * 3, *[Stage.PICTURES] * 2])


def test_elements_are_told_from_the_pages_corner() -> None:
    made = make()
    first, second = made.facts["sections"][:2]
    assert (first["y"], second["y"]) == (0.0, first["height"])
    assert second["elements"][0]["y"] > second["y"]
    assert made.facts["height"] == sum(section["height"] for section in made.facts["sections"])


def test_the_same_seed_gives_the_same_page() -> None:
    first, second, other = make(seed=3), make(seed=3), make(seed=4)
    assert first.answer.html == second.answer.html
    assert first.answer.html != other.answer.html


def test_a_section_is_laid_out_while_the_next_is_written_and_pictures_are_drawn_meanwhile() -> None:
    laid, drawing = threading.Event(), threading.Event()

    def written(brief: str) -> str | None:
        if "footer" in brief:
            assert laid.wait(10)
            assert drawing.wait(10)
        return None

    stages = ScriptedStages(written=written, laid=lambda _: laid.set(), drawn=lambda _: drawing.set())
    assert make(stages).said == []


def test_no_more_calls_are_out_than_a_page_may_have() -> None:
    together = Together()

    def busy(_: Any) -> None:
        with together:
            time.sleep(0.02)

    stages = ScriptedStages(written=busy, laid=busy, drawn=busy)
    assert make(stages, limits={"calls_per_page": 2}).said == []
    assert together.most == 2


def test_without_a_planner_rules_plan_and_the_answer_says_so() -> None:
    made = make(ScriptedStages(plans=False))
    assert made.facts["planned_by"] == "rules"
    assert made.said == ["the plan is made by rules, because no planner is served (planner_model)"]
    assert [section["kind"] for section in made.facts["sections"]] == ["hero", "features", "gallery", "footer"]


@pytest.mark.parametrize("planned", [EngineError("it is gone"), "no plan", ""])
def test_a_planner_that_fails_is_replaced_by_rules(planned: Any) -> None:
    stages = ScriptedStages(planned=(lambda _: planned) if isinstance(planned, str) else planned)
    made = make(stages)
    assert made.facts["planned_by"] == "rules"
    assert len(made.said) == 1
    assert "the planner has failed" in made.said[0]


@pytest.mark.parametrize(
    "written",
    [EngineError("it is gone"), "<section><b></section>", "no markup", "<section></section>", "<section><p>cut", "\x00" * 9],
)
def test_a_section_that_is_none_is_replaced_by_its_heading(written: Any) -> None:
    stages = ScriptedStages(written=lambda brief: written if "gallery" in brief else None)
    if isinstance(written, Exception):
        error = written
        stages.written = lambda brief: error if "gallery" in brief else None
    made = make(stages)
    assert [section["written_by"] for section in made.facts["sections"]] == ["llm", "rules", "llm"]
    (one,) = made.facts["degraded"]
    assert (one["stage"], one["section"]) == ("sections", 2)
    assert "its writer has failed" in one["said"]
    assert ">Gallery</h2>" in made.answer.html


def test_a_layout_that_fails_is_replaced_by_rules_and_one_that_says_so_is_believed() -> None:
    made = make(ScriptedStages(laid=EngineError("it is gone")))
    assert [section["drawn_by"] for section in made.facts["sections"]] == ["rules"] * 3
    assert len(made.said) == 3
    assert made.facts["passed"]

    def by_rules(elements: Any) -> Laid:
        from nereid.layout.canvas import Canvas
        from nereid.layout.element_list import read_elements
        from nereid.layout.flow import flow_layout

        return Laid(tuple(flow_layout(read_elements(list(elements), Canvas.of(1280)))), "rules", ("an engine was replaced",))

    assert make(ScriptedStages(laid=by_rules)).said == ["an engine was replaced"] * 3


def test_a_picture_that_fails_leaves_a_placeholder_of_its_size() -> None:
    made = make(ScriptedStages(drawn=lambda prompt: EngineError("no ink") if "rye" in prompt else None))
    assert made.said == ["s2-image-1 is a placeholder, because its picture has failed: no ink"]
    assert [picture["drawn"] for picture in made.facts["sections"][1]["pictures"]] == [False, True]
    assert 'id="s2-image-1" class="e image blank" role="img" aria-label="rye bread"' in made.answer.html


def test_what_is_no_answer_at_all_is_said_to_be_internal() -> None:
    made = make(ScriptedStages(drawn=lambda _: KeyError("x")))
    wrong = "internal error (KeyError); see the server's log"
    assert made.said == [f"s2-image-{n} is a placeholder, because its picture has failed: {wrong}" for n in (1, 2)]


@pytest.mark.parametrize("error", [LostError("it died"), QueueFullError("it is full")])
def test_what_has_died_or_is_full_is_asked_again(error: Exception) -> None:
    fails = [3]

    def laid(_: Any) -> Exception | None:
        fails[0] -= 1
        return error if fails[0] >= 0 else None

    assert make(ScriptedStages(laid=laid)).said == []
    made = make(ScriptedStages(laid=error), limits={"stage_patience_seconds": 0.3})
    assert len(made.said) == 3


def test_at_the_goal_rules_make_what_is_not_there_and_its_calls_are_cancelled(clock: list[float]) -> None:
    stages, noted = ScriptedStages(drawn=lambda _: stages.stay_out(3)), Noted()
    stages.written = lambda brief: stages.stay_out(3) if "footer" in brief else None

    def passes() -> bool:
        """The goal is reached once nothing is left but what stays out."""
        if len(noted.ended) == 5 and (len(stages.asked(Stage.SECTIONS)), len(stages.asked(Stage.PICTURES))) == (3, 2):
            clock[0] = 1.0
        return False

    made = make(stages, is_cancelled=passes, noted=noted, deadline_seconds=1.0)
    assert made.facts["seconds"]["page"] == 1.0
    assert sorted((one["stage"], one["section"]) for one in made.facts["degraded"]) == [
        ("layouts", 3),
        ("pictures", 2),
        ("pictures", 2),
        ("sections", 3),
    ]
    assert all("deadline_seconds (1)" in said for said in made.said)
    waited = {terms.run_id: stage for stage, _, terms in stages.calls if terms.run_id in {run for _, run in stages.cancelled}}
    assert sorted(waited.values()) == [Stage.PICTURES, Stage.PICTURES, Stage.SECTIONS]


def test_a_goal_that_passes_before_the_plan_is_still_a_page() -> None:
    made = make(ScriptedStages(planned=lambda _: time.sleep(0.5) or "x"), deadline_seconds=0.1)
    assert made.facts["planned_by"] == "rules"
    assert all(section["written_by"] == "rules" for section in made.facts["sections"])
    assert "<h1" in made.answer.html


def test_what_has_come_when_the_goal_is_reached_is_not_made_again(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    came, work = threading.Semaphore(0), Pieces._work

    def noted_work(self: Pieces, *given: Any) -> None:
        work(self, *given)
        came.release()

    monkeypatch.setattr(Pieces, "_work", noted_work)

    def busy() -> bool:
        """The page's own thread is held up until all nine calls have come back and the goal is past."""
        if (len(stages.asked(Stage.LAYOUTS)), len(stages.asked(Stage.PICTURES)), clock[0]) == (3, 2, 0.0):
            assert all(came.acquire(timeout=30) for _ in range(9))
            clock[0] = 1.2
        return False

    stages = ScriptedStages()
    made = make(stages, is_cancelled=busy, deadline_seconds=1.2)
    assert clock[0] == 1.2
    assert [picture["drawn"] for picture in made.facts["sections"][1]["pictures"]] == [True, True]
    assert made.said == []


def test_terms_go_down_to_every_call() -> None:
    made = make(priority=2, deadline_seconds=15.0, timeout_seconds=18.0)
    terms = [terms for _, _, terms in made.stages.calls]
    assert {term.priority for term in terms} == {2}
    assert all(0 < term.seconds <= 15 and term.goal is not None and 0 < term.goal <= 15 for term in terms)
    assert len({term.run_id for term in terms}) == len(terms)
    alone = make().stages.calls[0][2]
    assert (alone.goal, alone.seconds <= 20.0) == (None, True)


def test_a_timeout_ends_the_page_with_an_error_and_its_calls(clock: list[float]) -> None:
    stages = ScriptedStages(written=lambda _: stages.stay_out(3))

    def passes() -> bool:
        if len(stages.asked(Stage.SECTIONS)) == 3:
            clock[0] = 0.2
        return False

    with pytest.raises(DeadlineError, match=r"timeout_seconds \(0.2\)"):
        make(stages, is_cancelled=passes, timeout_seconds=0.2)
    assert [stage for stage, _ in stages.cancelled] == [Stage.SECTIONS] * 3


def test_a_caller_that_leaves_cancels_what_is_out() -> None:
    begun = threading.Event()

    def written(_: Any) -> None:
        begun.set()
        stages.stay_out(3)

    stages = ScriptedStages(written=written)
    with pytest.raises(CancelledError):
        make(stages, is_cancelled=begun.is_set)
    assert [stage for stage, _ in stages.cancelled] == [Stage.SECTIONS] * 3


def test_a_call_that_is_never_answered_is_given_up(clock: list[float]) -> None:
    stages, noted = ScriptedStages(drawn=lambda _: stages.stay_out(2)), Noted()

    def passes() -> bool:
        if (len(noted.ended), len(stages.asked(Stage.PICTURES))) == (7, 2):
            clock[0] = 0.1 + _GRACE_SECONDS + 0.01
        return False

    made = make(stages, is_cancelled=passes, noted=noted, limits={"stage_seconds": 0.1})
    assert [said.rpartition(": ")[2] for said in made.said] == ["no answer within 0.1 s"] * 2


def test_streams_show_the_page_as_it_grows() -> None:
    made = make(stream_interval=1)
    steps = [answer.facts["step"] for answer in made.shown]
    assert steps == sorted(set(steps))
    assert len(made.shown) == 8
    assert made.shown[0].html == ""
    first = next(answer for answer in made.shown if answer.html)
    assert "<h1" in first.html
    last = made.shown[-1].facts["progress"]
    assert last["plan"] == {"done": 1, "of": 1}
    assert last["sections"] == {"done": 3, "of": 3}
    assert not any(answer.done for answer in made.shown)
    few = make(stream_interval=100)
    assert ["s1" in answer.facts["visible"] for answer in few.shown] == [True]


def test_as_many_pictures_are_drawn_as_may_be_always_the_first_ones() -> None:
    plan = "gallery: gallery section for a bakery, one\ngallery: gallery section for a bakery, two\n"
    stages = ScriptedStages(planned=plan, written=lambda brief: time.sleep(0.2 if "one" in brief else 0.0) or GALLERY)
    made = make(stages, pictures=3)
    drawn = [[picture["drawn"] for picture in section["pictures"]] for section in made.facts["sections"]]
    assert drawn == [[True, True], [True, False]]
    assert made.said == []
    assert make(pictures=0).stages.asked(Stage.PICTURES) == []


def test_as_many_sections_are_made_as_may_be() -> None:
    made = make(sections=2)
    assert [section["kind"] for section in made.facts["sections"]] == ["hero", "gallery"]


def test_elements_beyond_what_a_layout_takes_are_said_to_be_left_out() -> None:
    long = FEATURES.replace("</section>", "<p>more</p>" * 40 + "</section>")
    made = make(ScriptedStages(written=lambda brief: long if "hero" in brief else None))
    assert len(made.said) == 1
    assert "of its elements are left out" in made.said[0]


def test_without_a_layout_model_rules_place_the_boxes_and_the_answer_says_so_once() -> None:
    made = make(ScriptedStages(lays_out=False), stream_interval=1)
    assert made.said == ["the boxes are placed by rules, because no layout model is served (layout_model)"]
    assert {section["drawn_by"] for section in made.facts["sections"]} == {"rules"}
    assert made.facts["passed"]
    assert made.stages.asked(Stage.LAYOUTS) == []
    assert any("s1" in answer.facts["visible"] for answer in made.shown)

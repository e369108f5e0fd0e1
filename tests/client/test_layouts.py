"""Layout requests through the SDK: what is sent, what answers become, what a death changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from nereid_client import InvalidRequestError, LayoutProgress, LayoutResult, LostError, NereidError, ServerError
from nereid_client.main import app
from nereid_client.session import Session

from scripted import Instant, World, answers, fails, texts

DEATH = LostError("layout: its process died")
ELEMENT = {
    **{"id": "title", "parent": None, "class": "heading", "order": 0},
    **{"x": 64.0, "y": 48.0, "width": 640.0, "height": 56.0, "fixed": ["x"]},
}
ANSWER = {
    "canvas": {"width": 1280, "height": 136.0},
    "elements": [ELEMENT],
    "checks": [{"check": "columns", "severity": "warning", "elements": ["title"], "value": 3.0, "limit": 1.0}],
    "score": 0.9,
    "repaired": [],
    "seed": 5,
    "drawn_by": "transformer",
    "steps": 16,
    "degraded": [{"reason": "deadline", "said": "fewer steps"}],
}


def layout(**changes: Any) -> dict[str, np.ndarray]:
    """The outputs of a finished layout."""
    return {"layout": texts(json.dumps({**ANSWER, **changes})), "score": np.array([0.9], np.float32)}


def shown(step: int) -> dict[str, np.ndarray]:
    """The outputs of a stream on its way."""
    made = {"step": step, "num_inference_steps": 16, "canvas": ANSWER["canvas"], "elements": [ELEMENT]}
    return {"layout": texts(json.dumps(made)), "step": np.array([step], np.int32)}


def ask(world: World, section: Any = "<section></section>", canvas: Any = 1280, **options: Any) -> Any:
    work, reader = Session(transport=world)._layout(section, canvas, options, None, None)
    (made,) = world.drive(work, reader)
    return made


def stream(world: World, **options: Any) -> Iterator[Any]:
    work, reader = Session(transport=world)._layout_stream("<section></section>", 1280, 4, options, None, None)
    return world.drive(work, reader)


def test_an_answer_becomes_a_result() -> None:
    made = ask(World(answers(layout())))
    assert isinstance(made, LayoutResult)
    (element,) = made.elements
    assert (element.id, element.kind, element.x, element.fixed) == ("title", "heading", 64.0, ("x",))
    assert (made.seed, made.steps, made.degraded, made.passed) == (5, 16, ("fewer steps",), True)
    assert made.answer["canvas"] == ANSWER["canvas"]
    wrong = [{**ANSWER["checks"][0], "severity": "error"}]  # type: ignore[index]
    assert not ask(World(answers(layout(checks=wrong)))).passed


def test_html_and_elements_canvas_and_width_are_sent_as_the_server_reads_them() -> None:
    world = World(answers(layout()), answers(layout()))
    ask(world, "<section><p>é</p></section>", 1280, n=3, format="css", deadline_seconds=0.5)
    ask(world, [{"id": "a", "class": "card"}], {"width": 768, "style": "grid"}, seed=7)
    first, second = (call.tensors for _, call in world.calls)
    assert first["html"].item().decode() == "<section><p>é</p></section>"
    assert first["canvas"].item() == b"1280"
    assert (first["n"].item(), first["n"].dtype, first["format"].item()) == (3, np.int32, b"css")
    assert first["deadline_seconds"].tolist() == [0.5]
    assert "stream_interval" not in first
    assert json.loads(second["elements"].item()) == [{"id": "a", "class": "card"}]
    assert json.loads(second["canvas"].item()) == {"width": 768, "style": "grid"}
    assert second["seed"].item() == 7


def test_a_seed_that_nobody_gave_is_the_same_after_a_death() -> None:
    world = World(fails(DEATH), answers(layout()))
    assert ask(world).seed == 5
    first, second = (call.tensors["seed"].item() for _, call in world.calls)
    assert first == second


def test_a_replayed_stream_shows_no_step_twice() -> None:
    world = World(fails(DEATH, shown(4), shown(8)), answers(shown(4), shown(8), shown(12), layout()))
    made = list(stream(world))
    assert [item.step for item in made if isinstance(item, LayoutProgress)] == [4, 8, 12]
    assert isinstance(made[-1], LayoutResult)
    assert world.calls[0][1].tensors["stream_interval"].item() == 4


def test_an_end_without_a_layout_is_an_error() -> None:
    with pytest.raises(NereidError, match="ended before its layout came"):
        list(stream(World(*[answers(shown(4))] * 4)))
    with pytest.raises(ServerError, match="progress where an answer was asked for"):
        ask(World(answers(shown(4))))


@pytest.mark.parametrize(
    ("section", "canvas", "options", "said"),
    [
        ("<p>", 1280, {"steps": 3}, "steps: "),
        ("<p>", 1280, {"n": "3"}, "n: '3' is not allowed"),
        ("\ud800", 1280, {}, "html: .* must be Unicode text"),
        ([{"id": object()}], 1280, {}, "elements: "),
        ("<p>", {"width": {1}}, {}, "canvas: set is not allowed"),
        ("<p>", object(), {}, "canvas: object is not allowed"),
        (object(), 1280, {}, "elements: object is not allowed"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name(section: Any, canvas: Any, options: dict[str, Any], said: str) -> None:
    world = Instant()
    with pytest.raises(InvalidRequestError, match=said):
        ask(world, section, canvas, **options)
    assert not world.calls


@pytest.mark.parametrize(
    ("section", "canvas", "elements", "width"),
    [
        ([3], 1280.5, [3], 1280.5),
        (None, None, None, None),
        (
            (MappingProxyType({"class": "list", "fixed": MappingProxyType({"x": 0})}),),
            MappingProxyType({"width": 800}),
            [{"class": "list", "fixed": {"x": 0}}],
            {"width": 800},
        ),
    ],
)
def test_what_json_has_is_the_servers_to_refuse(section: Any, canvas: Any, elements: Any, width: Any) -> None:
    world = World(answers(layout()))
    ask(world, section, canvas)
    sent = world.calls[0][1].tensors
    assert (json.loads(sent["elements"].item()), json.loads(sent["canvas"].item())) == (elements, width)


@pytest.mark.parametrize(
    ("name", "held", "said"),
    [
        ("a.html", b"<section>\xff", "is not UTF-8 text: invalid start byte at byte 9"),
        ("a.json", b"[{", "is not JSON: Expecting property name"),
        ("a.json", b"[" * 100_000, "is nested too deeply"),
        ("a.json", b"[3]", "must hold a JSON list of elements"),
    ],
)
def test_a_file_that_is_no_section_is_refused_by_its_name(name: str, held: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(held)
    run = CliRunner().invoke(app, ["layout", str(tmp_path / name), "--url", "127.0.0.1:1"])
    assert run.exit_code == 1, run.exception
    assert f"error: {tmp_path / name} {said}" in run.stderr.replace("\n", " ")

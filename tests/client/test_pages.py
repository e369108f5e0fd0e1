"""Page requests through the SDK and its command: what is sent, what answers become, what a death changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from nereid_client import InvalidRequestError, LostError, NereidError, PageProgress, PageResult, ServerError
from nereid_client.browser import BrowserError, command, find_browser, screenshot
from nereid_client.main import app
from nereid_client.session import Session

from scripted import Instant, World, answers, fails, texts
from small_servers import Tensors, grpc_server

DEATH = LostError("page: its process died")
ANSWER = {
    "title": "Bakery",
    "width": 1280,
    "height": 900.0,
    "sections": [{"id": "s1"}],
    "checks": [{"check": "text_overflow", "severity": "error", "elements": ["s1-heading-1"], "value": 20.0, "limit": 48.0}],
    "passed": False,
    "degraded": [
        {"stage": "plan", "section": None, "said": "the plan is made by rules"},
        {"stage": "pictures", "section": 2, "said": "no ink"},
    ],
    "seconds": {"first_section": 0.4, "page": 2.0},
    "seed": 5,
}


def page(**changes: Any) -> dict[str, np.ndarray]:
    """The outputs of a finished page."""
    return {"page": texts(json.dumps({**ANSWER, **changes})), "html": texts("<html>"), "passed": np.array([False])}


def shown(step: int, html: str = "<html>") -> dict[str, np.ndarray]:
    """The outputs of a stream on its way."""
    made = {
        "step": step,
        "done": {"stage": "layouts", "section": 1},
        "progress": {"plan": {"done": 1, "of": 1}},
        "visible": ["s1"],
        "seconds": 0.1 * step,
    }
    return {"page": texts(json.dumps(made)), "html": texts(html)}


def ask(world: World, brief: str = "a bakery", **options: Any) -> Any:
    work, reader = Session(transport=world)._page(brief, options, None, None)
    (made,) = world.drive(work, reader)
    return made


def stream(world: World, **options: Any) -> Iterator[Any]:
    work, reader = Session(transport=world)._page_stream("a bakery", 2, options, None, None)
    return world.drive(work, reader)


def test_an_answer_becomes_a_result() -> None:
    made = ask(World(answers(page())))
    assert isinstance(made, PageResult)
    assert (made.html, made.title, made.width, made.height, made.passed, made.seed) == ("<html>", "Bakery", 1280, 900.0, False, 5)
    assert made.degraded == ("the plan is made by rules", "section 2: no ink")
    assert made.answer["sections"] == [{"id": "s1"}]


def test_a_brief_and_its_options_are_sent_as_the_server_reads_them() -> None:
    world = World(answers(page()))
    ask(world, "Bäckerei", width=768, density="compact", sections=3, pictures=0, deadline_seconds=5.0, priority=1, seed=7)
    sent = world.calls[0][1].tensors
    assert sent["brief"].item().decode() == "Bäckerei"
    assert (sent["width"].item(), sent["density"].item(), sent["sections"].item()) == (768, b"compact", 3)
    assert (sent["pictures"].item(), sent["seed"].item(), sent["priority"].item()) == (0, 7, 1)
    assert "stream_interval" not in sent
    assert world.calls[0][1].model == "page"


def test_a_seed_that_nobody_gave_is_the_same_after_a_death_and_no_step_is_shown_twice() -> None:
    world = World(fails(DEATH, shown(1), shown(2)), answers(shown(1), shown(2), shown(3), page()))
    made = list(stream(world))
    progress = [item for item in made if isinstance(item, PageProgress)]
    assert [item.step for item in progress] == [1, 2, 3]
    assert (progress[0].done, progress[0].visible) == ({"stage": "layouts", "section": 1}, ("s1",))
    assert isinstance(made[-1], PageResult)
    first, second = (call.tensors for _, call in world.calls)
    assert first["seed"].item() == second["seed"].item()
    assert first["stream_interval"].item() == 2


def test_an_end_without_a_page_is_an_error() -> None:
    with pytest.raises(NereidError, match="ended before its page came"):
        list(stream(World(*[answers(shown(1))] * 4)))
    with pytest.raises(ServerError, match="progress where an answer was asked for"):
        ask(World(answers(shown(1))))


@pytest.mark.parametrize(
    ("brief", "options", "said"),
    [("a", {"heigth": 3}, "heigth: "), ("a", {"width": "3"}, "width: '3'"), ("\ud800", {}, "brief: .* must be Unicode text")],
)
def test_what_cannot_be_sent_is_refused_by_name(brief: str, options: dict[str, Any], said: str) -> None:
    world = Instant()
    with pytest.raises(InvalidRequestError, match=said):
        ask(world, brief, **options)
    assert not world.calls


def model(inputs: Tensors) -> Iterator[Tensors]:
    if "stream_interval" in inputs:
        yield shown(1, "")
        yield shown(2, "<html>so far")
    yield page()


def test_the_command_writes_the_page_and_says_what_is_wrong_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # where no browser is
    with grpc_server({"page": model}) as (port, _):
        asked = ["page", "a bakery", "--url", f"127.0.0.1:{port}", "-o", str(tmp_path / "p.html"), "--width", "800"]
        run = CliRunner().invoke(app, asked)
    assert run.exit_code == 0, run.output
    assert (tmp_path / "p.html").read_text() == "<html>"
    assert "no Chromium on the path" in run.stderr
    assert "warning: section 2: no ink" in run.stderr
    assert "error: text_overflow of s1-heading-1: 20, limit 48" in run.stderr
    assert "1 sections, the first after 0.40 s, all after 2.00 s" in run.stderr
    assert not (tmp_path / "p.png").exists()


def test_what_models_say_and_files_are_called_is_not_read_as_markup(tmp_path: Path) -> None:
    said = {"stage": "sections", "section": 1, "said": "its writer has failed: [/section] is not [a-z]"}
    with grpc_server({"page": lambda _: iter([page(degraded=[said])])}) as (port, _):
        target = tmp_path / "p[x].html"
        run = CliRunner().invoke(app, ["page", "a bakery", "--url", f"127.0.0.1:{port}", "-o", str(target), "--no-png"])
    assert run.exit_code == 0, run.exception
    assert "warning: section 1: its writer has failed: [/section] is not [a-z]" in run.stderr
    assert f"{target}  1 sections" in run.stderr


def test_a_page_does_not_go_where_its_picture_goes(tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["page", "a bakery", "--url", "127.0.0.1:1", "-o", str(tmp_path / "page.png")])
    assert run.exit_code == 2
    assert "must be another file than the picture's" in " ".join(run.output.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_a_browser_that_draws_nothing_is_said_so_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = tmp_path / "chromium"
    browser.write_text("#!/bin/sh\necho 'no display' >&2\nexit 3\n")
    browser.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert find_browser() == str(browser)
    with pytest.raises(BrowserError, match=r"has drawn no picture of .*p\.html: no display"):
        screenshot(tmp_path / "p.html", tmp_path / "p.png", 100, 100.0, str(browser))
    with pytest.raises(BrowserError, match="cannot draw"):
        screenshot(tmp_path / "p.html", tmp_path / "p.png", 100, 100.0, str(tmp_path / "nothing"))
    assert "--headless" in command("chromium", tmp_path)

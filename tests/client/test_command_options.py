"""Options of the commands that ask a server: what is wrong with them is said before it is asked, and help tells what is usual."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from nereid_client.main import app

NOBODY = ("--url", "127.0.0.1:1")


def ask(*words: str) -> tuple[int, str]:
    """The status, and what is said, without the frame around it."""
    made = CliRunner().invoke(app, list(words), env={"COLUMNS": "300"})
    return made.exit_code, re.sub(r"[\s│]+", " ", made.output)


@pytest.fixture
def section(tmp_path: Path) -> Path:
    file = tmp_path / "section.html"
    file.write_text("<section><h2>Bread</h2></section>")
    (tmp_path / "requests.jsonl").write_text('{"custom_id": "a", "url": "/v1/completions", "body": {}}')
    return file


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nowhere/made.png", "is not allowed; there is no folder"),
        ("section.html/made.png", "is not allowed; there is no folder"),
        ("folder.png", "is a folder; it must be a file"),
        (f"{'a' * 300}.png", ".png cannot be written; File name too long"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_made(section: Path, target: str, said: str) -> None:
    (section.parent / "folder.png").mkdir()
    file = str(section.parent / target)
    for words in (["generate", "a box"], ["layout", str(section)], ["page", "--no-png", "a bakery"]):
        status, told = ask(*words, "-o", file, *NOBODY)
        assert (status, said in told) == (2, True), told
    status, told = ask("batch", "run", str(section.parent / "requests.jsonl"), "-o", file, *NOBODY)
    assert (status, said in told) == (2, True), told


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is open to root")
def test_a_folder_that_is_closed_is_said_so(section: Path) -> None:
    closed = section.parent / "closed"
    closed.mkdir(mode=0o500)
    status, told = ask("layout", str(section), "-o", str(closed / "made.svg"), *NOBODY)
    assert (status, "cannot be written" in told) == (2, True), told


@pytest.mark.parametrize("name", ["picture", "picture.xyz", "picture.psd"])
def test_a_pictures_name_says_a_format_that_can_be_written(tmp_path: Path, name: str) -> None:
    status, told = ask("generate", "a box", "-o", str(tmp_path / name), *NOBODY)
    assert (status, "its name must end with a picture's format" in told) == (2, True), told


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "a box", "--steps", "0"),
        ("generate", "a box", "--priority", "10"),
        ("generate", "a box", "--strength", "1.5"),
        ("page", "a bakery", "--width", "100"),
    ],
)
def test_what_is_outside_a_fields_bounds_is_refused_before_a_server_is_asked(words: tuple[str, ...]) -> None:
    status, told = ask(*words, *NOBODY)
    assert (status, f"Invalid value for '{words[2]}'" in told) == (2, True), told


@pytest.mark.parametrize("command", ["generate", "layout", "page", "chat"])
def test_help_tells_what_every_option_is_where_it_is_absent(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 400)
    lines = [line for line in CliRunner().invoke(app, [command, "--help"]).output.splitlines() if re.search(r"│ +-", line)]
    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    switches = {"--help", *(name for one in parameters if getattr(one, "is_flag", False) for name in one.opts)}
    valued = [line.strip("│ ") for line in lines if not switches & set(re.split(r"[\s│]+", line))]
    assert len(valued) > 5
    assert [line for line in valued if "[default: " not in line] == []

"""Command lines: those that documents show are understood by the commands' own parsers, and every command explains itself."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from nereid_client.main import OTHER_ROOMS, app

ROOT = Path(__file__).parents[1]
DOCUMENTS = {file.name: file.read_text() for file in (*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md")))}
DOCUMENTS.pop("CHANGELOG.md")  # it tells of what was
MAKEFILE = (ROOT / "Makefile").read_text()
OTHERS = {  # options of other programs that documents name
    *(
        "--index-url",
        "--build-arg",
        "--shm-size",
        "--gpus",
        "--backend-config",
        "--model-config-name",
    ),  # pip, docker, tritonserver
    *("--concurrency", "--endpoint-type", "--extra-inputs", "--isl", "--model", "--osl", "--request-count"),  # aiperf
    *("--streaming", "--tokenizer", "--url", "--tasks", "--model_args", "--only", "--accept"),  # lm_eval, tests/clients/run.py
}


@functools.cache
def commands() -> dict[str, Any]:
    """Every command by its words, those of other distributions among them."""
    found = dict(_leaves(typer.main.get_command(app), ()))
    for verb, (module, attribute, *_) in OTHER_ROOMS.items():
        other: Any = getattr(importlib.import_module(module), attribute)
        if not isinstance(other, typer.Typer):
            single = typer.Typer(add_completion=False)
            single.command()(other)
            other = single
        del found[verb]
        found.update(_leaves(typer.main.get_command(other), (verb,)))
    return found


def _leaves(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name, child in getattr(command, "commands", {}).items():
        yield from _leaves(child, (*words, name))
    if not hasattr(command, "commands"):
        yield " ".join(words), command


def _options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


@functools.cache
def shown() -> list[tuple[str, str, bool]]:
    """Document, command line, and whether it is to be run as it stands: one of a block of commands, and not amid a sentence."""
    found = []
    for document, text in DOCUMENTS.items():
        blocks = re.findall(r"^ *```sh\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            found.append((document, line.strip(), True))
        spans = re.findall(r"`([^`]+)`", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL))
        found += [(document, " ".join(span.split()), False) for span in spans]
    return [(document, line, whole) for document, line, whole in found if re.match(r"(\w+=\S+ )*(nereid|make) ", f"{line} ")]


def _recipe(target: str) -> str:
    """What of this project `make` runs last for a target, ARGS left out; empty where that is no command of it."""
    body = re.search(rf"^{target}:.*\n((?:\t.*\n?)*)", MAKEFILE, re.MULTILINE)
    assert body, f"make {target} is not in the Makefile"
    variables = dict(re.findall(r"^(\w+) \??:?= ?(.*)$", MAKEFILE, re.MULTILINE)) | {"ARGS": ""}
    line = body[1].strip().rpartition("\n")[2]
    for _ in range(3):
        line = re.sub(r"\$\((\w+)\)", lambda match: variables.get(match[1], match[0]), line)
    return line.rpartition(".venv/bin/")[2] if ".venv/bin/nereid " in line else ""


def _problem(line: str, whole: bool) -> str | None:
    """Why the command's own parser does not understand the line."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"\w+=.*", words[0]):
        del words[0]
    if words[:1] == ["make"]:
        given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        targets = [word for word in words[1:] if "=" not in word]
        return next(
            (said for target in targets if (said := _problem(_recipe(target) + " " + given.get("ARGS", ""), False))), None
        )
    if words[:1] != ["nereid"] or "..." in words or words[1:] in ([], ["--help"], ["--version"]):
        return None
    name = next((" ".join(words[1:end]) for end in (4, 3, 2) if " ".join(words[1:end]) in commands()), None)
    if name is None:
        group = " ".join(words[1:]).removesuffix(" --help")
        return None if not whole and any(known.startswith(f"{group} ") for known in commands()) else f"no command {group}"
    command, arguments = commands()[name], words[1 + len(name.split()) :]
    try:
        command.make_context(name, list(arguments))
    except Exception as error:
        if whole or type(error).__name__ == "NoSuchOption":  # amid a sentence values may be absent, or stand for others
            return str(getattr(error, "message", "")) or type(error).__name__
    return None


def test_command_lines_that_documents_show_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("section.html", "requests.jsonl"):
        (tmp_path / file).touch()
    assert len([line for _, line, whole in shown() if whole]) > 40
    wrong = [f"{document}: {line}: {said}" for document, line, whole in shown() if (said := _problem(line, whole))]
    assert not wrong, "\n".join(wrong)


def test_options_that_documents_name_are_some_commands() -> None:
    known = OTHERS.union(*(_options(command) for command in commands().values()))
    for document, text in DOCUMENTS.items():
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", text))
        assert named <= known | {"--help"}, f"{document}: {sorted(named - known)}"


@pytest.mark.parametrize("name", sorted(commands()))
def test_help_of_every_command_is_shown_and_explains_every_option(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 400)
    made = CliRunner().invoke(app, [*name.split(), "--help"])
    assert made.exit_code == 0, made.output
    page = _plain(made.output)
    for parameter in commands()[name].params:
        if parameter.name != "help":
            said = inspect.cleandoc(parameter.help or "")
            assert said, f"{name}: {parameter.opts} has no help"
            assert _plain(said) in page, f"{name}: {parameter.opts}: {said}"


def _plain(text: str) -> str:
    """Without what a table adds: frames, breaks, spaces."""
    return re.sub(r"[\s│]+", "", text)


def test_version_is_told() -> None:
    made = CliRunner().invoke(app, ["--version"])
    assert made.exit_code == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", made.output)

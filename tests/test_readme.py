"""What the documents say can be run is there."""

from __future__ import annotations

import ast
import functools
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nereid.client import Client

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = {file: file.read_text() for file in (*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md")))}


def test_make_verbs_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z0-9-]+)", README))
    assert named == targets - {"help"}


def test_gate_runs_the_readmes_test_command() -> None:
    assert "make test" in README
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_files_and_headings_that_documents_point_to_exist() -> None:
    for document, text in DOCUMENTS.items():
        for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
            name, _, heading = target.partition("#")
            file = (document.parent / name).resolve() if name else document
            assert file.exists(), f"{document.name}: {target}"
            assert not heading or heading in _anchors(file.read_text()), f"{document.name}: {target}"


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_document_is_reached_from_the_readme() -> None:
    assert {document.name for document in DOCUMENTS if document.name not in README} == {"README.md"}


def test_examples_of_documents_are_python_with_names_that_are_there() -> None:
    examples = [
        (document, code) for document, text in DOCUMENTS.items() for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    ]
    assert len(examples) > 3
    for document, code in examples:
        for node in ast.walk(ast.parse(code, document.name)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nereid"):
                module = importlib.import_module(node.module or "")
                assert [name.name for name in node.names if not hasattr(module, name.name)] == [], document.name
            elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("client.") and "nereid" in code:
                assert hasattr(Client, ast.unparse(node.func).removeprefix("client.")), f"{document.name}: {ast.unparse(node)}"


def test_messages_that_troubleshooting_explains_are_in_the_code() -> None:
    page = DOCUMENTS[ROOT / "docs" / "troubleshooting.md"]
    messages = [part for line in page.splitlines() if line.startswith("| `") for part in line.split(" | ")[0].split("`")[1::2]]
    assert len(messages) > 30
    missing = [words for message in messages for words in _constant_words(message) if words not in _sentences_of_the_code()]
    assert not missing


def _constant_words(message: str) -> list[str]:
    """What of a message stands for itself: words in capitals, numbers and dots stand for others."""
    return [words.strip() for words in re.split(r"\b[A-Z]{1,}\b|\d+(?:\.\d+)?|\.\.\.|[()`:;]", message) if len(words.strip()) > 9]


@functools.cache
def _sentences_of_the_code() -> str:
    """All source, literals that are continued on the next line joined."""
    folders = ("nereid", "client", "export")
    source = "\n".join(file.read_text() for folder in folders for file in sorted((ROOT / folder).rglob("*.py")))
    return re.sub(r"\"\s*\n\s*f?\"", "", source)


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "a box", "--url", "127.0.0.1:1"],
        ["chat", "hello", "--url", "127.0.0.1:1"],
        ["serve", "--repository", "/nowhere"],
        ["serve", "--repository", "model_repository", "--openai-port", "8089", "--openai-host", "0.0.0.0"],
    ],
)
def test_mistakes_are_one_sentence_and_no_traceback(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "model_repository").symlink_to(ROOT / "model_repository")
    environment = {name: value for name, value in os.environ.items() if name != "NEREID_API_KEY"}
    done = subprocess.run(
        [sys.executable, "-m", "nereid_client.main", *command],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 1
    assert done.stderr.strip().startswith("error:")
    assert "Traceback" not in done.stderr
